"""What the token ids of a packed any-resolution picture mean, as pure functions.

LLaVA-OneVision packs a picture before it enters the LLM: the base tile, then the crops as one grid
of tokens, unpadded and, where it is larger than so many tiles, shrunk; a newline closes each row.
Token ids: base patch p is p, the token in row r and column c of the grid is base + r * columns + c,
and the newline of row r is base + rows * columns + r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PackedGrid", "shrunk"]

SHRINKS_ABOVE = 1.1
"""A grid whose side is so many times the limit's is shrunk, as in LLaVA-OneVision."""


def shrunk(rows: int, columns: int, side: int, most: int) -> tuple[int, int]:
    """(rows, columns) of a token grid after the model's limit of `most` tiles of `side` x `side`
    ("anyres_max_9": 9).
    """
    ratio = math.sqrt(rows * columns / (most * side**2))
    if ratio <= SHRINKS_ABOVE:
        return rows, columns
    return int(rows // ratio), int(columns // ratio)


@dataclass(frozen=True)
class PackedGrid:
    """One packed picture.

    Attributes:
        side: patches along a side of the base tile.
        rows, columns: of the crops' tokens, as they enter the LLM.
        tiles: crops and base tile that it was made from.
    """

    side: int
    rows: int
    columns: int
    tiles: int

    @property
    def base(self) -> int:
        """Tokens of the base tile."""
        return self.side**2

    @property
    def first_newline(self) -> int:
        """Token id of the newline of row 0; ids from here on are newlines."""
        return self.base + self.rows * self.columns

    @property
    def patches(self) -> int:
        """Tokens in the unpruned model without newlines."""
        return self.first_newline

    @property
    def unpruned(self) -> int:
        """Tokens of the picture in the unpruned model, newlines included."""
        return self.first_newline + self.rows

    @property
    def ids(self) -> Tensor:
        """[unpruned], the token ids in their order."""
        tokens = torch.arange(self.base, self.first_newline).view(self.rows, self.columns)
        lines = torch.arange(self.first_newline, self.unpruned)[:, None]
        return torch.cat([torch.arange(self.base), torch.cat([tokens, lines], 1).flatten()])

    def row_of(self, ids: Tensor) -> Tensor:
        """Row of the grid of each token and each newline; -1 in the base tile."""
        place = ids - self.base
        row = torch.where(
            ids >= self.first_newline, ids - self.first_newline, place // self.columns
        )
        return torch.where(ids < self.base, -1, row)

    def locate(self, token: int) -> tuple[str, int, int, int]:
        """What a token id means: ("patch", 0, row, column) in the base tile, ("token", 1, row,
        column) in the grid of all crops, ("newline", -1, row, -1).
        """
        if token >= self.first_newline:
            return "newline", -1, token - self.first_newline, -1
        if token < self.base:
            return "patch", 0, *divmod(token, self.side)  # type: ignore[return-value]
        return "token", 1, *divmod(token - self.base, self.columns)  # type: ignore[return-value]
