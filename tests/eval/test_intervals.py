"""Paired bootstrap intervals: against theory, against a loop, and by how often they are right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llava.eval.comparing import Parts, compare
from llava.eval.intervals import bootstrap_intervals, paired_bootstrap


def test_independent_questions_give_the_t_interval() -> None:
    """400 independent draws, each a cluster of its own: Student's interval within 5 %."""
    generator = np.random.default_rng(1)
    scores, reference = generator.normal(0.3, 1, 400), generator.normal(0.1, 1, 400)
    found = paired_bootstrap(scores, reference, range(400))
    difference = scores - reference
    low, high = stats.t.interval(0.95, 399, difference.mean(), stats.sem(difference))
    assert found.difference == pytest.approx(difference.mean())
    assert found.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.high == pytest.approx(high, abs=0.05 * (high - low))
    assert (found.n, found.clusters) == (400, 400)


def test_against_a_loop_over_pictures() -> None:
    """Draws of whole pictures of unequal sizes, one after the other, as one would write it down."""
    generator = np.random.default_rng(2)
    names = [f"p{i}" for i in range(30) for _ in range(1 + i % 7)]
    differences = generator.normal(size=len(names)) + np.array([int(n[1:]) % 3 for n in names])
    found = paired_bootstrap(differences, np.zeros(len(names)), names)
    by_name = {n: [d for d, m in zip(differences, names) if m == n] for n in names}
    other = np.random.default_rng(3)
    means = []
    for _ in range(4000):
        drawn = [d for name in other.choice(list(by_name), len(by_name)) for d in by_name[name]]
        means.append(sum(drawn) / len(drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.high == pytest.approx(high, abs=0.05 * (high - low))


def f1(sums: np.ndarray) -> np.ndarray:
    """Of sums of 2 TP and of 2 TP + FP + FN, in percent."""
    return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)


def test_a_score_that_is_no_mean_against_a_loop_over_pictures() -> None:
    """The difference of two F1s, one of them averaged over two seeds."""
    generator = np.random.default_rng(4)
    pictures = [f"p{i}" for i in range(25) for _ in range(6)]
    label = generator.random(150) < 0.5
    said = [label ^ (generator.random(150) < noise) for noise in (0.1, 0.3, 0.35)]
    parts = [np.stack([2.0 * (s & label), s * 1.0 + label], axis=1) for s in said]
    results = [
        {"cell": name, "label": name, "tokens": 9, "budget": "average"} for name in ("a", "b")
    ]
    found = compare(results, {}, pictures, "a", Parts({"a": parts[:1], "b": parts[1:]}, f1))
    assert found.keys() == {"b"}
    names = np.array(pictures)

    def difference(chosen: np.ndarray) -> float:
        both = [f1(part[chosen].sum(0)) for part in parts]
        return float((both[1] + both[2]) / 2 - both[0])

    other = np.random.default_rng(5)
    drawn = []
    for _ in range(3000):
        picked = other.integers(0, 25, 25)
        drawn.append(difference(np.concatenate([np.flatnonzero(names == f"p{i}") for i in picked])))
    low, high = np.quantile(drawn, [0.025, 0.975])
    interval = found["b"]
    assert interval.difference == pytest.approx(difference(np.arange(150)))
    assert interval.low == pytest.approx(low, abs=0.06 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.06 * (high - low))
    assert (interval.n, interval.clusters) == (150, 25)


def synthetic(generator: np.random.Generator, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """240 differences about 60 pictures; half of the variance is the picture's."""
    names = np.repeat(np.arange(60), 4)
    differences = mean + generator.normal(size=60)[names] + generator.normal(size=240)
    return differences, names


def test_coverage() -> None:
    """Of 300 samples about 95 % of the intervals hold the true mean; question by question fewer."""
    generator = np.random.default_rng(4)
    covered = naive = 0
    for _ in range(300):
        differences, names = synthetic(generator, 0.2)
        by_picture = paired_bootstrap(differences, np.zeros(240), names, resamples=500)
        by_question = paired_bootstrap(differences, np.zeros(240), range(240), resamples=500)
        covered += by_picture.low <= 0.2 <= by_picture.high
        naive += by_question.low <= 0.2 <= by_question.high
    # Three standard deviations of a binomial(300, 0.95), widened by the percentile interval's bias.
    assert 0.90 <= covered / 300 <= 0.985
    assert naive / 300 < 0.85, "resampling questions would pretend to know too much"


def test_pairing_takes_out_what_both_share() -> None:
    generator = np.random.default_rng(5)
    hard = generator.normal(size=200)
    scores = hard + 0.1 + 0.05 * generator.normal(size=200)
    found = paired_bootstrap(scores, hard, range(200))
    assert found.certain and found.high - found.low < 0.03
    assert not paired_bootstrap(hard, hard, range(200)).certain


def test_seeded_and_the_same_alone_or_among_others() -> None:
    generator = np.random.default_rng(6)
    differences, names = generator.normal(size=(90, 3)), np.repeat(np.arange(30), 3)
    together = bootstrap_intervals(differences, list(names), seed=7)
    alone = paired_bootstrap(differences[:, 1], np.zeros(90), list(names), seed=7)
    for name, value in alone.to_dict().items():
        assert together[1].to_dict()[name] == pytest.approx(value)
    assert alone != paired_bootstrap(differences[:, 1], np.zeros(90), list(names), seed=8)
    order = generator.permutation(90)
    shuffled = bootstrap_intervals(differences[order], list(names[order]), seed=7)[1]
    assert shuffled.difference == pytest.approx(alone.difference)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1.0, 2.0], [1.0], ["a", "b"]), "same questions"),
        (([1.0, 2.0], [1.0, 1.0], ["a"]), "one row and one name"),
        (([1.0, 2.0], [1.0, 1.0], ["a", "a"]), "two pictures or more"),
    ],
)
def test_what_cannot_be_told_is_refused(arguments, says) -> None:
    with pytest.raises(ValueError, match=says):
        paired_bootstrap(*arguments)
