"""Which squares of a picture which visual tokens show.

A picture is cut into squares; each is shown by the token within whose patch its middle lies, one of
a picture of one tile, a crop's and the thumbnail's of an any-resolution picture; and, where patches
are smaller than squares, by all tokens whose middle lies in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from analysis.places import centres, is_patch
from llava.eval.truth import SIDE
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.trace import SampleTrace

__all__ = ["Shown", "fit", "shown_by"]


@dataclass(frozen=True)
class Shown:
    """A picture's squares, and the tokens that show them.

    Attributes:
        grid: (rows, columns) of squares.
        tokens: [levels, squares] int64, the id of the token of each level that shows the middle of
            each square, -2 where none does; the level of the finest patches comes first.
        ids, inside: [tokens] int64, all tokens that show a part of the picture, and the square in
            which the middle of each lies.
        fine: [tokens] bool, which of them are of the finest level.
        places: token id -> (y, x) of its middle, in units of the picture's longer side; of all
            tokens that show a part of the picture.
        squares: [squares, 2], (y, x) of the middle of each, in the same unit.
    """

    grid: tuple[int, int]
    tokens: np.ndarray
    ids: np.ndarray
    inside: np.ndarray
    fine: np.ndarray
    places: dict[int, tuple[float, float]]
    squares: np.ndarray

    @property
    def total(self) -> int:
        """Tokens that show a part of the picture."""
        return len(self.places)

    def by(self, ids: Iterable[int], fine: bool = False) -> np.ndarray:
        """[squares] bool, which squares some of the tokens show; `fine`: tokens of the finest level
        only.
        """
        wanted = list(ids)
        levels = self.tokens[:1] if fine else self.tokens
        out = np.asarray(np.isin(levels, wanted).any(0))
        there = np.isin(self.ids, wanted)
        out[self.inside[there & self.fine if fine else there]] = True
        return out

    def at(self, ids: Iterable[int]) -> np.ndarray:
        """[n, 2], the places of those of the tokens that show a part of the picture."""
        found = [self.places[i] for i in ids if i in self.places]
        return np.array(found, dtype=np.float64).reshape(-1, 2)

    def showing(self, squares: Iterable[int]) -> set[int]:
        """Ids of all tokens that show one of the squares."""
        wanted = sorted(squares)
        found = self.tokens[:, wanted]
        own = self.ids[np.isin(self.inside, wanted)]
        return set(found[found >= 0].tolist()) | set(own.tolist())


def fit(places: np.ndarray, size: tuple[int, int], kind: str) -> np.ndarray:
    """Places in 0..1 of what the model saw to 0..1 of the picture; outside of it for padding.

    Args:
        places: [n, 2], (y, x); size: (width, height) in pixels.
        kind: "pad": the picture stands in the middle of a square of its longer side; "square" (or
            anything else): the middle of it was cut out, a square of its shorter side.
    """
    width, height = size
    side = max(size) if kind == "pad" else min(size)
    left, top = (side - width) // 2, (side - height) // 2
    return (places * side - np.array([top, left])) / np.array([height, width])


def shown_by(
    sample: SampleTrace,
    grid: tuple[int, int],
    size: tuple[int, int],
    kind: str = "pad",
    squares: tuple[int, int] | None = None,
) -> Shown:
    """The squares of a prompt's first picture and the tokens that show them.

    Args:
        grid: (rows, columns) of a picture of one tile.
        size: (width, height) of the picture in pixels.
        kind: how a picture of one tile was made square, see `fit`.
        squares: (rows, columns) to cut the picture into; its finest patches by default.

    Raises `ValueError` for videos.
    """
    layout = sample.grids[0] if sample.grids else None
    shape = sample.shapes[0] if sample.shapes else None
    return _shown(layout, shape, grid, size, kind, squares)


@lru_cache(maxsize=64)
def _shown(
    layout: Any,
    shape: Any,
    grid: tuple[int, int],
    size: tuple[int, int],
    kind: str,
    squares: tuple[int, int] | None,
) -> Shown:
    """`shown_by` of pictures that are cut alike."""
    sample = SampleTrace(None, [0], [0], 1, grids=[layout], shapes=[shape])
    unit = np.array([size[1], size[0]]) / max(size)
    places: dict[int, tuple[float, float]] = {}
    levels = []
    for ids in _levels(layout, shape, grid):
        own = centres(ids, sample, grid)
        if layout is None and shape is None:
            own = fit(own, size, kind)
        inside = is_patch(own)
        # Middles are rounded so that one row's are one number.
        levels.append((ids[inside], np.round(own[inside], 9)))
        places |= {int(i): tuple(p * unit) for i, p in zip(ids[inside], own[inside], strict=True)}
    lines = [np.unique(levels[0][1][:, axis]) for axis in (0, 1)]
    borders = [(line[:-1] + line[1:]) / 2 for line in lines]
    if squares is not None:
        edges = [_edges(n, length) for n, length in zip(squares, size[::-1], strict=True)]
        lines = [(edge[:-1] + edge[1:]) / 2 for edge in edges]
        borders = [edge[1:-1] for edge in edges]
    rows, columns = map(len, lines)
    middles = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2)
    tokens = np.stack([_of_middles(middles, ids, own) for ids, own in levels])
    ids = np.concatenate([ids for ids, _ in levels])
    fine = np.arange(len(ids)) < len(levels[0][0])
    at = np.concatenate([own for _, own in levels])
    row, column = (np.searchsorted(borders[axis], at[:, axis], "right") for axis in (0, 1))
    inside = row * columns + column
    return Shown((rows, columns), tokens, ids, inside, fine, places, middles * unit)


def _edges(count: int, length: int) -> np.ndarray:
    """[count + 1], borders in 0..1 of squares of `truth.SIDE` pixels, the last of which may be cut;
    of any other number, the side is cut evenly.
    """
    if count == -(-length // SIDE):
        return np.minimum(np.arange(count + 1) * SIDE, length) / length
    return np.arange(count + 1) / count


def _levels(layout: Any, shape: Any, grid: tuple[int, int]) -> list[np.ndarray]:
    """Token ids that show something, level by level, the finest first."""
    if isinstance(layout, TileGrid):
        patches = layout.side**2
        ids = np.arange(layout.tiles * patches)
        overview = ids // patches == layout.overview
        return [ids[~overview], ids[overview]]
    if isinstance(layout, PackedGrid):
        return [np.arange(layout.base, layout.first_newline), np.arange(layout.base)]
    rows, columns = grid if shape is None else shape[-2:]
    return [np.arange(rows * columns)]


def _of_middles(middles: np.ndarray, ids: np.ndarray, own: np.ndarray) -> np.ndarray:
    """[squares], the id of the patch that each middle lies in; patches are those of a lattice."""
    found = []
    for axis in (0, 1):
        lines = np.unique(own[:, axis])
        half = (lines[1] - lines[0]) / 2 if len(lines) > 1 else 0.5
        nearest = np.abs(middles[:, axis, None] - lines[None]).argmin(1)
        # A square that touches a border by less than half of itself is shown by nothing there.
        beyond = np.abs(middles[:, axis] - lines[nearest]) > half * (1 + 1e-6)
        found.append(np.where(beyond, -1, nearest))
    row_lines, column_lines = (np.unique(own[:, axis]) for axis in (0, 1))
    table = np.full((len(row_lines), len(column_lines)), -2, dtype=np.int64)
    table[
        np.searchsorted(row_lines, own[:, 0]), np.searchsorted(column_lines, own[:, 1])
    ] = ids  # fmt: skip
    row, column = found
    return np.where((row < 0) | (column < 0), -2, table[row, column])
