"""The modified encoder for pictures whose tiles follow one another in the prompt (InternVL).

Which tiles make one picture is told by the prompt alone: the placeholders of a picture stand in one
run. So nothing is encoded before the prompt is read: the feature rows that stock code gets are all
NaN, and the tower runs once it is known what belongs together, on all pictures at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visiondrop.adapters.base import TowerOutput
from visiondrop.encoder import Encoded, Encoding, Picture, one_each, picture_keys
from visiondrop.functional.tile_run import TileRun
from visiondrop.merged_tokens import MergedView
from visiondrop.tile_encoder import reduce_tiles
from visiondrop.tile_packing import Kept, TiledBatch
from visiondrop.trace import StageTrace
from visiondrop.transfer import to_device
from visiondrop.views import EncoderView

__all__ = ["Tile", "await_prompt", "encode_runs"]


@dataclass
class Tile(Picture):
    """A tile that waits for its prompt: its `pixels` [3, h, w] and how they are to be encoded."""

    options: dict[str, Any] = field(default_factory=dict)


def await_prompt(
    pixel_values: Tensor, rows: int, embeddings: Tensor, options: dict[str, Any]
) -> Encoded:
    """`rows` rows of NaN for each tile, and the tiles that they stand for.

    Args:
        pixel_values: [T, 3, h, w]; embeddings: [V, D'], of whose width and type the rows are.
        options: what the adapter's `encode` takes beside the pixels.
    """
    place = torch.arange(rows, device=pixel_values.device)
    one, shape = torch.ones_like(place), (len(pixel_values), rows, embeddings.shape[-1])
    out = torch.full(shape, float("nan"), dtype=embeddings.dtype, device=pixel_values.device)
    tiles: list[Picture] = [
        Tile(rows, rows, place, place, one, None, None, None, pixels=pixels, options=options)
        for pixels in pixel_values
    ]
    return Encoded(pooler_output=out, pictures=tiles)  # type: ignore[arg-type]


def runs_of(visual: np.ndarray, tiles: Sequence[Picture], row: int) -> list[list[Picture]]:
    """The tiles of each picture of a prompt: those of one run of placeholders.

    Args:
        visual: [S] bool, where the placeholders are; row: of the batch, for the message.

    Raises `ValueError` where a run is not a whole number of tiles.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], visual, [False]]).astype(np.int8)))
    out, rest = [], list(tiles)
    for length in (edges[1::2] - edges[::2]).tolist():
        own: list[Picture] = []
        while rest and sum(tile.rows for tile in own) < length:
            own.append(rest.pop(0))
        if sum(tile.rows for tile in own) != length:
            raise ValueError(
                f"row {row}: a run of {length} placeholders is no whole number of tiles of "
                f"{tiles[0].rows}; put one run of tiles * {tiles[0].rows} placeholders per "
                "picture into the prompt"
            )
        out.append(own)
    return out


def encode_runs(
    model: nn.Module,
    adapter: Any,
    encoding: Encoding,
    kinds: np.ndarray,
    rows: list[list[Picture]],
) -> list[list[Picture]]:
    """The pictures of each prompt, encoded and reduced, from their tiles.

    Args:
        kinds: [B, S], see `prompt.kinds_of`; rows: the tiles of each prompt.
    """
    runs = [runs_of(kinds[r] > 0, own, r) for r, own in enumerate(rows)]
    known: dict[tuple[int, ...], list[Tile]] = {}  # a prompt may stand in several rows (beams)
    for run in (run for own in runs for run in own):
        if isinstance(run[0], Tile):
            known.setdefault(tuple(map(id, run)), run)  # type: ignore[arg-type]
    made = dict(zip(known, encode(model, adapter, encoding, list(known.values())), strict=True))
    return [[made.get(tuple(map(id, run))) or joined(run) for run in own] for own in runs]


def joined(run: list[Picture]) -> Picture:
    """A picture whose tiles were encoded outside: all its rows, unpruned."""
    rows = sum(tile.rows for tile in run)
    identity = torch.arange(rows, device=run[0].identity.device)
    return Picture(rows, rows, identity, identity, torch.ones_like(identity), None, None, None)


def encode(
    model: nn.Module, adapter: Any, encoding: Encoding, runs: list[list[Tile]]
) -> list[Picture]:
    """One picture a run: tower, projector, a reduction per tile, the tiles one behind the other."""
    if not runs:
        return []
    geometry, method, trace = encoding.geometry, encoding.method, encoding.trace
    options = runs[0][0].options
    stacks = [torch.stack([tile.pixels for tile in run]) for run in runs]  # type: ignore[misc]
    grids = [TileRun.of(stack, geometry.grid[0]) for stack in stacks]
    batch = TiledBatch(stacks, grids, method, geometry, trace)  # type: ignore[arg-type]
    pixels = torch.cat(stacks)
    tower_of = functools.partial(adapter.encode, model, **options)
    if trace.pictures is None:
        tower = tower_of(pixels)
    else:
        names = one_each(trace.pictures, len(stacks), "picture names", "trace.set_pictures")
        own = [f"{names[p]}/{t - batch.first[p]}" for t, p in enumerate(batch.owner)]
        tower = trace.towers.encode(own, pixels, tower_of, [names[p] for p in batch.owner])
    tokens = adapter.project(model, tower.features)
    groups = adapter.groups(model).to(tokens.device)

    def view_of(tiles: Sequence[int], _: Tensor | None) -> MergedView:
        index = to_device(torch.tensor(tiles), tokens.device)
        patches = EncoderView(
            tower.features[index],
            tower.query[index],
            tower.key[index],
            tower.scale,
            geometry.cls_attention,
            geometry.grid,
            make_keys=lambda: batch.keys(tiles),
            pixels=pixels[index],
        )
        return MergedView(tokens[index], patches, groups, geometry.grid)

    merged = TowerOutput(tokens, tower.query, tower.key, tower.scale)
    # A prompt stage follows, when all pictures are there.
    place = method.before if method.before_llm and method.before != "prompt" else None
    kept, _, reduced = reduce_tiles(batch, merged, place, lambda features: features, view_of)
    keys: list[str | None] = [None] * len(stacks)
    if trace.keys is not None or method.seeded:
        keys = list(picture_keys(stacks, trace))
    parts = [kept[batch.first[p] :][: grid.tiles] for p, grid in enumerate(grids)]
    return [
        whole(batch, p, part, reduced[p], keys[p])  # the tiles of each picture
        for p, part in enumerate(parts)
    ]


def whole(
    batch: TiledBatch, picture: int, kept: list[Kept], reduced: bool, key: str | None
) -> Picture:
    """A picture of what its tiles keep, tile by tile."""
    grid, n = batch.grids[picture], batch.side**2
    counts = [tile.ids.shape[0] for tile in kept]
    first = [sum(counts[:t]) for t in range(len(counts))]
    identity = torch.cat([tile.ids + t * n for t, tile in enumerate(kept)])
    stage = None
    if reduced:
        target = [
            torch.where(k.target < 0, -1, k.target + f) for k, f in zip(kept, first, strict=True)
        ]
        came = torch.arange(grid.unpruned, device=identity.device)
        flags = torch.cat([tile.contextual for tile in kept])
        stage = StageTrace(batch.method.before, None, 0, came, identity, torch.cat(target), flags)
    scores = [tile.score for tile in kept]
    features, alone = torch.cat([tile.features for tile in kept]), grid.tiles == 1
    return Picture(
        grid.unpruned,
        sum(counts),
        identity,
        identity,
        torch.cat([tile.sizes for tile in kept]),
        features,
        stage,
        key,
        features=features,
        pixels=batch.tiles[picture][0] if alone else None,
        score=None if any(s is None for s in scores) else torch.cat(scores),  # type: ignore[arg-type]
        grid=None if alone else grid,
        share=batch.method.inside_part.tiles.share_of(grid, batch.geometry.num_patches),
        tiles=grid.tiles,
        projected=grid.unpruned,
    )
