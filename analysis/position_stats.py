"""Arithmetic of positional bias: what of a score, or of a kept set, goes with the place.

Pure functions on arrays. A score is [n] over the visual tokens in their order in the sequence;
places are [n, 2], (y, x) in 0..1 of the picture (`analysis.places.centres`); squares are [n], the
patch of a (rows, columns) grid in which each token lies, -1 for tokens that show nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.overlap import iou
from visiondrop.trace import SampleTrace

__all__ = [
    "binned",
    "by_line",
    "by_square",
    "centre_of_mass",
    "chance_overlap",
    "correlation",
    "end_to_end",
    "first_to_last",
    "hits",
    "kept_at_the_end",
    "mean_with_others",
    "mirrored",
    "of_pairs",
    "overlap",
    "ranks",
    "top",
]

TENTH = 0.1


def top(values: np.ndarray, k: int) -> np.ndarray:
    """[k], rising, the tokens with the highest values; among equals the earlier one, as in
    `visiondrop.scoring.top_tokens`.
    """
    return np.sort(np.argsort(-values, kind="stable")[:k])


def binned(values: np.ndarray, bins: int) -> np.ndarray:
    """[bins] float64, means over equal parts of the sequence, divided by the mean of `values`.

    Token i belongs to part floor(i bins / n); a part without a token (n < bins) is NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    part = np.arange(len(values)) * bins // len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.bincount(part, values, bins) / np.bincount(part, minlength=bins)
        return means / values.mean()


def first_to_last(values: np.ndarray, share: float = TENTH) -> float:
    """Mean of the first `share` of the sequence over the mean of the last; 1 without a bias.

    The shares have max(1, floor(share n)) tokens each.
    """
    values = np.asarray(values, dtype=np.float64)
    count = max(1, int(share * len(values)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(values[:count].mean() / values[-count:].mean())


def end_to_end(values: np.ndarray) -> float:
    """First token over last token."""
    return first_to_last(values, 1 / len(values))


def centre_of_mass(places: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """(y, x) in 0..1 of the mean place, weighted; (0.5, 0.5) without a bias. Places that are NaN do
    not count; NaN where nothing does.
    """
    weights = np.ones(len(places)) if weights is None else np.asarray(weights, dtype=np.float64)
    known = ~np.isnan(places[:, 0])
    total = weights[known].sum()
    if total == 0:
        return float("nan"), float("nan")
    y, x = (places[known] * weights[known, None]).sum(0) / total
    return float(y), float(x)


def by_square(values: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    """[count] float64, the mean value of the tokens in each square of a grid; NaN where none is."""
    values = np.asarray(values, dtype=np.float64)
    shown = squares >= 0
    with np.errstate(invalid="ignore"):
        return np.bincount(squares[shown], values[shown], count) / np.bincount(
            squares[shown], minlength=count
        )


def by_line(square_means: np.ndarray, grid: tuple[int, int], axis: str) -> np.ndarray:
    """[rows] or [columns], means over the squares [rows * columns] of each "row" or "column", over
    the mean of all of them: 1 everywhere without a bias. NaN squares do not count.
    """
    table = np.asarray(square_means, dtype=np.float64).reshape(grid)
    known = ~np.isnan(table)
    along = 1 if axis == "row" else 0
    whole = np.where(known, table, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (whole.sum(along) / known.sum(along)) / (whole.sum() / known.sum())


def mirrored(squares: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The squares where each lies after the picture is turned upside down; -1 stays."""
    rows, columns = grid
    row, column = np.divmod(squares, columns)
    return np.where(squares < 0, -1, (rows - 1 - row) * columns + column)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two sets of squares, -1 left out; NaN where both are empty."""
    return iou(np.unique(first[first >= 0]), np.unique(second[second >= 0]))


def chance_overlap(squares: np.ndarray, k: int, draws: int = 200, seed: int = 0) -> float:
    """Mean `overlap` of two sets of k of the tokens, drawn at random and independently.

    Close to k / (2 n - k) where each of n tokens has a square of its own.
    """
    rng = np.random.default_rng(seed)
    n = len(squares)
    pairs = (
        (squares[rng.permutation(n)[:k]], squares[rng.permutation(n)[:k]]) for _ in range(draws)
    )
    return float(np.mean([overlap(*pair) for pair in pairs]))


def hits(kept: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """(recall, precision) of the kept tokens [n] bool against the true ones [n] bool.

    Recall: the share of the true ones that are kept; precision: of the kept ones that are true.
    NaN where there are none.
    """
    both = float((kept & true).sum())
    found, wanted = float(kept.sum()), float(true.sum())
    nan = float("nan")
    return (both / wanted if wanted else nan, both / found if found else nan)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's r over the places where both are known; NaN where one of them does not vary."""
    known = ~(np.isnan(first) | np.isnan(second))
    if known.sum() < 2:
        return float("nan")
    a = np.asarray(first[known], dtype=np.float64)
    b = np.asarray(second[known], dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """[..., n] float64, ranks along the last axis, equals sharing their mean; NaN stays NaN."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1, nan_policy="omit"), dtype=np.float64)


def mean_with_others(rows: np.ndarray, groups: Sequence[int] | np.ndarray) -> np.ndarray:
    """[r], the mean correlation of each of r rows [r, n] with all rows of other groups.

    Where a row is the sum of a common profile, something of its own, and noise, all independent,
    the expectation is the share of the variance that the common profile makes up. NaN for a row
    without others, or that does not vary.
    """
    rows = np.asarray(rows, dtype=np.float64)
    own = np.asarray(groups)
    centred = rows - rows.mean(1, keepdims=True)
    norm = np.sqrt((centred**2).sum(1, keepdims=True))
    unit = np.divide(centred, norm, out=np.full_like(centred, np.nan), where=norm > 0)
    table = unit @ unit.T
    table[own[:, None] == own[None, :]] = np.nan
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(known, table, 0).sum(1) / known.sum(1)


def of_pairs(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """[r], values whose mean is that of `values` and whose spread is twice theirs.

    A mean over pairs of pictures varies with each picture through both members: by Hoeffding's
    projection twice as much as the mean of r independent values, each a picture's mean with all
    others, would. So widened, an interval that draws pictures is right.
    """
    values = np.asarray(values, dtype=np.float64)
    middle = values.mean()
    return middle + 2 * (values - middle)


def kept_at_the_end(sample: SampleTrace, picture: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(kept, merged), patch ids of the visual tokens after the last stage.

    A merged token stands for others as well, since any of the stages; its id is its reference's. A
    trace without a stage has dropped nothing, and cannot say what there was: `ValueError`.
    """
    stages = [stage for stage in sample.stages if stage.picture == picture]
    if not stages:
        raise ValueError("no stage acted on this picture, so the trace names no tokens")
    identity = stages[0].identity.cpu().numpy()
    merged = np.zeros(len(identity), dtype=bool)
    for stage in stages:
        if stage.source is None or stage.contextual is None:
            continue
        source = stage.source.cpu().numpy()
        merged = stage.contextual.cpu().numpy() | merged[source]
        identity = identity[source]
    return identity[~merged], identity[merged]
