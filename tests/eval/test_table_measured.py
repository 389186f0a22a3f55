"""Milliseconds of the efficiency table come from a profile; other cells say that there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval.errors import EvalError
from llava.eval.tables.command import main
from llava.eval.tables.efficiency import HEAD, NOT_MEASURED
from visiondrop import profile

NAME = "table3_efficiency"


def made_profile(folder: Path, **settings: Any) -> Path:
    """The file of a formula run, with times written into two of its rows as a GPU run would."""
    path = folder / "profile.json"
    arguments = ["--preset", "llava-1.5-7b", "--method", "full,visiondrop,random,tome"]
    arguments += ["--tokens", "64", "--flops", "--no-count", "--json", str(path)]
    assert profile.main(arguments) == 0
    content = json.loads(path.read_text())
    content["settings"] |= {"timed": True, "device": "cuda", "batch": 1, "repeats": 9}
    content["settings"] |= {"weights": "random", **settings}
    content["machine"]["device"] = "Some GPU"
    for row, median in zip(content["rows"], (200.0, 100.0, None, 50.0), strict=True):
        if median:
            row["ttft_ms"] = {"low": median - 1, "median": median, "high": median + 2, "count": 9}
    path.write_text(json.dumps(content))
    return path


def table(folder: Path, *more: str) -> dict[tuple[str, str, str], list[str]]:
    """Rows of the written table by (model, method, asked)."""
    out = folder / "table"
    arguments = ["--methods", "visiondrop,random,tome", "--tokens", "64", "--results", str(out)]
    assert main([NAME, *arguments, *more]) == 0
    found, model = {}, ""
    for line in (out / f"{NAME}.md").read_text().splitlines():
        model = line[3:] if line.startswith("## ") else model
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(HEAD):
            found[model, cells[0], cells[1]] = cells
    return found


def test_times_stand_where_they_were_measured(tmp_path: Path) -> None:
    rows = table(tmp_path, "--measured", str(made_profile(tmp_path)))
    ms = {key: cells[HEAD.index("ms to first token")] for key, cells in rows.items()}
    assert ms["llava-1.5-7b", "full", "-"] == "200.0 (199.0 to 202.0)"
    assert ms["llava-1.5-7b", "visiondrop", "64"] == "100.0 (99.0 to 102.0)"
    assert ms["llava-1.5-7b", "tome", "64"] == "50.0 (49.0 to 52.0)", "no formula, but a time"
    assert ms["llava-1.5-7b", "random", "64"] == NOT_MEASURED
    assert ms["llava-next-7b", "full", "-"] == NOT_MEASURED
    text = (tmp_path / "table" / f"{NAME}.md").read_text()
    assert "llava-1.5-7b: Some GPU, float16, sdpa, weights: random" in text and "9 turns" in text


def test_without_a_profile_no_cell_has_a_time(tmp_path: Path) -> None:
    at = HEAD.index("ms to first token")
    assert {cells[at] for cells in table(tmp_path).values()} == {
        "ms to first token", "---:", NOT_MEASURED, "-",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "cpu"}, "device cpu there, cuda in the table"),
        ({"layers": 2}, "layers 2 there, 32 in the table"),
        ({"text_tokens": 10}, "text_tokens 10 there, 66"),
        ({"batch": 4}, "batch 4 there, 1"),
        ({"timed": False}, "holds no times"),
        ({"model": "llava-1.5-13b"}, "it is of llava-1.5-13b; the table has llava-1.5-7b"),
    ],
)
def test_times_of_other_settings_are_refused(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = made_profile(tmp_path, **settings)
    with pytest.raises(EvalError, match=says):
        table(tmp_path, "--measured", str(path))
    assert not (tmp_path / "table").exists()


def test_other_files_and_other_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="No such file"):
        table(tmp_path, "--measured", str(tmp_path / "none.json"))
    other = tmp_path / "other.json"
    other.write_text('{"settings": {}}')
    with pytest.raises(EvalError, match="no profile; make it with"):
        table(tmp_path, "--measured", str(other))
    with pytest.raises(EvalError, match="only table3_efficiency has milliseconds"):
        main(["table1_llava15", "--measured", str(other)])
