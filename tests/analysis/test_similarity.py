"""Similarity of states: planted mixing, planted readers, and a slow oracle."""

import itertools

import numpy as np
import pytest

from analysis.similarity import cka, components, folds, held_out, hsic, jackknife


def kernel(x):
    return x @ x.T


def test_the_estimate_is_the_mean_over_all_quadruples():
    """The definition as a U-statistic (Song et al. 2012, eq. 4), term by term."""
    rng = np.random.default_rng(0)
    k, m = (kernel(rng.normal(size=(7, 3))) for _ in range(2))
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
        for i, j, q, r in itertools.permutations(range(7), 4)
    ]
    assert hsic(k, m) == pytest.approx(np.mean(terms))
    with pytest.raises(ValueError, match="4 or more"):
        hsic(k[:3, :3], m[:3, :3])


def test_equal_states_are_1_and_independent_ones_0_though_wider_than_many():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 200))
    turned = x @ np.linalg.qr(rng.normal(size=(200, 200)))[0] * 3 + 5
    assert cka(kernel(x), kernel(turned)) == pytest.approx(1)
    found = [cka(kernel(x), kernel(rng.normal(size=(40, 200)))) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / len(found) ** 0.5 < 0.02
    assert np.isnan(cka(kernel(x), np.ones((40, 40))))


def test_more_mixing_is_more_alike():
    rng = np.random.default_rng(2)
    text, visual = rng.normal(size=(2, 60, 30))
    found = [
        cka(kernel(text), kernel(a * text + (1 - a) * visual)) for a in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert all(a < b for a, b in itertools.pairwise(found))
    assert abs(found[0]) < 0.15 and found[-1] == pytest.approx(1)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(3).normal(size=30)
    whole, low, high = jackknife(lambda rows: float(values[rows].mean()), range(30))
    assert whole == pytest.approx(values.mean())
    error = values.std(ddof=1) / 30**0.5
    assert (low, high) == pytest.approx((whole - 1.96 * error, whole + 1.96 * error))
    assert np.isnan(jackknife(lambda rows: 0.0, ["a", "a", "b"])[1])


def test_the_jackknife_leaves_out_whole_pictures():
    """Every value twice: as sure as once."""
    values = np.random.default_rng(4).normal(size=30)
    once = jackknife(lambda rows: float(values[rows].mean()), range(30))
    double = np.repeat(values, 2)
    twice = jackknife(lambda rows: float(double[rows].mean()), np.repeat(range(30), 2))
    assert twice == pytest.approx(once)


def tokens(rng, questions=60, each=12, width=10):
    """States of tokens, half of them wanted, of questions with a state each; 3 a picture."""
    question = np.repeat(np.arange(questions), each)
    wanted = np.tile(np.arange(each) % 2 == 0, questions)
    states = rng.normal(size=(len(question), width))
    text = rng.normal(size=(questions, width))[question]
    return states, text, wanted, question, folds(question // 3, 5, 0)


def test_what_is_planted_is_read_and_noise_is_not():
    rng = np.random.default_rng(5)
    states, text, wanted, question, fold = tokens(rng)
    noise = list(held_out(states, wanted, question, fold).values())
    assert len(noise) == 60 and 0.42 < np.mean(noise) < 0.58
    states[:, 3] += 8.0 * wanted
    assert np.mean(list(held_out(states, wanted, question, fold).values())) > 0.99


def test_only_a_reader_that_knows_the_question_tells_what_it_asks_for():
    """Wanted tokens are those on the question's side: a product, which no state has alone."""
    rng = np.random.default_rng(6)
    states, text, _, question, fold = tokens(rng, questions=200)
    text = np.sign(text)
    wanted = states[:, 2] * text[:, 4] > 0
    alone = list(held_out(states, wanted, question, fold).values())
    both = list(held_out(states, wanted, question, fold, text, rank=10).values())
    assert 0.42 < np.mean(alone) < 0.58 and np.mean(both) > 0.9


def test_a_picture_is_in_one_fold_and_folds_are_seeded():
    names = np.repeat([f"p{i}" for i in range(11)], 4)
    fold = folds(names, 5, 1)
    assert all(len(set(fold[names == name])) == 1 for name in set(names))
    assert sorted(np.unique(fold)) == [0, 1, 2, 3, 4]
    assert (fold == folds(names, 5, 1)).all() and (fold != folds(names, 5, 2)).any()


def test_components_are_white_and_leave_out_what_does_not_vary():
    states = np.random.default_rng(7).normal(size=(50, 4)) * [5, 2, 1, 0]
    found = components(states, 10)(states)
    assert found.shape == (50, 3)
    assert np.allclose(np.cov(found, rowvar=False), np.eye(3), atol=1e-6)
