"""Overlap of what methods keep: against enumeration, and with itself and with chance."""

from itertools import combinations

import numpy as np
import pytest

from analysis import agreement
from analysis.agreement import KeptSets, agree, chance_iou, iou
from analysis.retained_looks import one_of_each, parse_methods, plan
from analysis.setting import open_setting
from llava.eval.errors import EvalError


@pytest.mark.parametrize(
    ("a", "b", "total"), [(3, 3, 6), (2, 4, 6), (0, 2, 5), (5, 4, 6), (1, 6, 6)]
)
def test_chance_is_the_mean_over_all_pairs_of_sets(a, b, total):
    every = [
        iou(frozenset(one), frozenset(other))
        for one in combinations(range(total), a)
        for other in combinations(range(total), b)
    ]
    assert chance_iou(a, b, total) == pytest.approx(np.mean(every))


def test_chance_at_the_ends():
    assert chance_iou(0, 0, 5) == iou(frozenset(), frozenset()) == 1
    assert chance_iou(2880, 2880, 2880) == pytest.approx(1)
    with pytest.raises(ValueError, match="7 and 3 patches out of 6"):
        chance_iou(7, 3, 6)


def kept(*sets, layers=4):
    return KeptSets(tuple((first, frozenset(own)) for first, own in sets), layers, 10)


def test_layers_are_compared_with_what_each_saw():
    staged = kept((0, range(10)), (1, range(4)), (3, range(2)))
    early = kept((0, (2, 3)))
    found = agree(staged, early)
    assert found["end"] == (0, chance_iou(2, 2, 10), 1)
    # Layer 0 of all 10: 2/10; layers 1 and 2 of 4: 2/4; layer 3: none.
    assert found["layers"][0] == pytest.approx((0.2 + 0.5 + 0.5 + 0) / 4)
    chances = [chance_iou(n, 2, 10) for n in (10, 4, 4, 2)]
    assert found["layers"][1] == pytest.approx(np.mean(chances))
    assert found["layers"][2] == pytest.approx((0.2 + 0.5 + 0.5 + 1) / 4)
    turned = agree(early, staged)
    assert all(turned[at] == pytest.approx(found[at]) for at in found)


@pytest.fixture(scope="module")
def looked():
    setting = open_setting(limit=60, batch_size=5)
    labels = parse_methods("visiondrop,fastv,random,random+seed=1")
    cases = one_of_each(setting, 10)
    assert len({case.picture for case in cases}) == 10
    assert len({setting.cases.index(case) % 6 for case in cases}) == 6
    return agreement.tables(setting, plan(setting, labels, [64]), cases)


def test_with_itself_all_and_of_random_sets_what_chance_gives(looked):
    pairs, _ = looked
    same = pairs[pairs["a"] == pairs["b"]]
    assert len(same) == 8 and (same["iou"] == 1).all() and (same["most"] == 1).all()
    drawn = pairs[(pairs["a"] == "random") & (pairs["b"] == "random+seed=1")]
    for row in drawn.itertuples():
        assert row.chance == pytest.approx(chance_iou(64, 64, 576))
        # 64 of 576, ten pictures: the mean of ten draws is within four standard errors.
        assert abs(row.iou - row.chance) < 0.025
    assert (pairs["iou"] <= pairs["most"] + 1e-9).all()
    assert (pairs["n"] == 10).all() and (pairs["pictures"] == 10).all()
    assert ((pairs["low"] <= pairs["iou"]) & (pairs["iou"] <= pairs["high"])).all()


def test_of_regions_random_keeps_its_share(looked):
    _, regions = looked
    rows = regions.set_index("method")
    for label in ("random", "random+seed=1"):
        assert rows.loc[label, "kept"] == 64
        assert rows.loc[label, "chance"] == pytest.approx(64 / 576)
        assert rows.loc[label, "low"] < 64 / 576 < rows.loc[label, "high"] + 0.1
    # 38 tokens at the end, of which CLS may be one.
    assert 37 <= rows.loc["visiondrop", "kept"] <= 38
    assert rows.loc["visiondrop", "region"] > rows.loc["visiondrop", "chance"]


def test_numbers_have_names_and_a_figure(looked, tmp_path):
    found = agreement.findings(looked[0])
    assert found["visiondrop~visiondrop@64/end"] == 1
    assert 0 < found["visiondrop~random@64/layers/chance"] < 0.2
    paths = agreement.plot(looked[0], tmp_path / "agreement", {"visiondrop": "VisionDrop"})
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_one_method_has_nobody_to_agree_with():
    setting = open_setting(limit=8)
    with pytest.raises(EvalError, match="two methods"):
        agreement.compute(setting, plan(setting, ["visiondrop"], [64]), setting.cases)
