"""Overlap of top tokens with a region, against truths known beforehand."""

import itertools

import numpy as np
import pytest

from analysis.overlap import area_under, chance, expected_iou, iou, names, overlap, top

TOTAL, SIZE, TOKENS = 40, 6, 10


def region(rng):
    wanted = np.zeros(TOTAL, bool)
    wanted[rng.choice(TOTAL, SIZE, replace=False)] = True
    return wanted


def test_an_oracle_finds_everything_and_its_opposite_nothing():
    wanted = region(np.random.default_rng(0))
    scores = np.stack([wanted * 1.0, wanted * -1.0])
    best, worst = (dict(zip(names(TOKENS), row)) for row in overlap(scores, wanted, TOKENS))
    assert best == {
        "auc": 1, "recall": 1, "precision": 1, "iou": 1, "lift": TOTAL / SIZE,
        "recall_10": 1, "precision_10": SIZE / TOKENS, "iou_10": SIZE / TOKENS,
    }  # fmt: skip
    assert set(worst.values()) == {0}


def test_random_scores_find_what_chance_says():
    rng = np.random.default_rng(1)
    wanted = region(rng)
    scores = rng.random((20_000, TOTAL))
    found = overlap(scores, wanted, TOKENS)
    error = found.std(0) / len(found) ** 0.5
    assert (abs(found.mean(0) - chance(SIZE, TOTAL, TOKENS)) < 4 * error).all()


def test_a_score_that_is_uniform_has_an_area_of_one_half():
    wanted = region(np.random.default_rng(2))
    assert area_under(np.ones((3, TOTAL)), wanted).tolist() == [0.5] * 3
    assert top(np.ones(TOTAL), 3).tolist() == [0, 1, 2]  # the earlier token wins


def test_the_area_is_how_often_a_wanted_token_wins():
    rng = np.random.default_rng(3)
    wanted = region(rng)
    scores = rng.integers(0, 5, TOTAL)  # many ties
    pairs = [
        (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
        for i in np.flatnonzero(wanted)
        for j in np.flatnonzero(~wanted)
    ]
    assert area_under(scores, wanted) == pytest.approx(np.mean(pairs))
    assert np.isnan(area_under(scores, np.ones(TOTAL, bool)))


def test_the_expected_overlap_is_the_mean_over_all_draws():
    total, size, drawn = 7, 3, 4
    whole = [iou(np.arange(size), np.array(d)) for d in itertools.combinations(range(total), drawn)]
    assert expected_iou(size, drawn, total) == pytest.approx(np.mean(whole))
    assert expected_iou(5, 7, 7) == pytest.approx(5 / 7)
    assert iou(np.array([1, 2, 3]), np.array([3, 4])) == 0.25
    assert np.isnan(iou(np.array([]), np.array([])))


def test_budgets_beyond_the_picture_keep_all_of_it():
    wanted = region(np.random.default_rng(4))
    found = dict(zip(names(64), overlap(np.arange(TOTAL), wanted, 64)))
    assert (found["recall_64"], found["iou_64"]) == (1, SIZE / TOTAL)
    assert dict(zip(names(64), chance(SIZE, TOTAL, 64)))["iou_64"] == pytest.approx(SIZE / TOTAL)


def test_a_region_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no token is wanted"):
        overlap(np.ones(4), np.zeros(4, bool), 2)
