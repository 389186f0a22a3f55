"""McNemar's exact test: do two runs differ in how many of the same questions they get right?

Only questions that one run gets right and the other wrong say anything; if the runs were equally
good, each of those would fall to either side like a coin (McNemar 1947, exact form).  Made for
scores that are 0 or 1, and for questions that are independent draws: several questions on one
picture are not, which the intervals of `llava.eval.intervals` heed and this test does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llava.eval.benchmarks.base import Scores


@dataclass(frozen=True)
class McNemar:
    """The test's outcome.

    Attributes:
        lost: questions that the first run got right and the second wrong.
        gained: the other way round.
        n: all questions.
        p: two-sided; 1 where nothing differs.
    """

    lost: int
    gained: int
    n: int
    p: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def mcnemar(first: Sequence[float], second: Sequence[float]) -> McNemar | None:
    """The exact test on the same questions' scores; None where a score is neither 0 nor 1.

    Raises ValueError for lengths that differ."""
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} scores and {len(second)}: a paired test needs both on the same questions"
        )
    if not set(first) | set(second) <= {0, 1}:
        return None
    from scipy.stats import binomtest

    lost = sum(a > b for a, b in zip(first, second))
    gained = sum(a < b for a, b in zip(first, second))
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return McNemar(lost, gained, len(first), p)


def units(scores: Scores) -> list[float]:
    """What the test is about: each question's score, or each unit of which the headline is the
    share (in MMBench a question with all its rotations).

    Other headline numbers (F1, MME's sums) are no share of anything; there it is the answers."""
    parts = scores.parts
    if parts is not None and parts.shape[1] == 2 and {*parts.ravel().tolist()} <= {0, 1}:
        return [float(point) for point, counts in parts.tolist() if counts]
    return list(scores.per_sample)


def paired_units(first: Scores, second: Scores) -> tuple[list[float], list[float]]:
    """What the test of two runs is about, the same for both: whole questions only where both runs
    count the same ones. (Few F1 parts can look like shares in one run and not in the other.)"""
    one, other = first.parts, second.parts
    alike = one is not None and other is not None and one.shape == other.shape
    if alike and (one[:, 1::2] == other[:, 1::2]).all():  # type: ignore[index]
        return units(first), units(second)
    return list(first.per_sample), list(second.per_sample)
