"""The order in which the tokens of an any-resolution picture enter the LLM, as pure functions.

Tile 0 is the thumbnail, tiles 1.. are the crops, row by row. The crops' tokens form one grid of
tokens (48 x 48 for 2 x 2 crops of 24 x 24), which is read in rows; a picture's packed sequence is
the thumbnail's tokens, then those rows, each row closed by an `image_newline` where the packing has
newlines. A sequence is written as [M, 2] pairs (tile, slot): slot s is the s-th token that the tile
kept; (NEWLINE, r) closes row r of the whole, padded grid.

Token ids (`TileGrid.locate`): patch p of tile t is t * n + p with n patches a tile, the CLS of tile
t is -1 - t, and the newline of row r is T * n + r with T tiles.

Source: LLaVA's `spatial` and `spatial_unpad` packing (LLaVA-NeXT), released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "NEWLINE",
    "Newlines",
    "TileGrid",
    "assemble",
    "picture_order",
    "row_order",
    "tile_order",
]

Newlines = Literal["none", "kept", "window", "grid"]

NEWLINE = -1
"""Stands for a tile where an `image_newline` is meant."""


@dataclass(frozen=True)
class TileGrid:
    """How the crops of one picture lie.

    Attributes:
        rows, columns: of crops.
        original: (width, height) of the picture in pixels.
        side: tokens along a side of a tile.
        merge: how the unpruned model puts tiles together: the crops row by row, without padding and
            with newlines ("spatial_unpad"), with padding and without newlines ("spatial"), or one
            tile after the other ("flat").
    """

    rows: int
    columns: int
    original: tuple[int, int]
    side: int = 24
    merge: Literal["spatial_unpad", "spatial", "flat"] = "spatial_unpad"

    @property
    def crops(self) -> int:
        """Tiles without the thumbnail."""
        return self.rows * self.columns

    @property
    def tiles(self) -> int:
        """Tiles, thumbnail included."""
        return 1 + self.crops

    @property
    def overview(self) -> int:
        """The tile that shows the whole picture."""
        return 0

    @property
    def tokens(self) -> tuple[int, int]:
        """(rows, columns) of the token grid, padding included."""
        return self.rows * self.side, self.columns * self.side

    @property
    def lined(self) -> bool:
        """Whether rows are closed by newlines."""
        return self.merge == "spatial_unpad"

    @property
    def unpruned(self) -> int:
        """Tokens of the picture in the unpruned model, newlines included."""
        r0, r1, c0, c1 = self.window
        return self.side**2 + (r1 - r0) * (c1 - c0 + self.lined)

    @property
    def patches(self) -> int:
        """Tokens of the picture in the unpruned model, without newlines."""
        top, bottom, _, _ = self.window
        return self.unpruned - (bottom - top) * self.lined

    @property
    def first_newline(self) -> int:
        """Token id of the newline of row 0; ids from here on are newlines."""
        return self.tiles * self.side**2

    @property
    def content(self) -> tuple[int, int, int, int]:
        """(first row, end, first column, end) of the token grid without padding.

        Where the padding is odd, one padded row or column stays, as in LLaVA.
        """
        (rows, columns), (width, height) = self.tokens, self.original
        # Rounded as transformers does, where int() alone would lose a row to 20.999999999.
        if width / height > columns / rows:
            cut = (rows - int(round(height * (columns / width), 7))) // 2
            return cut, rows - cut, 0, columns
        cut = (columns - int(round(width * (rows / height), 7))) // 2
        return 0, rows, cut, columns - cut

    @property
    def window(self) -> tuple[int, int, int, int]:
        """The part of the token grid that the unpruned model sees, as `content`, which it is where
        padding is cut away.
        """
        return (
            self.content
            if self.merge == "spatial_unpad"
            else (0, self.tokens[0], 0, self.tokens[1])
        )

    def row_of(self, ids: Tensor) -> Tensor:
        """Row of the token grid of each crop's patch and of each newline; -1 for all others."""
        patches, tile = self.side**2, ids // self.side**2
        row = (tile - 1) // self.columns * self.side + ids % patches // self.side
        row = torch.where(ids >= self.first_newline, ids - self.first_newline, row)
        return torch.where(tile >= 1, row, -1)

    def slots(self, ids: Tensor) -> Tensor:
        """Place of each token id in the unpruned sequence; what has none there (CLS, padding) takes
        that of the nearest cell of its tile or of the grid.
        """
        r0, r1, c0, c1 = self.window
        patches, width = self.side**2, c1 - c0 + self.lined
        tile = torch.where(ids < 0, -1 - ids, ids // patches)
        patch = torch.where(ids < 0, 0, ids % patches)
        if self.merge == "flat":
            return tile * patches + patch
        row = (tile - 1) // self.columns * self.side + patch // self.side
        column = (tile - 1) % self.columns * self.side + patch % self.side
        newline = ids >= self.first_newline
        row = torch.where(newline, ids - self.first_newline, row).clamp(r0, r1 - 1) - r0
        column = torch.where(newline, c1, column.clamp(c0, c1 - 1)) - c0
        return torch.where(tile == 0, patch, patches + row * width + column)

    def locate(self, token: int) -> tuple[str, int, int, int]:
        """What a token id means: ("patch", tile, row, column) with row and column within the tile,
        ("cls", tile, -1, -1), or ("newline", -1, row of the token grid, -1).
        """
        if token < 0:
            return "cls", -1 - token, -1, -1
        if token >= self.first_newline:
            return "newline", -1, token - self.first_newline, -1
        tile, patch = divmod(token, self.side**2)
        return "patch", tile, *divmod(patch, self.side)  # type: ignore[return-value]

    def box(self, token: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what a patch shows, in pixels of the original picture.

        The thumbnail is the whole picture squeezed into a square; the crops are cut from the
        picture in the middle of a padded canvas, so that a patch may lie outside of it.
        """
        kind, tile, row, column = self.locate(token)
        if kind != "patch":
            raise ValueError(f"token {token} is a {kind}; only patches show a part of the picture")
        width, height = self.original
        if tile == self.overview:
            x, y = width / self.side, height / self.side
            return column * x, row * y, (column + 1) * x, (row + 1) * y
        crop = tile if tile < self.overview else tile - 1
        rows, columns = self.tokens
        # Original pixels a patch, and patches of padding above or beside the picture.
        size = max(width / columns, height / rows)
        above, beside = (rows - height / size) / 2, (columns - width / size) / 2
        row += crop // self.columns * self.side
        column += crop % self.columns * self.side
        left, top = (column - beside) * size, (row - above) * size
        return left, top, left + size, top + size

    def shown(self, tile: int) -> tuple[int, int, int, int]:
        """The part of a tile that the unpruned model sees: (first row, end, first column, end)."""
        whole = tile == 0 or self.merge != "spatial_unpad"
        return (0, self.side, 0, self.side) if whole else self.valid(tile - 1)

    def importance(self, thumbnail: Tensor) -> Tensor:
        """What the thumbnail's values [side * side] say of each tile, [T], sums to 1.

        The thumbnail shows the picture without padding: its values are stretched over the unpadded
        token grid and summed where each crop shows it. The thumbnail itself counts as much as the
        crops do on average.
        """
        r0, r1, c0, c1 = self.content
        values = thumbnail.view(1, 1, self.side, self.side).double()
        stretched = torch.nn.functional.interpolate(
            values, (r1 - r0, c1 - c0), mode="bilinear", align_corners=False
        )[0, 0]
        whole = stretched.new_zeros(self.tokens)
        whole[r0:r1, c0:c1] = stretched
        parts = whole.view(self.rows, self.side, self.columns, self.side).sum((1, 3)).flatten()
        return torch.cat([parts.mean()[None], parts]) / (parts.sum() + parts.mean())

    def crop_sums(self, thumbnail: Tensor) -> Tensor:
        """Sum of the thumbnail's values [side * side] over the part that each crop shows, [crops].

        Where a side does not divide evenly, the last rows or columns belong to no crop.
        """
        high, long = self.side // self.rows, self.side // self.columns
        cells = thumbnail.view(self.side, self.side)[: high * self.rows, : long * self.columns]
        return cells.reshape(self.rows, high, self.columns, long).sum((1, 3)).flatten()

    def valid(self, crop: int) -> tuple[int, int, int, int]:
        """The part without padding of crop `crop` (0-based), in the crop's own rows and columns."""
        top, left = crop // self.columns * self.side, crop % self.columns * self.side
        r0, r1, c0, c1 = self.content
        inside = lambda x, start: min(max(x - start, 0), self.side)  # noqa: E731
        return inside(r0, top), inside(r1, top), inside(c0, left), inside(c1, left)


def tile_order(tile: int, slots: Tensor) -> Tensor:
    """Slots [m] of one tile in the given order: pairs (tile, slot), [m, 2]."""
    return torch.stack([torch.full_like(slots, tile), slots], 1)


def row_order(
    places: Sequence[Tensor], grid: TileGrid, *, unpad: bool, newlines: Newlines
) -> Tensor:
    """The crops' tokens row by row over the whole token grid.

    Args:
        places: for each crop [m], where its slots stand among its side x side patches, or -1 for
            slots that stand nowhere (CLS, merged tokens): these are left out.
        unpad: leave out what lies in the padding.
        newlines: "window" closes the rows without padding (LLaVA), "kept" those of them that keep
            a token, "grid" every row of the padded grid (GlobalCom2). No row is closed where the
            unpruned model has no newlines.

    Returns: [M, 2] pairs (tile, slot), tile >= 1, and (NEWLINE, row).
    """
    device = places[0].device
    columns = grid.tokens[1]
    r0, r1, c0, c1 = grid.window
    keys, pairs = [], []
    for crop, place in enumerate(places):
        row = place // grid.side + crop // grid.columns * grid.side
        column = place % grid.side + crop % grid.columns * grid.side
        here = place >= 0
        if unpad:
            here = here & (row >= r0) & (row < r1) & (column >= c0) & (column < c1)
        slot = torch.arange(place.shape[0], device=device)
        keys.append((row * (columns + 1) + column)[here])
        pairs.append(tile_order(crop + 1, slot)[here])
    if newlines != "none" and grid.lined:
        rows = torch.arange(*((0, grid.tokens[0]) if newlines == "grid" else (r0, r1)))
        rows = rows.to(device)
        if newlines == "kept":
            rows = rows[torch.isin(rows, torch.cat(keys) // (columns + 1))]
        keys.append(rows * (columns + 1) + columns)
        pairs.append(tile_order(NEWLINE, rows))
    return torch.cat(pairs)[torch.cat(keys).argsort(stable=True)]


def picture_order(
    ids: Sequence[Tensor],
    behind: Sequence[Tensor],
    grid: TileGrid,
    *,
    unpad: bool,
    newlines: Newlines,
) -> Tensor:
    """The order of a picture of which each tile has kept some tokens, as VisionZip released it.

    The thumbnail's tokens in their order; the crops' patches row by row over the token grid; CLS of
    each crop; then, crop by crop, what is to stand `behind` (merged tokens). Where the model puts
    one tile after the other ("flat"), each tile's tokens in their order.

    Args:
        ids: for each tile [m], the patch (0-based in its tile) of each slot, -1 for CLS.
        behind: for each tile [m] bool.
        unpad, newlines: see `row_order`.

    Returns: [M, 2] pairs (tile, slot).
    """
    slots = [torch.arange(i.shape[0], device=i.device) for i in ids]
    if grid.merge == "flat":
        return torch.cat([tile_order(t, own) for t, own in enumerate(slots)])
    places = [i.masked_fill(b, -1) for i, b in zip(ids[1:], behind[1:], strict=True)]
    rows = row_order(places, grid, unpad=unpad, newlines=newlines)
    later = range(1, len(ids))
    return torch.cat(
        [
            tile_order(0, slots[0]),
            rows,
            *(tile_order(t, slots[t][(ids[t] < 0) & ~behind[t]]) for t in later),
            *(tile_order(t, slots[t][behind[t]]) for t in later),
        ]
    )


def assemble(order: Tensor, tokens: Sequence[Tensor], newline: Tensor | None = None) -> Tensor:
    """The packed sequence [M, D] of an order [M, 2].

    Args:
        tokens: for each tile [m, D], its slots.
        newline: [D], needed where the order has newlines.
    """
    first = torch.tensor([0] + [t.shape[0] for t in tokens], device=order.device).cumsum(0)
    tile, slot = order.unbind(1)
    pool = torch.cat(list(tokens) + ([] if newline is None else [newline[None]]))
    return pool[torch.where(tile == NEWLINE, first[-1], first[tile.clamp(min=0)] + slot)]
