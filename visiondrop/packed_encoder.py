"""The modified encoder for models that pack pictures and videos before anything can be dropped
(LLaVA-OneVision): vision tower, projector, packing, one reduction of what the LLM would see.

Where a grid of crops was shrunk, a token is interpolated from several patches, so that no patch can
be kept or dropped any more. One rule for all pictures, shrunk or not: the reduction acts on the
packed tokens, newlines left out. All tokens of a picture, base tile and grid, compete with each
other; what the vision tower says of patches (attention, after the softmax; keys) is packed the very
way the features are, by the model's own function. Of a video the frames are reduced one by one, as
`frame_encoder` has it, on the tokens that pooling leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visiondrop.adapters.base import Adapter, Geometry, TowerOutput
from visiondrop.encoder import Encoded, Encoding, Picture, one_each, picture_keys, picture_questions
from visiondrop.frame_encoder import reduce_frames
from visiondrop.functional.frame_layout import FrameGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.layout import Segment
from visiondrop.merged_tokens import MergedView
from visiondrop.merging import Reduction, concatenate, keep_all, keep_only, per_picture
from visiondrop.newlines import restore
from visiondrop.trace import StageTrace
from visiondrop.transfer import to_device
from visiondrop.views import EncoderView, ProjectedView

__all__ = ["PackedView", "encode_packed", "encode_pooled"]

Pack = Callable[[int, Tensor, Tensor], Tensor]
"""(picture, values of its tiles [T, p, C], newline [C]) -> [rows, C], as the model packs them."""


class PackedView(MergedView):
    """G pictures or frames of n tokens each, packed or pooled from patches; see `MergedView`.

    Args:
        features: [G, n, D'], decoder embeddings.
        patches: the tower's view of the tiles, patch by patch.
        pool: [T, p, C] of the tiles' patches to [G, n, C] of tokens.
        grid: (rows, columns) of tokens, where they are one grid.
    """

    def __init__(
        self,
        features: Tensor,
        patches: EncoderView,
        pool: Callable[[Tensor], Tensor],
        grid: tuple[int, int],
    ) -> None:
        super().__init__(features, patches, torch.empty(0, 0), grid)
        self.pool = pool

    def _none_of_tokens(self, what: str) -> Any:
        raise ValueError(
            f"{what} asked for, but this model interpolates its visual tokens from patches; "
            "saliency, patch_attention and key are there for tokens"
        )

    @property
    def key(self) -> Tensor:  # type: ignore[override]
        """[G, H, n, d], the tower's keys, packed."""
        key = self.tower.key
        packed = self.pool(key.transpose(1, 2).flatten(2))
        return packed.unflatten(-1, (key.shape[1], -1)).transpose(1, 2)

    @property
    def patch_attention(self) -> Tensor:  # type: ignore[override]
        """[G, n], the mean of all patches' attention within their tile, packed."""
        return self.pool(self.tower.patch_attention[..., None])[..., 0]

    saliency = patch_attention  # type: ignore[assignment]


def run_tower(
    model: nn.Module,
    adapter: Adapter,
    encoding: Encoding,
    stacks: Sequence[Tensor],
    what: str,
    **kwargs: Any,
) -> TowerOutput:
    """The tower's output for the tiles or frames of all `stacks` [T, 3, h, w]."""
    trace, pixels = encoding.trace, torch.cat(list(stacks))

    def run(some: Tensor) -> TowerOutput:
        return adapter.encode(model, some, **kwargs)

    if trace.pictures is None:
        return run(pixels)
    names = one_each(trace.pictures, len(stacks), f"{what} names", "trace.set_pictures")
    labels = [
        f"{what} {name}/{t}"
        for name, stack in zip(names, stacks, strict=True)
        for t in range(len(stack))
    ]
    return trace.towers.encode(labels, pixels, run)


def tower_view(
    geometry: Geometry,
    tower: TowerOutput,
    index: Tensor,
    keys: Callable[[], list[str]],
    questions: Callable[[], list[str]],
) -> EncoderView:
    """Tiles or frames `index` patch by patch, with the names of what they make up."""
    return EncoderView(
        tower.features[index],
        tower.query[index],
        tower.key[index],
        tower.scale,
        False,
        geometry.grid,
        make_keys=keys,
        make_questions=questions,
    )


def encode_packed(
    model: nn.Module,
    adapter: Any,
    encoding: Encoding,
    stacks: list[Tensor],
    pack: Pack,
    **kwargs: Any,
) -> Encoded:
    """Encode pictures, project, pack, reduce.

    Args:
        stacks: the tiles [T, 3, h, w] of each picture, the base first; a single tile has no crops.
        kwargs: for the adapter's `encode`.
    """
    geometry, method, trace = encoding.geometry, encoding.method, encoding.trace
    tower = run_tower(model, adapter, encoding, stacks, "picture", **kwargs)
    embeddings, newline = adapter.project(model, tower.features), adapter.newline(model)
    counts = [len(stack) for stack in stacks]
    split, index = embeddings.split(counts), torch.arange(sum(counts)).split(counts)
    keys = keys_of(encoding, stacks)
    out, pictures = [], []
    for p, tiles in enumerate(split):
        run = pack(p, tiles, newline)
        lined = pack(p, tiles.new_zeros(*tiles.shape[:2], 1), tiles.new_full((1,), torch.inf))
        newlines = lined[:, 0].isinf().cpu().numpy()
        grid = grid_of(tiles, newlines, geometry.grid[0])

        def view_of(seen: Tensor, p: int = p, run: Tensor = run) -> PackedView:
            def pool(values: Tensor) -> Tensor:
                return pack(p, values, values.new_zeros(values.shape[-1]))[seen][None]

            names = lambda: [picture_keys(stacks, trace)[p]]  # noqa: E731
            asked = lambda: [picture_questions(stacks, trace)[p]]  # noqa: E731
            patches = tower_view(geometry, tower, index[p].to(run.device), names, asked)
            return PackedView(run[seen][None], patches, pool, (1, len(seen)))

        whole = None
        if method.before_llm and method.before != "prompt":
            whole, newlines = reduce_packed(encoding, run, grid, newlines, view_of)
        rows, info = finish(encoding, run, grid, newlines, whole, keys[p], tiles[..., 0].numel())
        out.append(rows)
        pictures.append(info)
    return Encoded(pooler_output=out, pictures=pictures)  # type: ignore[arg-type]


def grid_of(tiles: Tensor, newlines: np.ndarray, side: int) -> PackedGrid | FrameGrid:
    """What the packed tokens of a picture mean, of which `newlines` [rows] are newlines."""
    if len(tiles) == 1:
        return FrameGrid(1, side, newline=True)
    rows = int(newlines.sum())
    return PackedGrid(side, rows, (len(newlines) - side**2) // rows - 1, len(tiles))


def reduce_packed(
    encoding: Encoding,
    run: Tensor,
    grid: PackedGrid | FrameGrid,
    newlines: np.ndarray,
    view_of: Callable[[Tensor], PackedView],
) -> tuple[Reduction | None, np.ndarray]:
    """The reduction (G = 1) of a picture's unpruned rows `run` [rows, D'], and which of the tokens
    that are left are newlines; None where the budget leaves it whole.

    Args:
        view_of: what a method sees of the rows of given places.
    """
    part, device = encoding.method.before_part, run.device
    share = part.tiles.share_of_parts(grid.tiles, grid.first_newline, encoding.geometry.num_patches)
    acting = part.scaled(share)
    total = acting.entry_tokens()
    if total is not None and total > grid.first_newline:
        return None, newlines
    view = view_of(to_device(torch.from_numpy(np.flatnonzero(~newlines)), device))
    if acting.before == "encoder":
        made = acting.encoder_stage(view)
    else:
        made = acting.projected_stage(ProjectedView(view.features, view))
    reduction = per_picture(made, 1)[0]
    if reduction is None:
        return None, newlines
    ones = torch.ones(len(run), dtype=torch.long, device=device)
    ids, seen = to_device(grid.ids, device), grid.first_newline
    segment = Segment(0, len(run), 0, ids, ones, None, seen, grid=grid, newlines=newlines)
    return restore(segment, reduction, run, part.tiles.newlines, part.in_place)


def encode_pooled(
    model: nn.Module,
    adapter: Any,
    encoding: Encoding,
    videos: Tensor,
    pool: Callable[[Tensor], Tensor],
    **kwargs: Any,
) -> Encoded:
    """Encode videos [B, F, 3, h, w], project, pool each frame, reduce.

    Args:
        pool: values of the frames' patches [F, p, C] to those of tokens [F, n, C].
    """
    geometry, method, trace = encoding.geometry, encoding.method, encoding.trace
    batch, frames = videos.shape[:2]
    tower = run_tower(model, adapter, encoding, list(videos), "video", **kwargs)
    pooled, newline = pool(adapter.project(model, tower.features)), adapter.newline(model)
    n, side, patches = pooled.shape[1], round(pooled.shape[1] ** 0.5), tower.features.shape[1]
    grid = FrameGrid(frames, side, newline=True)

    def view_of(index: list[int]) -> PackedView:
        which = to_device(torch.tensor(index), pooled.device)
        names = lambda: [f"{picture_keys(videos, trace)[i // frames]}/{i % frames}" for i in index]  # noqa: E731
        asked = lambda: [picture_questions(videos, trace)[i // frames] for i in index]  # noqa: E731
        patches = tower_view(geometry, tower, which, names, asked)
        return PackedView(pooled[which], patches, pool, (side, side))

    made: dict[int, Reduction | None] = dict.fromkeys(range(batch * frames))
    part = method.before_part
    if method.before_llm and method.before != "prompt":
        share = part.tiles.share_of_parts(frames, frames * n, geometry.num_patches)
        one = replace(geometry, num_patches=n, grid=(side, side))
        made = reduce_frames(part.scaled(share), one, view_of, lambda x: x, batch * frames, frames)
    keys = keys_of(encoding, videos)
    flags = np.arange(grid.unpruned) == grid.first_newline
    out, pictures = [], []
    for b in range(batch):
        own, whole, lines = range(b * frames, (b + 1) * frames), None, flags
        run = torch.cat([pooled[own.start : own.stop].flatten(0, 1), newline.to(pooled)[None]])
        if any(made[i] is not None for i in own):
            ones = torch.ones(1, n, dtype=torch.long, device=run.device)
            parts = [made[i] or keep_all(pooled[i : i + 1], ones) for i in own]
            # Merged tokens stay with their frame, so the newline comes behind them, too.
            stays = torch.arange(int(part.tiles.newlines != "none"), device=run.device)
            whole = concatenate([*parts, keep_only(run[None, -1:], ones[:, :1], stays[None])])
            lines = np.arange(whole.source.shape[1]) == sum(p.source.shape[1] for p in parts)
        rows, info = finish(encoding, run, grid, lines, whole, keys[b], frames * patches)
        if method.before == "prompt":
            info.features, info.pixels = run, videos[b]
        out.append(rows)
        pictures.append(info)
    return Encoded(pooler_output=torch.stack(out), pictures=pictures)


def keys_of(encoding: Encoding, pixels: Sequence[Tensor] | Tensor) -> list[str | None]:
    """The key of each picture or video, where one is asked for."""
    if encoding.trace.keys is None and not encoding.method.seeded:
        return [None] * len(pixels)
    return list(picture_keys(pixels, encoding.trace))


def finish(
    encoding: Encoding,
    run: Tensor,
    grid: PackedGrid | FrameGrid,
    newlines: np.ndarray,
    reduction: Reduction | None,
    key: str | None,
    projected: int,
) -> tuple[Tensor, Picture]:
    """The feature rows of one picture or video, and what they mean.

    Args:
        run: [rows, D'], the unpruned rows; reduction: of all of them (G = 1), None leaves all.
        newlines: [tokens] bool, which of the tokens that are left are newlines.
        projected: patches that passed the projector.
    """
    method, rows, inside = encoding.method, run.shape[0], encoding.method.inside_part
    ids, ones = grid.ids.to(run.device), torch.ones(rows, dtype=torch.long, device=run.device)
    share = inside.tiles.share_of_parts(
        grid.tiles, grid.first_newline, encoding.geometry.num_patches
    )
    place = torch.arange(rows, device=run.device)
    info = Picture(rows, rows, ids, place, ones, None, None, key, grid=grid, share=share)
    info.tiles, info.projected, out = grid.tiles, projected, run
    if reduction is not None:
        source = reduction.source[0]
        info.tokens, info.sizes, info.slot = source.shape[0], reduction.sizes[0], source
        info.identity = ids[source]
        info.score = None if reduction.score is None else reduction.score[0]
        went = reduction.target[0], reduction.contextual[0]
        info.stage = StageTrace(method.before, None, 0, ids, source, *went)
        out = torch.full_like(run, float("nan"))
        out[: info.tokens] = reduction.features[0].to(out.dtype)
    if inside.tiles.newlines != "pool":
        info.newlines = newlines
    return out, info
