"""What the benchmarks of choosing and of a whole evaluation write; no time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import choosing, evaluation_speed


def test_an_evaluation_from_the_plain_way_to_the_fastest(tmp_path: Path) -> None:
    out, table = tmp_path / "e.json", tmp_path / "e.md"
    few = ["--questions", "4", "--each", "2", "--batch-size", "4", "--max-new-tokens", "2"]
    files = ["--json", str(out), "--markdown", str(table)]
    evaluation_speed.main([*few, "--repeats", "1", *files])
    content = json.loads(out.read_text())
    first, *others = content["cases"]
    assert (first["method"], first["batch"], first["way"], first["ratio"]) == (
        "full",
        1,
        "apart",
        1,
    )
    assert {case["way"] for case in others} == {"apart", "off", "cache"}
    for case in content["cases"]:
        assert case["rate"] > 0 and case["same_texts"] == 4, "each way gives the same texts"
        assert case["ratio"] == pytest.approx(case["rate"] / first["rate"])
    assert "python -m benchmarks.evaluation_speed --questions 4" in table.read_text()


def test_the_parts_of_choosing_add_up(tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    choosing.main(["--repeats", "1", "--json", str(out)])
    content = json.loads(out.read_text())
    ms = {row["part"].lstrip("- "): row["ms"] for row in content["rows"]}
    assert ms["choosing"] == pytest.approx(ms["encoder stage"] + ms["LLM stages"], rel=1e-6)
    assert ms["choosing and packing"] == pytest.approx(ms["choosing"] + ms["packing"], rel=1e-6)
    whole = next(row for row in content["rows"] if row["part"] == "choosing")
    rest = content["prefill_ms"] - ms["choosing"]
    assert whole["share"] == pytest.approx(ms["choosing"] / rest, rel=1e-6)
    assert content["reuse"]["saved"] > 0
