"""The GPU script's dry run on the CPU, and the table of aims made of its file. What may go wrong in
it: test_gpu_failures.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import aims, efficiency
from llava.eval.errors import EvalError

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ("prefill", "decode", "first_token")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cells, in two goes."""
    path = tmp_path_factory.mktemp("gpu") / "gpu_efficiency.json"
    start = ["--dry-run", "--json", str(path)]
    assert efficiency.main([*start, "--only", "kernel,choosing:llava-1.5-7b"]) == 0
    first = json.loads(path.read_text())
    assert set(first["cells"]) == {"kernel", "choosing:llava-1.5-7b"}
    assert efficiency.main(start) == 0
    whole = json.loads(path.read_text())
    assert list(whole["cells"])[:2] == list(first["cells"]), "what was there stays"
    assert whole["cells"]["kernel"] == first["cells"]["kernel"], "and is not measured again"
    return path


def test_every_cell_says_what_it_must(written: Path) -> None:
    content = json.loads(written.read_text())
    cells = content["cells"]
    assert set(cells) == set(efficiency.names()) and content["settings"]["dry_run"] is True
    assert not content["errors"]
    for name, cell in cells.items():
        kind = name.partition(":")[0]
        if kind in RECORDED:
            ratios = cell["faster"]
            assert cell["yardstick"] in ("stock", "full", "full+graphs")
            assert ("stock" in ratios) == (kind == "first_token")
            step = "decode" if kind == "decode" else "prefill"
            assert cell["paths"]["visiondrop+graphs"][f"{step}:graph"] > 0
            assert f"{step}:graph" not in cell["paths"]["visiondrop"]
            pairs = {"full", "full+graphs", "visiondrop", "visiondrop+graphs"}
            assert set(ratios) - {"stock"} == pairs
            assert ratios[cell["yardstick"]]["median"] == 1
            assert min(cell["ms"][label]["low"] for label in ratios) > 0
    for variant in ("visiondrop", "visiondrop+graphs"):
        assert 0 < cells["choosing:llava-1.5-7b"][variant]["of_rest"]["median"] < 10
    recorded = cells["first_token:llava-next-7b"]["recording"]
    assert recorded["visiondrop+graphs"]["recordings"] > recorded["full+graphs"]["recordings"] > 0
    rises = cells["memory:llava-next-7b"]["bytes"]
    assert {"full", "full+graphs", "visiondrop", "visiondrop+graphs"} <= set(rises)
    assert cells["kernel"]["1x2x2x30x40x16"]["chunks"]["relative"] < 1e-3


def test_cells_of_another_commit_are_not_mixed(written: Path) -> None:
    with pytest.raises(EvalError, match="another commit"):
        efficiency.main(["--dry-run", "--json", str(written), "--commit", "0123"])
    with pytest.raises(EvalError, match="no cell"):
        efficiency.main(["--dry-run", "--only", "nothing"])


def test_the_table_of_aims(written: Path, tmp_path: Path) -> None:
    """Filled from a file; figures that are not there say so."""
    rows = {aim.what: aim for aim in aims.AIMS if aim.file == efficiency.RESULT.name}
    assert len(rows) >= 8
    for aim in rows.values():
        assert aim.cells(tmp_path)[3] == aims.NOT_MEASURED
        if aim.read is aims.memory:  # resident memory of a small process may not have risen
            continue
        measured = aim.cells(written.parent)
        assert measured[3] != aims.NOT_MEASURED and measured[4] in ("yes", "**no**")
    speed = aims.Aim("a", "GPU", 3, False, "x.json", lambda c: c["v"])
    limit = aims.Aim("a", "GPU", 0.02, True, "x.json", lambda c: c["v"] / 100, "%")
    for value, faster, less in ((1.0, "**no**", "yes"), (3.0, "yes", "**no**")):
        (tmp_path / "x.json").write_text(json.dumps({"v": value}))
        assert speed.cells(tmp_path)[2:] == ["at least 3.00x", f"{value:.2f}x", faster]
        assert limit.cells(tmp_path)[2:] == ["at most 2.00%", f"{value:.2f}%", less]


def test_the_worst_of_what_tells_the_same_counts(tmp_path: Path) -> None:
    ratios = {"full": 1.0, "visiondrop": 0.2, "full+graphs": 1.0, "visiondrop+graphs": 0.3}
    cell = {"cells": {"memory:llava-next-7b": {"of_full": ratios}}}
    assert aims.memory(cell) == 0.3
    with pytest.raises(KeyError):
        ratios.pop("visiondrop+graphs")
        aims.memory(cell)
    for most, worst in ((True, "0.90x"), (False, "0.40x")):
        aim = aims.Aim(
            "a", "CPU", 0.5, most, "a.json", lambda c: c["v"], also=(("b.json", lambda c: c["w"]),)
        )
        (tmp_path / "a.json").write_text('{"v": 0.4}')
        (tmp_path / "b.json").unlink(missing_ok=True)
        assert aim.cells(tmp_path)[3] == "0.40x"
        (tmp_path / "b.json").write_text('{"w": 0.9}')
        assert aim.cells(tmp_path)[3:] == [worst, "**no**"]


def test_the_page_shows_this_table() -> None:
    text = (ROOT / "docs" / "efficiency.md").read_text(encoding="utf-8")
    shown = text.split(aims.BEGIN)[1].split(aims.END)[0].strip()
    assert shown == aims.table(aims.RESULTS).strip(), "python -m benchmarks.gpu.aims --into it"
