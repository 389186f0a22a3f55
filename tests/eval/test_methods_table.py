"""The table of all methods: cells, intervals, marks, files and plot, on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.eval import methods_table, run_benchmark
from llava.eval.errors import EvalError
from llava.eval.intervals import paired_bootstrap
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.eval.methods_plot import series, spread_out
from tests.eval.conftest import TinyData, write_data
from tests.eval.test_run_benchmark import flags, read, result

METHODS = "visiondrop,random,uniform,pyramiddrop,divprune"


@pytest.fixture(scope="module")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Questions whose right answers are what `uniform` says, so that scores differ."""
    folder = tmp_path_factory.mktemp("own")
    made = write_data(folder / "textvqa")
    more = ("--methods", "uniform", "--batch-size", "4", "--max-new-tokens", "3")
    assert run_benchmark.main(flags(tiny_model, made, folder / "out", *more)) == 0
    entries = json.loads(made.annotations.read_text())["data"]
    for entry, row in zip(entries, read(folder / "out/textvqa/uniform-9/answers.jsonl")):
        entry["answers"] = [row["text"]] * 10
    made.annotations.write_text(json.dumps({"data": entries}))
    return made


@pytest.fixture(scope="module")
def made(
    tiny_model: Path, data: TinyData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[str]]:
    """Answers, results and flags of a table over two budgets, stopped once between them."""
    folder = tmp_path_factory.mktemp("methods")
    args = [
        *("--data", str(data.folder), "--model-path", str(tiny_model), "--nproc", "1"),
        *("--out", str(folder / "out"), "--results", str(folder / "results"), "--tokens", "9,6"),
        *("--methods", METHODS, "--batch-size", "4", "--max-new-tokens", "3", "--workers", "0"),
        *("--dtype", "float32"),
    ]
    run, calls = run_benchmark.main, []

    def stop_at_the_second_budget(argv: list[str]) -> int:
        calls.append(argv)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(argv)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_benchmark, "main", stop_at_the_second_budget)
        with pytest.raises(KeyboardInterrupt):
            methods_table.main(args)
    first = (folder / "results" / "methods_textvqa.md").read_text()
    assert "## 6 tokens" in first and "## 9 tokens" not in first, "whole budgets, as they come"
    assert methods_table.main(args) == 0
    return folder / "out" / "textvqa", folder / "results", args


def test_every_cell_stands_in_the_files(made: tuple[Path, Path, list[str]]) -> None:
    out, results, _ = made
    with (results / "methods_textvqa.csv").open(newline="") as stream:
        rows = {(r["method"], r["asked"]): r for r in csv.DictReader(stream)}
    expected = {(m, t) for m in METHODS.split(",") for t in ("9", "6")} | {("full", "")}
    assert set(rows) == expected
    for (method, asked), row in rows.items():
        stored = result(out / f"{method}-{asked or 36}")
        assert float(row["accuracy"]) == pytest.approx(stored["score"], abs=1e-4)
        assert float(row["mean_tokens"]) == pytest.approx(stored["mean_tokens"], abs=1e-4)
        assert bool(row["spread"]) == (method == "random")
    assert rows["pyramiddrop", "6"]["layers"] == "1 4 6", "an average of 6 needs an earlier drop"
    assert rows["divprune", "9"]["place"] == "before the LLM"
    assert rows["visiondrop", "9"]["place"] == "before and inside"
    assert rows["random", "9"]["place"] == rows["full", ""]["place"] == "control"
    assert rows["pyramiddrop", "9"]["place"] == "inside the LLM"


def test_intervals_are_those_of_the_answers(
    made: tuple[Path, Path, list[str]], data: TinyData
) -> None:
    out, results, _ = made
    entries = json.loads(data.annotations.read_text())["data"]
    evaluator = TextVQAAccuracyEvaluator()

    def scores(folder: Path) -> np.ndarray:
        rows = read(folder / "answers.jsonl")
        return np.array([evaluator.score(r["text"], e["answers"]) for r, e in zip(rows, entries)])

    random = np.mean([scores(out / "random-9" / f"seed-{s}") for s in (0, 1, 2)], axis=0)
    with (results / "methods_textvqa.csv").open(newline="") as stream:
        rows = {(r["method"], r["asked"]): r for r in csv.DictReader(stream)}
    pictures = [entry["image_id"] for entry in entries]
    for reference, other in (("visiondrop", scores(out / "visiondrop-9")), ("random", random)):
        interval = paired_bootstrap(100 * scores(out / "uniform-9"), 100 * other, pictures)
        for name, value in (
            ("difference", interval.difference),
            ("low", interval.low),
            ("high", interval.high),
        ):
            found = float(rows["uniform", "9"][f"{name}_{reference}"])
            assert found == pytest.approx(value, abs=1e-4)
    assert rows["visiondrop", "9"]["low_visiondrop"] == ""
    assert rows["full", ""]["low_visiondrop"] == "", "no reference at its budget"


def test_markdown_marks_what_surely_differs(made: tuple[Path, Path, list[str]]) -> None:
    out, results, _ = made
    text = (results / "methods_textvqa.md").read_text()
    assert "| method | place | 9 | 6 |" in text and "bash scripts/tables/methods.sh`" in text
    with (results / "methods_textvqa.csv").open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r["asked"]]
    overview = {
        line.split(" | ")[0][2:]: line.strip("| ").split(" | ")[2:]
        for line in text.split("## ")[0].splitlines()
        if line.startswith("| ")
    }
    for row in rows:
        cell = overview[row["method"]][0 if row["asked"] == "9" else 1]
        low, high = row["low_visiondrop"], row["high_visiondrop"]
        sure = bool(low) and (float(low) > 0 or float(high) < 0)
        assert cell.startswith(f"{float(row['accuracy']):.1f}")
        assert ("▲" in cell or "▼" in cell) == sure
    assert "100.0 ▲" in overview["uniform"], "it is right by construction"
    assert "| full | control | - | 36.0 |" in text and "| vs full | relative |" in text
    assert f"The unpruned model: {result(out / 'full-36')['score']:.1f}." in text


def test_a_second_time_nothing_is_computed(
    made: tuple[Path, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava.eval import running

    _, results, args = made
    before = {p.name: p.read_bytes() for p in results.iterdir() if p.suffix != ".png"}
    monkeypatch.setattr(running, "load_model", lambda *_: pytest.fail("the model was loaded"))
    assert methods_table.main(args) == 0
    assert {p.name: p.read_bytes() for p in results.iterdir() if p.suffix != ".png"} == before


def test_cells_over_other_questions_are_refused(
    made: tuple[Path, Path, list[str]], data: TinyData
) -> None:
    out, _, _ = made
    results = methods_table.collect(out)
    answers = out / "uniform-9" / "answers.jsonl"
    whole = answers.read_text()
    answers.write_text("\n".join(whole.splitlines()[:12]) + "\n")
    try:
        with pytest.raises(EvalError, match="uniform-9 answers other questions"):
            methods_table.compare_all(out, results, data.folder)
    finally:
        answers.write_text(whole)


def test_plot_shows_each_method_at_its_true_mean(made: tuple[Path, Path, list[str]]) -> None:
    out, results, _ = made
    found = series(methods_table.collect(out))
    points = found["inside the LLM"]["pyramiddrop"]
    assert [x for x, _ in points] == [
        result(out / f"pyramiddrop-{t}")["mean_tokens"] for t in (6, 9)
    ], "rising in tokens"
    assert "full" not in {label for place in found.values() for label in place}
    with Image.open(results / "methods_textvqa.png") as image:
        assert image.width > 900 and len(image.convert("L").getcolors(256)) > 10


def test_names_at_the_lines_ends_do_not_overlap() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 12):
        places = list(generator.uniform(0, 10, count))
        moved = spread_out(places, 1.0)
        ordered = sorted(moved)
        assert all(b - a >= 1 - 1e-9 for a, b in zip(ordered, ordered[1:]))
        assert np.mean(moved) == pytest.approx(np.mean(places))
        assert np.argsort(moved).tolist() == np.argsort(places).tolist()
    assert spread_out([0.0, 5.0, 9.0], 1.0) == [0.0, 5.0, 9.0]
