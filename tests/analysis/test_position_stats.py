"""Arithmetic of positional bias, on planted biases."""

from math import comb

import numpy as np
import pytest
import torch

from analysis import position_stats as stats
from analysis.position_table import Key, Tally
from tests.visiondrop import models
from visiondrop import VisionDrop
from visiondrop.methods.tome import ToMe
from visiondrop.scoring import top_tokens, uniform_column_mean

NAN = float("nan")


def test_the_top_is_the_methods_own():
    values = np.array([3.0, 1, 3, 2, 3, 2])
    for k in range(1, 7):
        expected = top_tokens(torch.tensor(values)[None], k)[0].tolist()
        assert stats.top(values, k).tolist() == expected
    assert stats.top(values, 2).tolist() == [0, 2]


def test_a_planted_slope_is_found_and_a_flat_score_has_none():
    values = np.ones(100)
    values[:10], values[-10:] = 3.0, 1.5
    assert stats.first_to_last(values) == 2.0
    assert stats.first_to_last(values[::-1]) == 0.5
    values[0], values[-1] = 8, 2
    assert stats.end_to_end(values) == 4.0
    assert stats.first_to_last(np.full(576, 0.3)) == 1.0
    # 36 tokens: tenths of three.
    assert stats.first_to_last(np.arange(1.0, 37)) == pytest.approx(2 / 35)


def test_curves_are_means_over_parts_with_mean_one():
    values = np.repeat([1.0, 2.0, 3.0], 5) * 7
    assert stats.binned(values, 3).tolist() == [0.5, 1.0, 1.5]
    uneven = stats.binned(np.arange(10.0), 3)  # parts of 4, 3 and 3 tokens
    assert uneven == pytest.approx(np.array([1.5, 5.0, 8.0]) / 4.5)
    assert np.isnan(stats.binned(np.ones(2), 4)).sum() == 2


def test_the_line_of_uniform_attention_falls_by_what_a_loop_says():
    n, start = 50, 7
    loop = [sum(1 / (start + i + 1) for i in range(j, n)) / n for j in range(n)]
    assert uniform_column_mean(n, start).numpy() == pytest.approx(np.array(loop), rel=1e-5)
    assert stats.first_to_last(np.array(loop)) > 10


def test_a_centre_of_mass():
    places = np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75], [NAN, NAN]])
    assert stats.centre_of_mass(places) == (0.5, 0.5)
    assert stats.centre_of_mass(places, np.array([0, 0, 3, 1, 99])) == (0.75, 0.375)
    assert np.isnan(stats.centre_of_mass(places, np.zeros(5))).all()


def test_profiles_by_row_and_column():
    grid = (2, 3)
    # Two tokens in square 0, none in square 5, one that shows nothing.
    squares = np.array([0, 0, 1, 2, 3, 4, -1])
    means = stats.by_square(np.array([2.0, 4, 3, 3, 1, 1, 1000]), squares, 6)
    assert means[:5].tolist() == [3, 3, 3, 1, 1] and np.isnan(means[5])
    overall = 11 / 5
    assert stats.by_line(means, grid, "row") == pytest.approx([3 / overall, 1 / overall])
    assert stats.by_line(means, grid, "column") == pytest.approx(
        [2 / overall, 2 / overall, 3 / overall]
    )


def test_a_set_turned_upside_down():
    grid = (3, 2)
    assert stats.mirrored(np.arange(6), grid).tolist() == [4, 5, 2, 3, 0, 1]
    assert stats.mirrored(np.array([-1, 5]), grid).tolist() == [-1, 1]
    upright, turned = np.array([0, 1, 2]), np.array([4, 5, 2])
    assert stats.overlap(stats.mirrored(upright, grid), turned) == 1.0
    assert stats.overlap(upright, turned) == 0.2
    assert np.isnan(stats.overlap(np.array([-1]), np.array([-1])))


def test_overlap_by_chance_is_that_of_the_hypergeometric_distribution():
    n, k = 60, 12
    exact = sum(
        comb(k, both) * comb(n - k, k - both) / comb(n, k) * both / (2 * k - both)
        for both in range(k + 1)
    )
    found = stats.chance_overlap(np.arange(n), k, draws=3000)
    assert found == pytest.approx(exact, abs=0.005)
    assert exact == pytest.approx(k / (2 * n - k), abs=0.01)


def test_hits():
    kept = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
    true = np.array([1, 0, 0, 1, 0, 0], dtype=bool)
    assert stats.hits(kept, true) == (0.5, pytest.approx(1 / 3))
    assert np.isnan(stats.hits(kept, np.zeros(6, dtype=bool))[0])


def test_correlations():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    assert stats.correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert stats.correlation(a, np.append(b[:-1], NAN)) == pytest.approx(
        np.corrcoef(a[:-1], b[:-1])[0, 1]
    )
    assert np.isnan(stats.correlation(a, np.ones(50)))
    assert stats.ranks(np.array([5.0, 1, 5, 9])).tolist() == [2.5, 1, 2.5, 4]


@pytest.mark.parametrize(
    ("place", "content", "patch"), [(0.0, 0.0, 0.0), (0.6, 0.2, 0.0), (0.1, 0.5, 0.3), (0, 1, 0)]
)
def test_shares_of_a_planted_sum_are_found(place, content, patch):
    """score = place + content of the picture + prior of the patch + noise, of known variances."""
    rng = np.random.default_rng(1)
    n, pictures, orders = 576, 12, 3
    of_place, of_patch = rng.normal(size=(2, n))
    noise = max(0.0, 1 - place - content - patch)
    by_place, by_patch, owner = [], [], []
    for i in range(pictures):
        own = rng.normal(size=n)
        for _ in range(orders):
            where = rng.permutation(n)  # where[p]: place of patch p
            score = place**0.5 * of_place[where] + content**0.5 * own + patch**0.5 * of_patch
            score = score + noise**0.5 * rng.normal(size=n)
            by_patch.append(score)
            by_place.append(score[where.argsort()])
            owner.append(i)
    by_place, by_patch, owner = map(np.array, (by_place, by_patch, owner))
    assert stats.mean_with_others(by_place, owner).mean() == pytest.approx(place, abs=0.06)
    assert stats.mean_with_others(by_patch, owner).mean() == pytest.approx(patch, abs=0.06)
    own = [stats.mean_with_others(by_patch[owner == i], np.arange(orders)) for i in range(pictures)]
    assert np.mean(own) == pytest.approx(content + patch, abs=0.06)


def test_mean_with_others_against_a_loop():
    rng = np.random.default_rng(2)
    rows, groups = rng.normal(size=(5, 9)), [0, 0, 1, 1, 2]
    for i, found in enumerate(stats.mean_with_others(rows, groups)):
        others = [j for j in range(5) if groups[j] != groups[i]]
        loop = np.mean([np.corrcoef(rows[i], rows[j])[0, 1] for j in others])
        assert found == pytest.approx(loop)
    assert np.isnan(stats.mean_with_others(rows[:2], [0, 0])).all()


def prefill(method):
    prompt = models.batch([models.prompt(3, 4)])
    with method(models.tiny()) as trace, torch.inference_mode():
        models.tiny()(**prompt, pixel_values=models.pixels(1), logits_to_keep=1)
    return trace.samples[0]


@pytest.mark.parametrize(
    "method",
    [
        VisionDrop(encoder=(14, 4), llm={2: (10, 3), 4: (7, 2), 6: (4, 1)}),
        VisionDrop(llm={2: (10, 0)}),
        ToMe(12),
    ],
)
def test_what_is_left_at_the_end_is_what_the_fates_say(method):
    sample = prefill(method)
    kept, merged = stats.kept_at_the_end(sample)
    # An independent account: each patch's fate through all stages.
    _, fates = sample.fates()[-1]
    tokens = [token for fate, token in fates.values() if fate != "dropped"]
    alive = set(tokens)
    assert set(kept) | set(merged) == alive
    assert not set(kept) & set(merged)
    assert len(kept) + len(merged) == sample.tokens_per_layer[-1]
    # A token that stands for several patches is a merged one.
    assert {token for token in alive if tokens.count(token) > 1} <= set(merged)


def test_a_trace_without_a_stage_says_nothing():
    with pytest.raises(ValueError, match="no stage"):
        stats.kept_at_the_end(prefill(VisionDrop()))


def test_a_tally_gives_means_with_intervals_and_profiles():
    tally = Tally()
    key = Key("scores", "visual", "4")
    for picture, value in zip("abcd", (1.0, 2.0, 3.0, 6.0), strict=True):
        measures = {"centre_y": (value, 0.5), "first_last_ratio": (2.0**value, 1.0)}
        measures["recall"] = (NAN if picture == "a" else 0.25, 0.1)
        tally.add(key, picture, measures)
        tally.profile(key, "by_row", np.array([value, NAN if picture == "a" else 1.0]))
    tally.add(Key("methods", "lone"), "a", {"centre_y": (0.3, 0.5)})
    table = tally.table().set_index(["name", "measure", "at"])
    row = table.loc["visual", "centre_y", -1]
    assert (row["mean"], row["n"], row["neutral"]) == (3.0, 4, 0.5)
    assert 1.0 <= row["low"] < 3.0 < row["high"] <= 6.0
    # Ratios: the geometric mean, so that 2 and 1/2 are no bias.
    assert table.loc["visual", "first_last_ratio", -1]["mean"] == pytest.approx(8.0)
    assert table.loc["visual", "first_last_ratio", -1]["neutral"] == pytest.approx(1.0)
    assert table.loc["visual", "recall", -1]["n"] == 3
    assert table.loc["visual", "by_row", 0]["mean"] == 3.0
    assert table.loc["visual", "by_row", 1]["mean"] == 1.0
    assert table.loc["visual", "by_row", 1]["n"] == 3
    assert np.isnan(table.loc["lone", "centre_y", -1]["low"])


def test_intervals_of_a_mean_over_pairs_are_as_wide_as_it_varies():
    """Rows with a common profile: the mean correlation over pairs, by many fresh draws of rows."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=60)

    def draw():
        strength = rng.uniform(0.2, 1.8, 16)[:, None]  # rows differ in how much they share
        rows = strength * common + rng.normal(size=(16, 60))
        return stats.mean_with_others(rows, np.arange(16))

    means, implied = [], []
    for _ in range(400):
        own = draw()
        means.append(own.mean())
        wide = stats.of_pairs(own)
        assert wide.mean() == pytest.approx(own.mean())
        implied.append(wide.std(ddof=1) / 4)
    assert 0.8 < np.mean(implied) / np.std(means) < 1.25
