"""The modified encoder for any-resolution pictures: vision tower over all tiles, a reduction per
tile, projector, and each picture packed as the model packs it.

What a method sees is an `EncoderView` or `ProjectedView` whose G are tiles that hold equally many
tokens and share a budget; it knows nothing of grids, padding and newlines.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visiondrop.adapters.base import TowerOutput, first_projections, following_projections
from visiondrop.encoder import Encoded, Encoding, one_each, picture_keys
from visiondrop.merging import Reduction, gather, per_picture
from visiondrop.reducer import Reducer
from visiondrop.tile_packing import Kept, TiledBatch, pack_picture
from visiondrop.tiles import PictureChoice, tile_budgets
from visiondrop.transfer import to_device
from visiondrop.views import EncoderView, ProjectedView

__all__ = ["encode_tiles"]


def encode_tiles(
    model: nn.Module,
    adapter: Any,
    encoding: Encoding,
    pixel_values: Tensor,
    image_sizes: Any,
    **kwargs: Any,
) -> Encoded:
    """Encode any-resolution pictures, reduce, project, pack.

    Args:
        pixel_values, image_sizes: as the model takes them, see the adapter's `tiles`.
    """
    geometry, method, trace = encoding.geometry, encoding.method, encoding.trace
    stacks, grids = adapter.tiles(model, pixel_values, image_sizes)
    batch = TiledBatch(stacks, grids, method, geometry, trace, encoding.portions)
    pixels = torch.cat(stacks)
    run = functools.partial(adapter.encode, model, **kwargs)
    if trace.pictures is None:
        tower = run(pixels)
    else:
        names = one_each(trace.pictures, len(stacks), "picture names", "trace.set_pictures")
        own = [f"{names[p]}/{t - batch.first[p]}" for t, p in enumerate(batch.owner)]
        tower = trace.towers.encode(own, pixels, run)

    place = method.before if method.before_llm else None
    project = functools.partial(adapter.project, model)

    def view_of(tiles: Sequence[int], tokens: Tensor | None) -> EncoderView:
        """Tiles as a method sees them, `tokens` [G, n] of each (None: all)."""
        index = to_device(torch.tensor(tiles), tower.features.device)

        def cut(heads: Tensor) -> Tensor:
            own = heads[index]
            return own if tokens is None else gather(own.transpose(1, 2), tokens).transpose(1, 2)

        def following() -> tuple[Tensor, Tensor]:
            module, layers = adapter.tower(model, **kwargs)
            query, key = following_projections(module, layers, tower.features[index])
            if tokens is None:
                return query, key
            query, key = (gather(t.transpose(1, 2), tokens) for t in (query, key))
            return query.transpose(1, 2), key.transpose(1, 2)

        def first() -> tuple[Tensor, Tensor]:
            return first_projections(adapter.tower(model, **kwargs)[0], pixels[index])

        whole = tower.features[index]
        return EncoderView(
            whole if tokens is None else gather(whole, tokens),
            cut(tower.query),
            cut(tower.key),
            tower.scale,
            geometry.has_cls,
            geometry.grid,
            make_keys=lambda: batch.keys(tiles),
            make_following=following,
            pixels=pixels[index],
            make_questions=lambda: batch.questions(tiles),
            make_first=first,
        )

    kept, choices, reduced = reduce_tiles(batch, tower, place, project, view_of)
    embeddings = [tile.features for tile in kept]
    if place != "projected":
        joined = project(torch.cat(embeddings)[None])[0]
        embeddings = list(joined.split([tile.ids.shape[0] for tile in kept]))
    keys: list[str | None] = [None] * len(stacks)
    if trace.keys is not None or method.seeded:
        keys = list(picture_keys(stacks, trace))
    out, pictures = [], []
    for p, tiles in enumerate(map(batch.of, range(len(grids)))):
        of = slice(tiles.start, tiles.stop)
        chosen = choices[p], reduced[p], keys[p]
        rows, picture = pack_picture(
            batch, p, kept[of], embeddings[of], adapter.newline(model), *chosen
        )
        out.append(rows)
        pictures.append(picture)
    return Encoded(pooler_output=out, pictures=pictures)  # type: ignore[arg-type]


ViewOf = Callable[[Sequence[int], Tensor | None], EncoderView]


def reduce_tiles(
    batch: TiledBatch,
    tower: TowerOutput,
    place: str | None,
    project: Callable[[Tensor], Tensor],
    view_of: ViewOf,
) -> tuple[list[Kept], list[PictureChoice | None], list[bool]]:
    """What each tile keeps, what methods chose that decide by picture, and whether each picture was
    reduced.
    """
    part, count = batch.method.before_part, len(batch.grids)
    kept: list[Kept | None] = [None] * len(batch.owner)
    choices: list[PictureChoice | None] = [None] * count
    reduced = [False] * count
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    together = part.picture_stage.__func__ is not Reducer.picture_stage  # type: ignore[attr-defined]
    for p, grid in enumerate(batch.grids) if place is not None else ():
        if together:
            view = view_of(list(batch.of(p)), None)
            choices[p] = batch.counted(p).picture_stage(view, grid, part.tiles)
        reduced[p] = choices[p] is not None or plan(batch, p, part, view_of, groups)
    for p, choice in enumerate(choices):
        for tile, reduction in zip(batch.of(p), choice.tiles if choice else (), strict=False):
            every = torch.arange(tower.features.shape[1], device=tower.features.device)
            kept[tile] = keep(batch, reduction, every)
    for (rectangle, budget, share), tiles in groups.items():
        tokens = tokens_of(rectangle, batch.side, batch.cls, tower.features.device)
        method = part.scaled(share)
        method = method if budget is None else method.with_entry(budget)
        r0, r1, c0, c1 = rectangle
        whole = tokens.shape[0] == tower.features.shape[1]
        view = view_of(tiles, None if whole else tokens.expand(len(tiles), -1))
        view.grid = (r1 - r0, c1 - c0)
        if place == "encoder":
            reductions = method.encoder_stage(view)
        else:
            reductions = method.projected_stage(ProjectedView(project(view.patches), view))
            tokens = tokens[batch.cls :]
        for tile, own in zip(tiles, per_picture(reductions, len(tiles)), strict=True):
            if own is not None:
                made = kept[tile] = keep(batch, own, tokens)
                if place == "projected":
                    made.projected = tokens.shape[0]
    given = {tile for tiles in groups.values() for tile in tiles}
    for tile in (t for t, done in enumerate(kept) if done is None):
        nothing = reduced[batch.owner[tile]] and tile not in given
        kept[tile] = whole_tile(batch, tower, tile, place, project, nothing)
    return kept, choices, reduced  # type: ignore[return-value]


def plan(
    batch: TiledBatch,
    picture: int,
    part: Reducer,
    view_of: ViewOf,
    groups: dict[tuple[Any, ...], list[int]],
) -> bool:
    """Put the tiles of a picture into groups (rectangle seen, budget, share); false where its
    budget leaves it whole.
    """
    tiles, grid, own = part.tiles, batch.grids[picture], batch.of(picture)
    share = tiles.share_of(grid, batch.geometry.num_patches)
    total = batch.counted(picture).entry_tokens()
    rectangles = [batch.rectangle(tile, tiles) for tile in own]
    sizes = [(r1 - r0) * (c1 - c0) for r0, r1, c0, c1 in rectangles]
    budgets: list[int | None] = [None] * len(own)
    if total is not None:
        extra = int(part.counts_cls and batch.geometry.has_cls)
        room = [size + extra * bool(size) for size in sizes]
        if total > sum(room):
            return False
        weights = [1.0] * len(own)
        if tiles.share == "importance":
            weights = grid.importance(view_of([own[grid.overview]], None).saliency[0]).tolist()
        budgets = list(tile_budgets(total, weights, room))
    for tile, rectangle, size, budget in zip(own, rectangles, sizes, budgets, strict=True):
        if size and budget != 0:
            groups[rectangle, budget, share].append(tile)
    return True


def tokens_of(
    rectangle: tuple[int, int, int, int], side: int, cls: int, device: torch.device
) -> Tensor:
    """[n], the tower's tokens in a part of a tile, CLS first."""
    r0, r1, c0, c1 = rectangle
    patches = torch.arange(side * side, device=device).view(side, side)[r0:r1, c0:c1].flatten()
    return torch.cat([torch.arange(cls, device=device), patches + cls])


def keep(batch: TiledBatch, reduction: Reduction, tokens: Tensor) -> Kept:
    """A tile's reduction (G = 1) of its `tokens` [n], in the tile's own numbers."""
    target = torch.full((batch.cls + batch.side**2,), -1, device=tokens.device)
    target[tokens] = reduction.target[0]
    return Kept(
        reduction.features[0],
        tokens[reduction.source[0]] - batch.cls,
        reduction.sizes[0],
        reduction.contextual[0],
        target,
        None if reduction.score is None else reduction.score[0],
        reduction.features.shape[1],
    )


def whole_tile(
    batch: TiledBatch,
    tower: TowerOutput,
    tile: int,
    place: str | None,
    project: Callable[[Tensor], Tensor],
    nothing: bool,
) -> Kept:
    """A tile of which all patches enter the decoder, or nothing does."""
    features = tower.features[tile]
    ids = torch.arange(0 if nothing else batch.side**2, device=features.device)
    own = features[ids + batch.cls]
    target = torch.full((batch.cls + batch.side**2,), -1, device=ids.device)
    target[ids + batch.cls] = ids
    own = project(own) if place == "projected" else own
    return Kept(own, ids, torch.ones_like(ids), ids < 0, target, None, len(ids))
