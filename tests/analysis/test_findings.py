"""The numbers of docs/findings.md: a wrong one is found, and the page holds what was measured."""

import dataclasses
import sys
import types

import pandas as pd
import pytest

from analysis import findings
from analysis.findings import Finding, Measured, Plan, Study
from llava.eval.errors import EvalError

ROWS = [
    {"score": "a", "layer": 1, "mean": 0.5, "low": 0.4, "high": 0.6, "n": 30},
    {"score": "b", "layer": 1, "mean": 0.7, "low": 0.6, "high": 0.8, "n": 30},
]


@pytest.fixture
def plan(monkeypatch):
    module = types.ModuleType("study_of_nothing")
    module.rows = [dict(row) for row in ROWS]

    def main(argv):
        folder = argv[argv.index("--out") + 1]
        path = findings.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(module.rows).to_csv(path / "t.csv", index=False)
        return 0

    module.main = main
    monkeypatch.setitem(sys.modules, "study_of_nothing", module)
    study = Study("study_of_nothing", ("--limit", "9"), ("--limit", "3"))
    one = Finding("one", "claim", "the mean of a", "s", "t", {"score": "a", "layer": 1}, "mean")
    plan = Plan({"s": study}, [one])
    return plan, module


def test_what_is_measured_is_the_row_that_was_meant(plan, tmp_path):
    found = findings.measure(plan[0], findings.LENGTHS, tmp_path)
    assert found["one"]["long"] == found["one"]["short"] == Measured(0.5, 0.4, 0.6, 30)


@pytest.mark.parametrize(
    ("where", "says"),
    [({"layer": 1}, "2 rows"), ({"score": "c"}, "0 rows"), ({"none": 1}, "no column 'none'")],
)
def test_a_row_that_is_not_one_is_refused(plan, tmp_path, where, says):
    other = dataclasses.replace(plan[0].findings[0], where=where)
    with pytest.raises(EvalError, match=says):
        findings.measure(Plan(plan[0].studies, [other]), ["short"], tmp_path)


def test_a_number_that_leaves_its_interval_is_found(plan, tmp_path):
    kept = findings.measure(plan[0], findings.LENGTHS, tmp_path)
    assert findings.check(plan[0], kept, tmp_path, ()) == {"one": ""}
    plan[1].rows[0]["mean"] = 0.63
    assert "where the short run had 0.5" in findings.check(plan[0], kept, tmp_path, ())["one"]
    plan[1].rows[0]["mean"] = 0.54
    assert findings.check(plan[0], kept, tmp_path, ()) == {"one": ""}
    plan[1].rows[0] |= {"mean": 0.54, "low": 0.53, "high": 0.6}
    kept["one"]["long"] = Measured(0.2, 0.1, 0.3, 90)
    assert "nothing in common" in findings.check(plan[0], kept, tmp_path, ())["one"]
    del kept["one"]["long"]
    with pytest.raises(EvalError, match="measure --only s"):
        findings.check(plan[0], kept, tmp_path, ())


def test_a_study_that_is_none_is_named(plan, tmp_path):
    with pytest.raises(EvalError, match="no study is called 'x'; there are s"):
        findings.measure(plan[0], ["short"], tmp_path, ["x"])


def test_numbers_are_kept_and_filled_into_the_page(plan, tmp_path):
    kept = findings.measure(plan[0], findings.LENGTHS, tmp_path)
    findings.write_kept(kept, tmp_path / "kept.json")
    assert findings.read_kept(tmp_path / "kept.json") == kept
    page = "before\n<!-- findings:begin claim -->\nold\n<!-- findings:end -->\nafter\n"
    filled = findings.fill(page, plan[0], kept)
    assert "| the mean of a | 0.500 [0.400, 0.600] | 30 |" in filled
    assert "Made by `python -m study_of_nothing --limit 9`." in filled
    assert "old" not in filled and filled.startswith("before") and filled.endswith("after\n")
    assert findings.fill(filled, plan[0], kept) == filled
    with pytest.raises(EvalError, match="marks"):
        findings.fill("no marks", plan[0], kept)


def test_the_page_holds_what_was_measured_at_both_lengths():
    """`analysis.findings check`, a step of scripts/test.sh, measures it again."""
    plan, kept = findings.read_plan(), findings.read_kept()
    assert {finding.name for finding in plan.findings} == set(kept)
    assert all(set(lengths) == set(findings.LENGTHS) for lengths in kept.values())
    page = findings.PAGE.read_text(encoding="utf-8")
    assert findings.fill(page, plan, kept) == page
    script = findings.Path("scripts/test.sh").read_text(encoding="utf-8")
    assert "-m analysis.findings check" in script
    for name, lengths in kept.items():
        long, short = lengths["long"], lengths["short"]
        assert long.low <= long.value <= long.high, name
        # The few pictures of the short run say about the same as the many.
        assert short.low <= long.high and long.low <= short.high, name
