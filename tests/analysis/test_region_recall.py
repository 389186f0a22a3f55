"""Recall of planted sets of tokens, against counting one by one."""

import itertools
import math

import numpy as np
import pytest

from analysis.kept_sets import Span
from analysis.region_recall import chance_of, group_of, missed, recall, wanted
from analysis.shown import shown_by
from llava.eval.oracle import Oracle
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.methods.controls import Uniform
from visiondrop.trace import SampleTrace

THINGS = [(0, 1, 6, 7), (10, 11), (20,), (33, 34)]


def plain(rows=6, columns=6):
    return shown_by(SampleTrace(None, [4], [4], 1), (rows, columns), (600, 600))


def span(kept, merged=()):
    return Span(0, 4, tuple(kept), tuple(sorted({*kept, *merged})))


def test_a_question_needs_what_it_names_and_what_it_does_not():
    need = wanted([10, 11, 20], [10, 11], THINGS)
    assert (need.named, need.unnamed) == ({10, 11}, {20})
    assert need.needed == ((10, 11), (20,))
    assert need.beside == {0, 1, 6, 7, 33, 34}


def test_recall_counts_each_part():
    need = wanted([0, 1, 6, 7, 10, 11], [0, 1, 6, 7], THINGS)
    found = recall(span([-1, 0, 7, 12, 33], merged=[10]), plain(), need)
    assert found["patches"] == 4  # CLS shows nothing
    assert (found["named"], found["unnamed"], found["region"]) == (0.5, 0, 2 / 6)
    assert (found["named_merged"], found["unnamed_merged"]) == (0.5, 0.5)
    assert found["gap"] == 0.5 and found["gap_merged"] == 0
    for part in ("named", "unnamed", "region"):
        assert found[f"{part}_chance"] == pytest.approx(4 / 36)
    assert found["gap_chance"] == pytest.approx(0)
    assert found["complete"] == 0
    assert (found["spent_named"], found["spent_unnamed"]) == (0.5, 0)
    assert (found["spent_beside"], found["spent_nothing"]) == (0.25, 0.25)
    assert found["spent_unnamed_even"] == pytest.approx(2 / 36)
    assert sum(found[f"spent_{p}"] for p in ("named", "unnamed", "beside", "nothing")) == 1
    assert recall(span([0, 11]), plain(), need)["complete"] == 1


def test_what_is_not_asked_for_is_not_known():
    found = recall(span([3]), plain(), wanted([10, 11], [10, 11], THINGS))
    assert math.isnan(found["unnamed"]) and math.isnan(found["gap"])
    assert found["named"] == 0


def test_an_oracle_keeps_all_and_uniform_its_share_on_average():
    squares = plain(24, 24)
    generator = np.random.default_rng(0)
    uniform = Uniform(64).choose(lambda: [], 1, 576)[0].tolist()
    found = []
    for i in range(400):
        # A thing anywhere, 3 x 2 squares; the first row is named.
        top, left = generator.integers(0, 22), generator.integers(0, 21)
        region = [(top + r) * 24 + left + c for r in range(2) for c in range(3)]
        need = wanted(region, region[:3], [region])
        key = str(i)
        oracle = Oracle(64, {key: region}).patches(key, 576)
        best = recall(span(oracle), squares, need)
        assert best["named"] == best["unnamed"] == best["complete"] == 1
        found.append(recall(span(uniform), squares, need))
    for name in ("named", "unnamed"):
        assert np.mean([one[name] for one in found]) == pytest.approx(64 / 576, rel=0.1)
        assert found[0][f"{name}_chance"] == pytest.approx(64 / 576)


def test_chance_is_the_mean_over_all_draws_where_two_tokens_show_a_square():
    grid = TileGrid(1, 2, (8, 4), 2)
    squares = shown_by(SampleTrace(None, [4], [4], 1, grids=[grid]), (2, 2), (8, 4))
    ids = sorted(squares.places)
    assert len(ids) == 12
    wanted_squares = [0, 3, 5]
    exact = np.mean(
        [squares.by(drawn)[wanted_squares].mean() for drawn in itertools.combinations(ids, 3)]
    )
    assert chance_of(wanted_squares, squares, 3) == pytest.approx(exact)


def test_things_that_nothing_shows():
    squares = plain()
    found = missed(span([1, 20]), squares, THINGS)
    assert found["missed"] == 0.5
    lost = [
        np.mean([not set(thing) & set(drawn) for thing in THINGS])
        for drawn in itertools.combinations(range(36), 2)
    ]
    assert found["missed_chance"] == pytest.approx(np.mean(lost))


def test_kinds_have_groups():
    kinds = {
        "near_color": "relation", "is_near_shape": "relation", "chain_shape": "relation",
        "place_color": "place", "is_place_shape": "place", "count": "counting",
        "is_height": "comparison", "is_color": "one thing", "color": "one thing",
        "is_shape": "one thing", "word": "reading", "": "",
    }  # fmt: skip
    assert {kind: group_of(kind) for kind in kinds} == kinds
