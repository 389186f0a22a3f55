"""How sure a difference is: paired bootstrap intervals, resampled by picture.

Two methods answer the same questions, so what is compared is the difference question by question.
Several questions share a picture and are no independent draws, so whole pictures are drawn (the
percentile bootstrap of Efron & Tibshirani 1993, chapter 13, over clusters as in Cameron, Gelbach &
Miller 2008).  The interval tells how the difference would vary with other pictures; the draws of a
seeded method are taken as they are, averaged.  What is no mean (F1, say) is made anew of each
draw's sums.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
CHUNK_CELLS = 2**21  # resamples x pictures that are drawn at a time


@dataclass(frozen=True)
class Interval:
    """A difference with its interval, in the unit of the scores.

    Attributes:
        difference: over all questions, score minus reference.
        low, high: the interval's ends.
        n: questions.
        clusters: pictures that they are about.
    """

    difference: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bootstrap_intervals(
    differences: np.ndarray,
    clusters: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of the column means of ``differences``, all from the same draws.

    Args:
        differences: [n, m], score minus reference of n questions in m comparisons.
        clusters: [n], what each question shares with others: its picture.
        confidence: of each interval.
        resamples: draws of as many pictures as there are, with replacement.
        seed: of the draws.

    Raises ValueError for fewer than two clusters, from which nothing can be told, and for lengths
    that differ.
    """
    differences = np.asarray(differences, dtype=np.float64)
    _check_rows(differences, clusters)
    return bootstrap_statistics(
        np.concatenate([differences, np.ones((len(differences), 1))], axis=1),
        clusters,
        lambda sums: sums[:, :-1] / sums[:, -1:],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _check_rows(values: np.ndarray, clusters: Sequence[Hashable]) -> None:
    if values.ndim != 2 or len(clusters) != len(values):
        raise ValueError(
            f"differences of shape {values.shape} and {len(clusters)} cluster names: give one row "
            "and one name a question"
        )


def bootstrap_statistics(
    values: np.ndarray,
    clusters: Sequence[Hashable],
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of m statistics of the column sums of ``values``, all from the same draws.

    Args:
        values: [n, k], what each of n questions adds.
        clusters: [n], what each question shares with others: its picture.
        statistic: column sums [r, k] of r draws -> [r, m].
        confidence, resamples, seed: as for `bootstrap_intervals`, which is this for means.

    Raises ValueError as `bootstrap_intervals` does.
    """
    values = np.asarray(values, dtype=np.float64)
    _check_rows(values, clusters)
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence {confidence} must lie between 0 and 1, resamples {resamples} be at least 1"
        )
    places: dict[Hashable, int] = {}
    member = np.array([places.setdefault(name, len(places)) for name in clusters])
    count = len(places)
    if count < 2:
        raise ValueError(f"{count} cluster(s): an interval needs two pictures or more")
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, member, values)
    middle = statistic(sums.sum(0, keepdims=True))[0]

    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // count)
    drawn_statistics = np.empty((resamples, len(middle)))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = generator.integers(count, size=(rows, count))
        drawn += count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        drawn_statistics[start : start + rows] = statistic(times @ sums)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn_statistics, [tail, 1 - tail], axis=0)
    return [
        Interval(float(middle[i]), float(low[i]), float(high[i]), len(values), count)
        for i in range(len(middle))
    ]


def paired_bootstrap(
    scores: Sequence[float],
    reference: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The interval of mean(scores - reference) over the same questions; see the module's text."""
    if len(scores) != len(reference):
        raise ValueError(
            f"{len(scores)} scores and {len(reference)} of the reference: a paired comparison "
            "needs both on the same questions"
        )
    difference = np.asarray(scores, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return bootstrap_intervals(
        difference[:, None], clusters, confidence=confidence, resamples=resamples, seed=seed
    )[0]
