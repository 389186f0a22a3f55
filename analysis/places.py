"""Where a visual token lies in its picture, whatever tiles, grids or frames it went through."""

from __future__ import annotations

import numpy as np

from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.trace import SampleTrace

__all__ = ["centres", "is_patch", "patches_of_box", "patches_under"]


def centres(
    identity: np.ndarray, sample: SampleTrace, grid: tuple[int, int], picture: int = 0
) -> np.ndarray:
    """[n, 2] float64, (y, x) of the middle of what each token shows, in 0..1 of the picture.

    Newlines and CLS tokens, which show nothing, are NaN; a patch of an any-resolution picture that
    shows the border around it may lie outside of 0..1.

    Args:
        identity: [n], ids as in traces; grid: (rows, columns) of a picture of one tile.

    Raises `ValueError` for videos, whose tokens have a time, too.
    """
    identity = np.asarray(identity)
    layout = sample.grids[picture] if picture < len(sample.grids) else None
    shape = sample.shapes[picture] if picture < len(sample.shapes) else None
    if isinstance(layout, TileGrid):
        return _tiles(identity, layout)
    if isinstance(layout, PackedGrid):
        return _packed(identity, layout)
    if layout is not None or (shape is not None and shape[0] > 1):
        raise ValueError("a video's tokens have a time beside a place; take single pictures")
    rows, columns = grid if shape is None else shape[1:]
    out = np.stack([(identity // columns + 0.5) / rows, (identity % columns + 0.5) / columns], 1)
    out[identity < 0] = np.nan
    return out


def _tiles(identity: np.ndarray, layout: TileGrid) -> np.ndarray:
    width, height = layout.original
    out = np.full((len(identity), 2), np.nan)
    for i, token in enumerate(identity.tolist()):
        if layout.locate(token)[0] == "patch":
            left, top, right, bottom = layout.box(token)
            out[i] = (top + bottom) / 2 / height, (left + right) / 2 / width
    return out


def _packed(identity: np.ndarray, layout: PackedGrid) -> np.ndarray:
    out = np.full((len(identity), 2), np.nan)
    for i, token in enumerate(identity.tolist()):
        kind, _, row, column = layout.locate(token)
        if kind == "patch":
            out[i] = (row + 0.5) / layout.side, (column + 0.5) / layout.side
        elif kind == "token":
            out[i] = (row + 0.5) / layout.rows, (column + 0.5) / layout.columns
    return out


def is_patch(places: np.ndarray) -> np.ndarray:
    """[n] bool, which tokens show a part of the picture."""
    return (~np.isnan(places[:, 0])) & (places >= 0).all(1) & (places <= 1).all(1)


def patches_under(places: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[n] int64, the square of a (rows, columns) grid over the picture in which each place lies; -1
    for tokens that show nothing of it.
    """
    rows, columns = grid
    shown = is_patch(places)
    y, x = (np.where(shown, places[:, axis], 0) for axis in (0, 1))
    row = np.minimum((y * rows).astype(np.int64), rows - 1)
    column = np.minimum((x * columns).astype(np.int64), columns - 1)
    return np.where(shown, row * columns + column, -1)


def patches_of_box(
    box: tuple[float, float, float, float], size: tuple[int, int], grid: tuple[int, int]
) -> np.ndarray:
    """Ids of the squares of a grid over a picture of `size` (width, height) that a box touches.

    Args:
        box: (left, top, right, bottom) in pixels, right and bottom outside.
    """
    (width, height), (rows, columns) = size, grid
    left, top, right, bottom = box
    down = np.arange(rows), np.arange(columns)
    inside_y = (down[0] * height / rows < bottom) & ((down[0] + 1) * height / rows > top)
    inside_x = (down[1] * width / columns < right) & ((down[1] + 1) * width / columns > left)
    return np.flatnonzero(inside_y[:, None] & inside_x[None, :])
