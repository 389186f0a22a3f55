"""The order in which the tokens of an any-resolution picture enter the LLM, as pure functions.

Tile 0 is the thumbnail, tiles 1.. are the crops, row by row. The crops' tokens form one grid of
tokens (48 x 48 for 2 x 2 crops of 24 x 24), which is read in rows; a picture's packed sequence is
the thumbnail's tokens, then those rows, each row closed by an `image_newline` where the packing has
newlines. A sequence is written as [M, 2] pairs (tile, slot): slot s is the s-th token that the tile
kept; (NEWLINE, r) closes row r of the whole, padded grid.

The mechanism does not run any-resolution pictures yet; the methods' own packings are checked
against their released codes on ready tokens.

Source: LLaVA's `spatial` and `spatial_unpad` packing (LLaVA-NeXT), released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["NEWLINE", "Newlines", "TileGrid", "assemble", "row_order", "tile_order"]

Newlines = Literal["none", "window", "grid"]

NEWLINE = -1
"""Stands for a tile where an `image_newline` is meant."""


@dataclass(frozen=True)
class TileGrid:
    """How the crops of one picture lie.

    Attributes:
        rows, columns: of crops.
        original: (width, height) of the picture in pixels.
        side: tokens along a side of a tile.
    """

    rows: int
    columns: int
    original: tuple[int, int]
    side: int = 24

    @property
    def crops(self) -> int:
        """Tiles without the thumbnail."""
        return self.rows * self.columns

    @property
    def tokens(self) -> tuple[int, int]:
        """(rows, columns) of the token grid, padding included."""
        return self.rows * self.side, self.columns * self.side

    @property
    def window(self) -> tuple[int, int, int, int]:
        """(first row, end, first column, end) of the token grid without padding.

        Where the padding is odd, one padded row or column stays, as in LLaVA.
        """
        (rows, columns), (width, height) = self.tokens, self.original
        if width / height > columns / rows:
            cut = (rows - int(height * (columns / width))) // 2
            return cut, rows - cut, 0, columns
        cut = (columns - int(width * (rows / height))) // 2
        return 0, rows, cut, columns - cut

    def crop_sums(self, thumbnail: Tensor) -> Tensor:
        """Sum of the thumbnail's values [side * side] over the part that each crop shows, [crops].

        Where a side does not divide evenly, the last rows or columns belong to no crop.
        """
        high, long = self.side // self.rows, self.side // self.columns
        cells = thumbnail.view(self.side, self.side)[: high * self.rows, : long * self.columns]
        return cells.reshape(self.rows, high, self.columns, long).sum((1, 3)).flatten()

    def valid(self, crop: int) -> tuple[int, int, int, int]:
        """The window's part of crop `crop` (0-based), in the crop's own rows and columns."""
        top, left = crop // self.columns * self.side, crop % self.columns * self.side
        r0, r1, c0, c1 = self.window
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
        newlines: "window" closes the rows without padding (LLaVA), "grid" every row of the padded
            grid (GlobalCom2).

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
    if newlines != "none":
        rows = torch.arange(*((r0, r1) if newlines == "window" else (0, grid.tokens[0])))
        rows = rows.to(device)
        keys.append(rows * (columns + 1) + columns)
        pairs.append(tile_order(NEWLINE, rows))
    return torch.cat(pairs)[torch.cat(keys).argsort(stable=True)]


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
