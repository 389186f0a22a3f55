"""A score of visual tokens as pictures: one panel for one tile; thumbnail and crops for several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import plots
from analysis.asked import token_boxes
from analysis.setting import Case
from llava.eval.truth import SIDE
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.trace import SampleTrace

__all__ = ["Panel", "draw_picture", "outline_region", "panels", "show_panel"]

WHITE_ABOVE = 0.99
"""Share of a panel's values below what is drawn black: a few sinks would leave all others white."""


@dataclass(frozen=True)
class Panel:
    """Values over a part of the picture.

    Attributes:
        name: "picture", "thumbnail" or "crops".
        values: [rows, columns], NaN where no token is.
        box: (left, top, right, bottom) that they cover, in 0..1 of the picture.
    """

    name: str
    values: np.ndarray
    box: tuple[float, float, float, float]


def panels(
    identity: np.ndarray, values: np.ndarray, sample: SampleTrace, grid: tuple[int, int]
) -> list[Panel]:
    """The values [n] of a prompt's first picture, each where its token lies; newlines are left out.

    Raises `ValueError` for videos. Arguments as of `places.centres`.
    """
    identity = np.asarray(identity)
    boxes = token_boxes(identity, sample, grid)
    layout = sample.grids[0] if sample.grids else None
    shape = sample.shapes[0] if sample.shapes else None
    if isinstance(layout, TileGrid):
        at = np.array([layout.locate(int(i)) for i in identity], dtype=object)
        patch = at[:, 0] == "patch"
        tile, row, column = (at[:, i].astype(np.int64) for i in (1, 2, 3))
        whole = patch & (tile == layout.overview)
        crop = np.where(tile < layout.overview, tile, tile - 1)
        row = np.where(whole, row, row + crop // layout.columns * layout.side)
        column = np.where(whole, column, column + crop % layout.columns * layout.side)
        kinds = {"thumbnail": (whole, (layout.side,) * 2), "crops": (patch & ~whole, layout.tokens)}
    elif isinstance(layout, PackedGrid):
        base, token = identity < layout.base, identity < layout.first_newline
        place = identity - layout.base
        row = np.where(base, identity // layout.side, place // layout.columns)
        column = np.where(base, identity % layout.side, place % layout.columns)
        kinds = {
            "thumbnail": (base, (layout.side,) * 2),
            "crops": (token & ~base, (layout.rows, layout.columns)),
        }
    else:
        size = grid if shape is None else shape[1:]
        row, column = identity // size[1], identity % size[1]
        kinds = {"picture": (identity >= 0, size)}
    out = []
    for name, (own, size) in kinds.items():
        if own.any():
            drawn = np.full(size, np.nan)
            drawn[row[own], column[own]] = np.asarray(values)[own]
            out.append(Panel(name, drawn, _cover(boxes[own], row[own], column[own], size)))
    return out


def _cover(
    boxes: np.ndarray, row: np.ndarray, column: np.ndarray, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """What a whole grid covers of which some cells' boxes are known."""
    wide, high = boxes[0, 2] - boxes[0, 0], boxes[0, 3] - boxes[0, 1]
    left, top = boxes[0, 0] - column[0] * wide, boxes[0, 1] - row[0] * high
    return (float(left), float(top), float(left + size[1] * wide), float(top + size[0] * high))


def show_panel(axis: Any, panel: Panel, size: tuple[int, int], sharp: bool = True) -> None:
    """Draw a panel in pixels of the picture (width, height): white is 0, black the value that 99 %
    of the tokens stay below.
    """
    width, height = size
    left, top, right, bottom = panel.box
    dark = np.nanquantile(panel.values, WHITE_ABOVE)
    axis.imshow(
        panel.values, cmap=plots.HEAT, vmin=0, vmax=dark if dark > 0 else 1,
        extent=(left * width, right * width, bottom * height, top * height),
        interpolation="nearest" if sharp else "bilinear",
    )  # fmt: skip
    _frame(axis, size)


def draw_picture(axis: Any, image: Any) -> None:
    """Draw the picture itself."""
    axis.imshow(image)
    _frame(axis, image.size)


def _frame(axis: Any, size: tuple[int, int]) -> None:
    axis.set(xlim=(0, size[0]), ylim=(size[1], 0), xticks=[], yticks=[], aspect="equal")


def outline_region(axis: Any, case: Case, size: tuple[int, int], **style: Any) -> None:
    """Draw the border of what a question asks for, in pixels; nothing where nobody knows."""
    if case.region:
        outline_squares(axis, case.region, case.grid, size, **style)


def outline_squares(
    axis: Any, squares: Iterable[int], grid: tuple[int, int] | None, size: tuple[int, int],
    **style: Any,
) -> None:  # fmt: skip
    """Draw the border of squares of 14 pixels that are numbered on a (rows, columns) grid."""
    from matplotlib.transforms import Affine2D

    grid = grid or (-(-size[1] // SIDE), -(-size[0] // SIDE))
    pixels = Affine2D().translate(0.5, 0.5).scale(SIDE) + axis.transData
    plots.outline(axis, squares, grid, transform=pixels, **style)
