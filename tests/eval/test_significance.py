"""McNemar's exact p against its definition, and what it is computed from."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from llava.eval.benchmarks import Scores
from llava.eval.significance import mcnemar, paired_units, units


def by_definition(lost: int, gained: int) -> Fraction:
    """Twice the smaller tail of a fair coin, at most 1."""
    n = lost + gained
    tail = sum(Fraction(comb(n, k), 2**n) for k in range(min(lost, gained) + 1))
    return min(Fraction(1), 2 * tail)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 1), (1, 5), (4, 4), (30, 11)])
def test_p_is_that_of_the_definition(lost: int, gained: int) -> None:
    first = [1.0] * lost + [0.0] * gained + [1.0] * 7 + [0.0] * 2
    second = [0.0] * lost + [1.0] * gained + [1.0] * 7 + [0.0] * 2
    found = mcnemar(first, second)
    assert found is not None
    assert (found.lost, found.gained, found.n) == (lost, gained, lost + gained + 9)
    assert found.p == pytest.approx(float(by_definition(lost, gained)), rel=1e-9)


def test_graded_scores_have_no_test_and_lengths_must_agree() -> None:
    assert mcnemar([0.3, 1.0], [1.0, 1.0]) is None
    with pytest.raises(ValueError, match="2 scores and 1"):
        mcnemar([1, 0], [1])


def test_units_are_questions_with_all_their_rotations() -> None:
    """Two questions of two rows each, and a row of a question that a limit cut."""
    circular = np.array([[1, 1], [0, 0], [0, 1], [0, 0], [0, 0]])
    assert units(Scores(50.0, [1, 1, 1, 0, 1], parts=circular)) == [1, 0]
    f1 = np.array([[2, 2], [0, 1], [0, 0]])  # of a yes/no benchmark with one category
    assert units(Scores(80.0, [1, 0, 1], parts=f1)) == [1, 0, 1]
    assert units(Scores(50.0, [1, 0])) == [1, 0]


def test_two_runs_are_tested_on_the_same_units() -> None:
    """F1 parts of a run without a hit look like shares; those of another do not."""
    few = Scores(0.0, [1, 0, 1], parts=np.array([[0.0, 1], [0, 1], [0, 0]]))
    hits = Scores(80.0, [1, 0, 1], parts=np.array([[2.0, 2], [0, 1], [0, 0]]))
    assert paired_units(few, hits) == paired_units(hits, few) == ([1, 0, 1], [1, 0, 1])
    whole = Scores(50.0, [1, 1, 0], parts=np.array([[1.0, 1], [0, 0], [0, 1]]))
    assert paired_units(whole, whole) == ([1, 0], [1, 0])
    assert paired_units(Scores(50.0, [1, 0]), Scores(0.0, [0, 0])) == ([1, 0], [0, 0])
