"""Means of groups, and intervals that agree with the paired bootstrap's own."""

import numpy as np
import pandas as pd
import pytest

from analysis.summaries import column_means, summarise
from llava.eval.intervals import bootstrap_intervals


def test_columns_without_gaps_have_the_intervals_of_the_bootstrap():
    values = np.random.default_rng(0).normal(size=(40, 3))
    clusters = [i // 4 for i in range(40)]
    assert column_means(values, clusters, 500) == bootstrap_intervals(
        values, clusters, resamples=500
    )


def test_gaps_are_left_out_column_by_column():
    nan = float("nan")
    values = np.array([[1.0, nan, nan], [3.0, 5.0, nan], [nan, 7.0, nan], [2.0, nan, nan]])
    found = column_means(values, ["a", "a", "b", "c"], 200)
    assert [one.n for one in found] == [3, 2, 0]
    assert [one.clusters for one in found] == [2, 2, 0]
    assert found[0].difference == 2 and found[1].difference == 6
    assert np.isnan(found[2].difference) and np.isnan(found[2].low)
    alone = column_means(values[:2], ["a", "a"])
    assert alone[0].difference == 2 and np.isnan(alone[0].low)


def test_draws_that_hold_nothing_of_a_column_do_not_widen_its_interval():
    values = np.full((10, 2), np.nan)
    values[[2, 7], 0] = 0.8, 0.9
    values[:, 1] = 1.0
    found = column_means(values, list(range(10)), 2000)[0]
    assert found.difference == pytest.approx(0.85) and found.clusters == 2
    assert 0.8 <= found.low <= found.high <= 0.9


def test_groups_are_averaged_in_their_order():
    table = pd.DataFrame(
        {
            "method": ["z", "a", "z", "a"],
            "picture": [1, 1, 2, 2],
            "value": [1.0, 2.0, 3.0, np.nan],
            "other": [0.0, 0.0, 1.0, 1.0],
        }
    )
    found = summarise(table, ["method"], ["value", "other"], "picture", ends=["other"])
    assert found["method"].tolist() == ["z", "a"]
    assert found["value"].tolist() == [2.0, 2.0]
    assert found["other"].tolist() == [0.5, 0.5]
    assert found["pictures"].tolist() == [2, 2] and found["n"].tolist() == [2, 2]
    assert found["other_low"].tolist() == pytest.approx([0, 0])
    assert found["other_high"].tolist() == pytest.approx([1, 1])
