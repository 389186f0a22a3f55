"""Which visual tokens show given squares of a picture, whatever tiles it was read in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from analysis.places import centres, is_patch
from analysis.setting import Case, Unknown
from llava.eval.truth import SIDE
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.trace import SampleTrace

__all__ = ["SHOWS", "Tokens", "covered", "token_boxes"]

SHOWS = 0.25
"""A token shows squares that cover at least this share of it: a patch of one tile is one square and
shows it or not; one of a thumbnail shows several, of which one is enough."""


def token_boxes(
    identity: np.ndarray, sample: SampleTrace, grid: tuple[int, int], picture: int = 0
) -> np.ndarray:
    """[n, 4] float64, (left, top, right, bottom) of what each token shows, in 0..1 of the picture.

    Newlines and CLS tokens, which show nothing, are NaN. Arguments as of `places.centres`.
    """
    middle = centres(identity, sample, grid, picture)
    layout = sample.grids[picture] if picture < len(sample.grids) else None
    shape = sample.shapes[picture] if picture < len(sample.shapes) else None
    out = np.full((len(middle), 4), np.nan)
    if isinstance(layout, TileGrid):
        width, height = layout.original
        for i in np.flatnonzero(~np.isnan(middle[:, 0])):
            out[i] = layout.box(int(identity[i])) / np.array([width, height, width, height])
        return out
    if isinstance(layout, PackedGrid):
        base = np.asarray(identity) < layout.base
        rows = np.where(base, layout.side, layout.rows)
        columns = np.where(base, layout.side, layout.columns)
    else:
        rows, columns = (np.full(len(middle), n) for n in (grid if shape is None else shape[1:]))
    high, wide = 0.5 / rows, 0.5 / columns
    y, x = middle[:, 0], middle[:, 1]
    return np.stack([x - wide, y - high, x + wide, y + high], 1)


def covered(
    boxes: np.ndarray, squares: Iterable[int], columns: int, side: tuple[float, float]
) -> np.ndarray:
    """[n] float64, the share of each box that the squares cover; 0 for boxes that are NaN.

    Args:
        boxes: [n, 4], (left, top, right, bottom).
        squares: ids, row-major with so many `columns`, none twice.
        side: (width, height) of a square, in the boxes' unit.
    """
    ids = np.fromiter(squares, np.int64)
    left, top = ids % columns * side[0], ids // columns * side[1]
    wide = np.minimum(boxes[:, 2, None], left + side[0]) - np.maximum(boxes[:, 0, None], left)
    high = np.minimum(boxes[:, 3, None], top + side[1]) - np.maximum(boxes[:, 1, None], top)
    shared = (np.clip(wide, 0, None) * np.clip(high, 0, None)).sum(1)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.nan_to_num(shared / area)


@dataclass(frozen=True)
class Tokens:
    """The visual tokens of one picture that show a part of it; newlines and padding are left out.

    Attributes:
        places: [m], where they stand among the picture's tokens.
        ids: [m], their ids, as in traces.
        boxes: [m, 4], see `token_boxes`.
        original: (width, height) in pixels of a picture that was cut in tiles, else None.
        grid: (rows, columns) of a picture of one tile.
    """

    places: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    original: tuple[int, int] | None
    grid: tuple[int, int]

    @classmethod
    def of(cls, identity: np.ndarray, sample: SampleTrace, grid: tuple[int, int]) -> Tokens:
        """Of a prompt's first picture; arguments as of `places.centres`."""
        shown = np.flatnonzero(is_patch(centres(identity, sample, grid)))
        ids = np.asarray(identity)[shown]
        layout = sample.grids[0] if sample.grids else None
        original = layout.original if isinstance(layout, TileGrid) else None
        return cls(shown, ids, token_boxes(ids, sample, grid), original, grid)

    def showing(self, squares: Iterable[int], grid: tuple[int, int] | None) -> np.ndarray:
        """[m] bool, which tokens show squares numbered on a (rows, columns) grid (None: the
        model's own); see `SHOWS`.

        Raises `Unknown` where the squares cannot be found in the picture as the model read it.
        """
        grid = grid or self.grid
        if self.original is not None:
            side = SIDE / self.original[0], SIDE / self.original[1]
        elif grid == self.grid:
            side = 1 / grid[1], 1 / grid[0]
        else:
            raise Unknown(
                f"regions are numbered on {grid[0]} x {grid[1]} squares, but this model reads "
                f"pictures as {self.grid[0]} x {self.grid[1]}: take data of that size, or a model "
                "that cuts pictures into tiles"
            )
        return covered(self.boxes, squares, grid[1], side) >= SHOWS

    def asked(self, case: Case) -> np.ndarray:
        """[m] bool, which tokens show what the question asks for. `Unknown` where nobody knows."""
        if case.region is None:
            raise Unknown("nobody knows which regions these questions ask for")
        return self.showing(case.region, case.grid)
