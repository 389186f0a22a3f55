"""Any-resolution pictures after their tiles were reduced: token ids, order, newlines, record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.encoder import Picture, picture_keys, picture_questions
from visiondrop.functional.anyres_layout import NEWLINE, TileGrid, assemble, picture_order
from visiondrop.pictures import Portion
from visiondrop.reducer import Reducer
from visiondrop.tiles import PictureChoice, Tiles
from visiondrop.trace import StageTrace, Trace
from visiondrop.transfer import to_device

__all__ = ["Kept", "TiledBatch", "pack_picture"]


@dataclass
class Kept:
    """What one tile keeps, m tokens.

    Attributes:
        features: [m, D]; ids: [m], patch of each in its tile, -1 for CLS; sizes, contextual: [m].
        target: [T], the kept token that each of the tower's tokens went into, -1 where dropped.
        score: [m] or None.
        projected: tokens that passed the projector, before or after the reduction.
    """

    features: Tensor
    ids: Tensor
    sizes: Tensor
    contextual: Tensor
    target: Tensor
    score: Tensor | None
    projected: int


@dataclass
class TiledBatch:
    """The pictures of a batch, their tiles one after the other.

    Attributes:
        tiles: pixel values of each picture, [T, 3, h, w]; grids: how its crops lie.
        first: index of each picture's first tile.
        portions: of each picture, see `encoder.Encoding`.
    """

    tiles: list[Tensor]
    grids: list[TileGrid]
    method: Reducer
    geometry: Geometry
    trace: Trace
    portions: tuple[Portion | None, ...] | None = None

    def __post_init__(self) -> None:
        counts = [grid.tiles for grid in self.grids]
        self.first = [sum(counts[:i]) for i in range(len(counts))]
        self.owner = [i for i, count in enumerate(counts) for _ in range(count)]
        self.cls = int(self.geometry.has_cls)
        self.side = self.geometry.grid[0]

    def counted(self, picture: int) -> Reducer:
        """The part before the LLM with the counts that it has for a picture."""
        part = self.method.before_part
        portion = None if self.portions is None else self.portions[picture]
        if portion is not None:
            return part.counted(portion)
        share = part.tiles.share_of(self.grids[picture], self.geometry.num_patches)
        return part.scaled(share)

    def of(self, picture: int) -> range:
        """Its tiles."""
        return range(self.first[picture], self.first[picture] + self.grids[picture].tiles)

    def rectangle(self, tile: int, tiles: Tiles) -> tuple[int, int, int, int]:
        """The part of a tile that methods see."""
        grid, own = self.grids[self.owner[tile]], tile - self.first[self.owner[tile]]
        return grid.shown(own) if tiles.padding == "hidden" else (0, self.side, 0, self.side)

    def keys(self, tiles: Sequence[int]) -> list[str]:
        """A key of each tile: its picture's, and its number in it."""
        keys = picture_keys(self.tiles, self.trace)
        return [f"{keys[self.owner[t]]}/{t - self.first[self.owner[t]]}" for t in tiles]

    def questions(self, tiles: Sequence[int]) -> list[str]:
        """The question on each tile's picture."""
        questions = picture_questions(self.tiles, self.trace)
        return [questions[self.owner[t]] for t in tiles]


def pack_picture(
    batch: TiledBatch,
    picture: int,
    kept: list[Kept],
    tokens: list[Tensor],
    newline: Tensor,
    choice: PictureChoice | None,
    reduced: bool,
    key: str | None,
) -> tuple[Tensor, Picture]:
    """[rows, D'], the feature rows of one picture, and what they mean.

    Args:
        kept, tokens: what each tile keeps, and its decoder embeddings.
        newline: [D'].
        choice: of a method that decides by picture; reduced: whether any stage acted.
    """
    part, inside = batch.method.before_part, batch.method.inside_part
    device, grid, newline = tokens[0].device, batch.grids[picture], newline.to(tokens[0])
    # One copy to the host; all the rest is arranged there.
    ids, flags = torch.stack(
        [torch.cat([k.ids for k in kept]), torch.cat([k.contextual for k in kept]).long()]
    ).cpu()
    counts = [tile.ids.shape[0] for tile in kept]
    behind = [f.bool() & (not part.in_place) for f in flags.split(counts)]
    if choice is not None and choice.finish is not None:
        tokens, newline = choice.finish(tokens, newline)
    if choice is not None and choice.order is not None:
        order = choice.order.cpu()
    else:
        rule = part.tiles if reduced else Tiles(newlines="pool")
        order = picture_order(
            ids.split(counts),
            behind,
            grid,
            unpad=rule.padding != "shown",
            newlines={"row": "kept", "none": "none", "pool": "window"}[rule.newlines],  # type: ignore[arg-type]
        )
    embeddings = assemble(to_device(order, device), tokens, newline)

    tile, slot = order.unbind(1)
    is_newline = tile == NEWLINE
    patches, total = batch.side**2, len(order)
    flat = torch.tensor([sum(counts[:t]) for t in range(len(counts))])[tile.clamp(min=0)] + slot
    flat = flat.masked_fill(is_newline, 0)
    patch = ids[flat]
    identity = torch.where(patch < 0, -1 - tile, tile * patches + patch)
    identity = torch.where(is_newline, grid.first_newline + slot, identity)

    def ordered(parts: list[Tensor], fill: int) -> Tensor:
        values = torch.cat(parts)[to_device(flat, device)]
        return values.masked_fill(to_device(is_newline, device), fill)

    rows = grid.unpruned
    out = embeddings.new_full((rows, embeddings.shape[-1]), float("nan"))
    out[: min(total, rows)] = embeddings[:rows]
    info = Picture(
        rows,
        total,
        to_device(identity, device),
        to_device(grid.slots(identity), device),
        ordered([k.sizes for k in kept], 1),
        embeddings[rows:] if total > rows else None,
        None,
        key,
        grid=grid,
        share=inside.tiles.share_of(grid, batch.geometry.num_patches),
        tiles=grid.tiles,
        projected=sum(k.projected for k in kept),
    )
    if inside.tiles.newlines != "pool":
        info.newlines = is_newline.numpy()
    scores = [k.score for k in kept]
    if all(score is not None for score in scores):
        info.score = ordered(scores, 0)  # type: ignore[arg-type]
    if reduced:
        info.stage = record(batch, kept, counts, order, identity, ordered, grid)
    return out, info


def record(
    batch: TiledBatch,
    kept: list[Kept],
    counts: list[int],
    order: Tensor,
    identity: Tensor,
    ordered: Callable[[list[Tensor], int], Tensor],
    grid: TileGrid,
) -> StageTrace:
    """The stage before the LLM in token ids: what came in is every token of every tile, CLS first,
    and the newlines.
    """
    cls, patches = batch.cls, batch.side**2
    tile, slot = order.unbind(1)
    is_newline = tile == NEWLINE
    r0, r1, _, _ = grid.window
    lines = torch.arange(r0, r1 if grid.lined else r0)
    if is_newline.any():
        lines = torch.cat([lines, slot[is_newline]]).unique()
    came = [
        torch.cat([torch.full((cls,), -1 - t), torch.arange(t * patches, (t + 1) * patches)])
        for t in range(grid.tiles)
    ]
    ids = torch.cat([*came, grid.first_newline + lines])
    where = {int(token): i for i, token in enumerate(ids.tolist())}
    source = torch.tensor([where[token] for token in identity.tolist()])
    # Where each tile's kept token stands in the packed picture; -1 where it was lost as padding.
    first = torch.tensor([sum(counts[:t]) for t in range(len(counts))])
    packed = torch.full((sum(counts) + 1,), -1)
    places = torch.arange(len(order))
    packed[(first[tile.clamp(min=0)] + slot)[~is_newline]] = places[~is_newline]
    went = torch.cat(
        [
            torch.where(k.target < 0, sum(counts), k.target + int(start))
            for k, start in zip(kept, first, strict=True)
        ]
    ).cpu()
    line_place = torch.full((len(lines),), -1)
    line_place[torch.searchsorted(lines, slot[is_newline])] = places[is_newline]
    device = kept[0].ids.device
    return StageTrace(
        batch.method.before,
        None,
        0,
        to_device(ids, device),
        to_device(source, device),
        to_device(torch.cat([packed[went], line_place]), device),
        ordered([k.contextual for k in kept], 0),
    )
