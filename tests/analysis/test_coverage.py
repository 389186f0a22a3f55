"""Coverage of planted sets of squares, against loops and numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from analysis import coverage


def of(chosen, grid):
    squares = coverage.middles(grid)
    shown = np.isin(np.arange(len(squares)), chosen)
    return coverage.measures(squares, squares[sorted(chosen)], shown, grid)


def by_loops(chosen, grid):
    """Distances and the largest hole, square by square: the slow oracle."""
    rows, columns = grid
    side = 1 / max(grid)
    kept = [divmod(c, columns) for c in chosen]
    distance = {
        (r, c): min(math.hypot(r - y, c - x) for y, x in kept) * side
        for r in range(rows)
        for c in range(columns)
    }
    best, downs = 0, []
    for size in range(1, min(grid) + 1):
        for top, left in itertools.product(range(rows - size + 1), range(columns - size + 1)):
            if not any(top <= y < top + size and left <= x < left + size for y, x in kept):
                if size > best:
                    best, downs = size, []
                downs.append((top + size / 2) / rows)
    halves = {"upper": [], "lower": []}
    for (r, _), d in distance.items():
        if 2 * r + 1 != rows:
            halves["lower" if 2 * r + 1 > rows else "upper"].append(d)
    return {
        "mean": sum(distance.values()) / len(distance),
        "far": max(distance.values()),
        "upper": sum(halves["upper"]) / len(halves["upper"]),
        "lower": sum(halves["lower"]) / len(halves["lower"]),
        "hole": best * side,
        "hole_down": sum(downs) / len(downs) if downs else math.nan,
        "in_lower": sum((2 * y + 1 > rows) + 0.5 * (2 * y + 1 == rows) for y, _ in kept)
        / len(kept),
    }


@pytest.mark.parametrize("grid", [(6, 6), (5, 8), (9, 4)])
@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_measures_are_those_of_loops(grid, count):
    total = grid[0] * grid[1]
    for seed in range(5):
        chosen = np.random.default_rng(seed).permutation(total)[:count].tolist()
        found, expected = of(chosen, grid), by_loops(chosen, grid)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, nan_ok=True), (name, chosen)


def test_everything_kept_leaves_no_hole():
    found = of(list(range(24)), (4, 6))
    assert (found["mean"], found["far"], found["hole"], found["in_lower"]) == (0, 0, 0, 0.5)
    assert math.isnan(found["hole_down"])


def test_a_corner_alone():
    found = of([0], (24, 24))
    assert found["far"] == pytest.approx(math.hypot(23, 23) / 24)
    assert found["hole"] == pytest.approx(23 / 24)
    assert found["in_lower"] == 0
    # Three squares of 23 x 23 are empty: one beside it, one below, one across.
    assert found["hole_down"] == pytest.approx((11.5 + 12.5 + 12.5) / 3 / 24)


def test_the_upper_half_kept_leaves_its_hole_below():
    found = of(list(range(12 * 24)), (24, 24))
    assert found["upper"] == 0 and found["in_lower"] == 0
    assert found["lower"] == pytest.approx((1 + 12) / 2 / 24)
    assert (found["hole"], found["hole_down"]) == (0.5, 0.75)


def test_the_left_half_kept_is_told_from_the_upper():
    found = of([r * 24 + c for r in range(24) for c in range(12)], (24, 24))
    assert found["upper"] == found["lower"] == pytest.approx(6.5 / 24 / 2)
    assert (found["hole"], found["hole_down"], found["in_lower"]) == (0.5, 0.5, 0.5)


def test_nothing_kept_is_as_far_as_the_picture_is_long():
    squares = coverage.middles((3, 4))
    found = coverage.measures(squares, np.empty((0, 2)), np.zeros(12, bool), (3, 4))
    assert found["mean"] == found["far"] == pytest.approx(math.hypot(2, 3) / 4)
    assert found["hole"] == 0.75 and math.isnan(found["in_lower"])


def test_a_lattice_is_the_regular_one_where_it_fits():
    # 64 = 8 x 8 in 24 x 24: every third square.
    third = [r * 24 + c for r in range(1, 24, 3) for c in range(1, 24, 3)]
    assert coverage.of_lattice(64, (24, 24))["mean"] <= of(third, (24, 24))["mean"] + 1e-12
    assert of(third, (24, 24))["hole"] == pytest.approx(2 / 24)


@pytest.mark.parametrize("count", [1, 6, 19, 38, 64, 192])
def test_a_lattice_lies_between_the_honeycomb_bound_and_chance(count):
    grid = (24, 24)
    chosen = coverage.lattice(count, grid)
    assert len(chosen) == count
    found, drawn = coverage.of_lattice(count, grid), coverage.of_random(count, grid)
    # Middles of squares lie apart from the squares' own points by at most half a diagonal.
    assert found["mean"] >= 0.377 / math.sqrt(count) - math.sqrt(0.5) / 24
    assert found["mean"] < 0.9 * drawn["mean"] if count > 1 else found["mean"] < drawn["mean"]
    assert found["mean"] < 1.35 * 0.377 / math.sqrt(count)


def test_random_draws_have_the_expected_distance():
    # Exact over all sets of 2 of 6 squares.
    grid = (2, 3)
    exact = np.mean([of(list(pair), grid)["mean"] for pair in itertools.combinations(range(6), 2)])
    assert coverage.of_random(2, grid, draws=4000)["mean"] == pytest.approx(exact, rel=0.03)


def test_expected_hits_are_those_of_all_draws():
    for total, drawn, special in [(7, 3, 2), (8, 1, 3), (6, 5, 2), (6, 0, 2), (6, 3, 0), (5, 5, 1)]:
        sets = list(itertools.combinations(range(total), drawn))
        exact = np.mean([any(i < special for i in one) for one in sets])
        assert coverage.expected_hits(total, drawn, special) == pytest.approx(exact)
    assert coverage.expected_hits(2880, 64, 1) == pytest.approx(64 / 2880)
