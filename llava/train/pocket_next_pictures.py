"""Any-resolution pictures of the pocket world as LLaVA-NeXT cuts them: tiles, rows, positions.

A picture here needs no scaling: one of its sides is that of its crops, the other a multiple of two
patches, so each 14 x 14 square of the scene is one patch of one crop. Tiles of fewer than 24 x 24
patches are windows on full ones, with the tower's positions of that place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from playground.pocket.scene import PATCH
from visiondrop.functional.anyres_layout import TileGrid

FULL = 24  # patches along a side of the tower's own grid
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SHARES = {"one": 0.1, "two": 0.3, "four": 0.4, "three": 0.2}
"""How often a training picture is as large as one tile, two, up to two by two, or three."""


def draw_size(side: int, rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) in pixels of a training picture whose tiles have ``side`` patches a side."""
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    tile, sixth = side * PATCH, side * PATCH // 6
    if kind == "one":
        return tile, tile
    long = {"two": 2, "four": 2, "three": 3}[kind] * tile
    low, high = {"two": (4, 6), "four": (8, 12), "three": (4, 6)}[kind]
    short = int(rng.integers(low, high + 1)) * sixth
    return (long, short) if rng.random() < 0.5 else (short, long)


def grid_of(size: tuple[int, int], side: int = FULL) -> TileGrid:
    """How the crops of a picture (width, height) lie, by the stock rule."""
    scale = FULL // side
    real = size[1] * scale, size[0] * scale
    rows, columns = get_anyres_image_grid_shape(real, PINPOINTS, 336)
    return TileGrid(rows, columns, size, side)


def rows_of_squares(ids: list[int], columns: int, grid: TileGrid) -> list[int]:
    """The packed picture's rows that show the given squares of 14 x 14 pixels of the original.

    ids: row-major, ``columns`` squares a row. A patch counts where more than 15 % of its sides is
    covered; without scaling that is one patch for each square.
    """
    r0, r1, c0, c1 = grid.window
    wide, high = grid.original
    out: set[int] = set()

    def covered(square: int, side: int, patches: int) -> range:
        """Patches along a side of so many pixels."""
        a, b = (min(p * PATCH, side) * patches / side for p in (square, square + 1))
        return range(int(a + 0.15), min(math.ceil(b - 0.15), patches))

    for square in ids:
        row, column = divmod(square, columns)
        for y in covered(row, high, r1 - r0):
            for x in covered(column, wide, c1 - c0):
                out.add(grid.side**2 + min(y, r1 - r0 - 1) * (c1 - c0 + 1) + min(x, c1 - c0 - 1))
    return sorted(out)


@dataclass(frozen=True)
class Tiles:
    """One picture, ready for the tower.

    Attributes:
        pixels: (T, side * 14, side * 14, 3) uint8, the thumbnail first.
        grid_ids: (T, side ** 2), the place of each patch on the tower's own grid.
        order: (n,), the picture's rows: which patch of all tiles' (T * side ** 2 is the newline).
        where: (n,), how far behind the picture's first position each row stands when the picture
            is full-sized, and ``span``, how many positions it takes then.
        squares: (rows * columns,), for each square of the scene the row that shows it.
    """

    pixels: np.ndarray
    grid_ids: np.ndarray
    order: np.ndarray
    where: np.ndarray
    span: int
    squares: np.ndarray


def cut(pixels: np.ndarray, side: int, rng: np.random.Generator) -> Tiles:
    """Tiles of a picture (height, width, 3) that needs no scaling."""
    high, wide = pixels.shape[:2]
    grid, tile = grid_of((wide, high), side), side * PATCH
    r0, r1, c0, c1 = grid.window
    if (r1 - r0, c1 - c0) != (high // PATCH, wide // PATCH):
        raise ValueError(f"a picture of {wide} x {high} pixels would be scaled; see draw_size")
    whole = np.zeros((grid.rows * tile, grid.columns * tile, 3), np.uint8)
    whole[r0 * PATCH : r1 * PATCH, c0 * PATCH : c1 * PATCH] = pixels
    small = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BICUBIC)
    crops = whole.reshape(grid.rows, tile, grid.columns, tile, 3).swapaxes(1, 2)
    tops = _offsets(grid.rows, r0, side, rng)
    lefts = _offsets(grid.columns, c0, side, rng)
    free = FULL - side
    windows = [(int(rng.integers(free + 1)), int(rng.integers(free + 1)))]
    windows += [(top, left) for top in tops for left in lefts]
    own = np.arange(FULL**2).reshape(FULL, FULL)
    ids = np.stack([own[y : y + side, x : x + side].reshape(-1) for y, x in windows])

    patches, scale = side**2, FULL // side
    row, column = np.mgrid[r0:r1, c0:c1]
    index = patches + (row // side * grid.columns + column // side) * patches
    index = index + row % side * side + column % side
    lines = np.concatenate([index, np.full((r1 - r0, 1), grid.tiles * patches)], axis=1)
    # Where rows and columns stand in the full-sized picture, whose padding is as much larger.
    down = np.array([r // side * FULL + tops[r // side] + r % side for r in range(r0, r1)])
    across = np.array([c // side * FULL + lefts[c // side] + c % side for c in range(c0, c1)])
    length = scale * (c1 - c0)
    places = np.append(across - scale * c0, length)
    crop_places = FULL**2 + (down - scale * r0)[:, None] * (length + 1) + places
    span = FULL**2 + scale * (r1 - r0) * (length + 1)
    squares = patches + np.arange(r1 - r0)[:, None] * (c1 - c0 + 1) + np.arange(c1 - c0)
    return Tiles(
        np.concatenate([np.asarray(small)[None], crops.reshape(-1, tile, tile, 3)]),
        ids,
        np.concatenate([np.arange(patches), lines.reshape(-1)]),
        np.concatenate([ids[0], crop_places.reshape(-1)]),
        span,
        squares.reshape(-1),
    )


def _offsets(count: int, padded: int, side: int, rng: np.random.Generator) -> list[int]:
    """Where the windows on ``count`` tiles in a row begin; beside padding as it is twice as wide
    in a full-sized picture."""
    free = FULL - side
    if not padded:
        return [int(rng.integers(free + 1)) for _ in range(count)]
    return [free // 2] if count == 1 else [free, *([free // 2] * (count - 2)), 0]
