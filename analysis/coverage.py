"""How well kept tokens cover a picture: distances, holes, and what chance and a lattice reach.

Lengths are in units of the picture's longer side. Nothing here knows of models.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

__all__ = [
    "expected_hits",
    "largest_hole",
    "lattice",
    "measures",
    "nearest",
    "of_lattice",
    "of_random",
]

DRAWS = 16
CHUNK_ELEMENTS = 2**17  # stays in a core's cache


def nearest(squares: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[p], distance of each place [p, 2] to the nearest kept one [k, 2]; where nothing is kept, the
    diagonal of what the places span.
    """
    if not len(kept):
        return np.full(len(squares), float(np.hypot(*np.ptp(squares, axis=0))))
    out = np.empty(len(squares))
    chunk = max(1, CHUNK_ELEMENTS // len(kept))
    for first in range(0, len(squares), chunk):
        part = squares[first : first + chunk]
        # One axis at a time: an array of pairs would take twice the time.
        square = (part[:, None, 0] - kept[None, :, 0]) ** 2
        square += (part[:, None, 1] - kept[None, :, 1]) ** 2
        out[first : first + chunk] = np.sqrt(square.min(1))
    return out


def largest_hole(shown: np.ndarray) -> tuple[int, float]:
    """The largest axis-aligned square of squares none of which is shown.

    Args:
        shown: [rows, columns] bool.

    Returns: its side in squares, 0 where everything is shown; and how far down its middle is, 0 at
    the top edge to 1 at the bottom, the mean over all holes of that size (NaN without a hole).
    """
    rows, columns = shown.shape
    sums = np.zeros((rows + 1, columns + 1), dtype=np.int64)
    sums[1:, 1:] = shown.cumsum(0).cumsum(1)

    def empty(side: int) -> np.ndarray:
        """[r] top rows of all empty squares of that side, one entry each."""
        inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side]
        return np.nonzero(inside + sums[:-side, :-side] == 0)[0]

    low, high = 0, min(rows, columns)
    while low < high:  # a hole holds smaller ones
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(empty(middle)) else (low, middle - 1)
    if not low:
        return 0, float("nan")
    return low, float((empty(low).mean() + low / 2) / rows)


def measures(
    squares: np.ndarray, kept: np.ndarray, shown: np.ndarray, grid: tuple[int, int]
) -> dict[str, float]:
    """Coverage of a picture by kept tokens.

    mean, far: mean and greatest distance of a square's middle to the middle of the nearest kept
    token; upper, lower: the mean over the picture's upper and lower half; hole: side of the largest
    empty square (`largest_hole`); hole_down: how far down it is; in_lower: share of the kept tokens
    whose middle is in the lower half (those on the line count half).

    Args:
        squares: [s, 2], middles (y, x), row by row; kept: [k, 2]; shown: [s] bool, which squares
            kept tokens show; grid: (rows, columns) of the squares.
    """
    rows, columns = grid
    distance = nearest(squares, kept)
    # One square's side, of the longer side: squares are as high as they are wide.
    side = squares[columns, 0] - squares[0, 0] if rows > 1 else squares[1, 1] - squares[0, 1]
    half = (squares[0, 0] + squares[-1, 0]) / 2
    hole, down = largest_hole(shown.reshape(grid))
    above = squares[:, 0] < half - 1e-9
    below = squares[:, 0] > half + 1e-9
    weight = np.where(np.abs(kept[:, 0] - half) < 1e-9, 0.5, kept[:, 0] > half)
    return {
        "mean": float(distance.mean()),
        "far": float(distance.max()),
        "upper": float(distance[above].mean()) if above.any() else float("nan"),
        "lower": float(distance[below].mean()) if below.any() else float("nan"),
        "hole": hole * float(side),
        "hole_down": down,
        "in_lower": float(weight.mean()) if len(kept) else float("nan"),
    }


def middles(grid: tuple[int, int]) -> np.ndarray:
    """[s, 2], middles of a grid's squares, row by row, in units of its longer side."""
    rows, columns = grid
    y, x = np.divmod(np.arange(rows * columns), columns)
    return (np.stack([y, x], 1) + 0.5) / max(grid)


def lattice(count: int, grid: tuple[int, int]) -> np.ndarray:
    """[count] squares, rising: of evenly filled rows, every second shifted by half a step or not,
    those with the least mean distance. As good a cover as a regular pattern gives, which is close
    to the best there is (the honeycomb bound, 0.377 / sqrt(count) of a square picture's side).
    """
    rows, columns = grid
    squares = middles(grid)
    best: tuple[float, np.ndarray] | None = None
    usual = math.sqrt(count * rows / columns)
    for lines in range(max(1, int(usual / 2)), min(rows, count, math.ceil(2 * usual)) + 1):
        filled = [count * (i + 1) // lines - count * i // lines for i in range(lines)]
        if max(filled) > columns:
            continue
        for shift in (0.0, 0.25):
            chosen = []
            for i, n in enumerate(filled):
                row = int((i + 0.5) * rows / lines)
                step = shift if i % 2 else -shift
                chosen += [row * columns + int((j + 0.5 + step) * columns / n) for j in range(n)]
            distance = float(nearest(squares, squares[chosen]).mean())
            if best is None or distance < best[0] - 1e-12:
                best = distance, np.array(sorted(set(chosen)))
    assert best is not None, "a grid holds at least one row of squares"
    return best[1]


@lru_cache(maxsize=4096)
def of_lattice(count: int, grid: tuple[int, int]) -> dict[str, float]:
    """`measures` of a lattice of `count` squares of a grid."""
    return _of(lattice(count, grid), grid)


@lru_cache(maxsize=4096)
def of_random(count: int, grid: tuple[int, int], draws: int = DRAWS) -> dict[str, float]:
    """Mean `measures` of `count` squares drawn at random; of large grids, whose measures vary less,
    fewer draws.
    """
    generator = np.random.default_rng(count)
    total = grid[0] * grid[1]
    draws = max(2, min(draws, draws * 576 // total))
    found = [_of(generator.permutation(total)[:count], grid) for _ in range(draws)]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _of(chosen: np.ndarray, grid: tuple[int, int]) -> dict[str, float]:
    squares = middles(grid)
    return measures(squares, squares[chosen], np.isin(np.arange(len(squares)), chosen), grid)


def expected_hits(total: int, drawn: int, special: int) -> float:
    """Chance that of `drawn` out of `total` tokens, drawn at random, one is `special` at least."""
    if drawn + special > total:
        return 1.0
    log = (
        math.lgamma(total - special + 1) - math.lgamma(total - special - drawn + 1)
        - math.lgamma(total + 1) + math.lgamma(total - drawn + 1)
    )  # fmt: skip
    return -math.expm1(log)
