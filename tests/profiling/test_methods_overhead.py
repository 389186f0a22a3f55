"""The benchmark of all methods' choices: that its figures are what it says. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import methods
from benchmarks.methods_report import LIMIT, Row, cells, markdown, over_limit
from benchmarks.overhead import Stopwatch
from benchmarks.setting import QUESTION, prompt, random_clip, random_model
from visiondrop.adapters import geometry_of
from visiondrop.methods import build_method

NAMES = ("visiondrop", "fastv", "tome", "trim", "vista", "uniform")
SMALL = ["--geometry", "tiny", "--patches", "36", "--tokens", "18", "6", "--warmup", "0"]
SMALL += ["--repeats", "2", "--text-tokens", "8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("benchmark")
    files = ["--json", str(folder / "new" / "m.json"), "--markdown", str(folder / "new" / "m.md")]
    return folder / "new", methods.main([*SMALL, *files, "--methods", *NAMES])


def test_each_case_is_measured_or_says_why_not(made: tuple[Path, list[Row]]) -> None:
    folder, rows = made
    assert {(row.method, row.tokens) for row in rows} == {(n, t) for n in NAMES for t in (18, 6)}
    model, _ = random_model("tiny", torch.float32, "cpu", 84)
    geometry = geometry_of(model)
    for row in rows:
        if row.reason:
            assert row.share is None and cells(row)[3] == row.reason
            continue
        args = {"clip": str(random_clip("tiny", folder / "clip"))} if row.method == "trim" else {}
        plan = build_method(row.method, row.tokens, geometry=geometry, args=args).ledger(4, 36)
        assert row.mean_tokens == pytest.approx(sum(plan) / 4)
        assert row.choosing is not None and row.share is not None
        assert row.choosing > 0 and row.tower is not None and row.tower > 0
        if row.share_llm is not None:
            assert row.share_llm > row.share, "the rest holds the tower, too"
    reasons = {(row.method, row.tokens): row.reason for row in rows if row.reason}
    assert reasons["vista", 18] == "takes no budget"
    assert reasons["fastv", 6].startswith("not reachable, least is 9")
    stages = {row.method: row.stages for row in rows if row.tokens == 18 and not row.reason}
    assert stages["visiondrop"] == 4, "encoder and three LLM stages were timed"
    assert stages["uniform"] == stages["trim"] == stages["fastv"] == 1
    assert stages["tome"] == 2, "every block of the tower that is read"


def test_stopped_it_goes_on(
    made: tuple[Path, list[Row]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, rows = made
    files = ["--json", str(folder / "m.json")]
    monkeypatch.setattr(methods, "measure", lambda *_: pytest.fail("measured again"))
    assert methods.main([*SMALL, *files, "--methods", *NAMES]) == rows
    with pytest.raises(SystemExit, match="figures of other settings"):
        methods.main([*SMALL, *files, "--methods", "uniform", "--text-tokens", "9"])


def test_the_report_tells_what_is_above_the_limit(made: tuple[Path, list[Row]]) -> None:
    folder, rows = made
    text = (folder / "m.md").read_text()
    for row in rows:
        assert f"| {' | '.join(cells(row))} |" in text
    over = {row.method for row in rows if row.share is not None and row.share > LIMIT}
    assert {line.split("**")[1] for line in over_limit(rows)} == over
    assert all(f"**{name}**" in text for name in over)
    llm = {row.method for row in rows if row.share_llm is not None and row.share_llm > LIMIT}
    assert {line.split("**")[1] for line in over_limit(rows, "share_llm")} == llm >= over - {"tome"}
    assert "python -m benchmarks.methods --geometry tiny" in text
    settings = json.loads((folder / "m.json").read_text())["settings"]
    assert "None." in markdown([Row("a", 4, 2, 2.0, 1, 0.1, 9.0, 1.0, 0.01, (0.01, 0.01), 0.011)],
                               settings, "x")  # fmt: skip


@pytest.mark.parametrize("name", ["visiondrop", "divprune", "trim", "tome"])
def test_watching_changes_nothing(name: str, tmp_path: Path) -> None:
    model, _ = random_model("tiny", torch.float32, "cpu", 84)
    inputs = prompt(model, 8)
    args = {"clip": str(random_clip("tiny", tmp_path / "clip"))} if name == "trim" else {}
    logits = []
    for watched in (False, True):
        method = build_method(name, 18, geometry=geometry_of(model), args=args)
        if watched:
            methods.Watch(method, Stopwatch(model.device))
        with torch.inference_mode(), method(model, questions=[QUESTION]):
            logits.append(model(**inputs, logits_to_keep=1).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--patches", "577"], "square number"),
        (["--methods", "fastvv"], "unknown; known: visiondrop"),
        (["--device", "cuda"], "cannot time cuda"),
    ],
)
def test_bad_arguments_end_before_any_compute(arguments, says, capsys):
    with pytest.raises(SystemExit):
        methods.main(arguments)
    assert says in capsys.readouterr().err
