"""The table over question types and budgets, and its controls, on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from llava.eval import pocket_table, run_benchmark
from llava.eval.errors import EvalError
from llava.eval.loading import ModelChoice, load_model
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.eval.oracle import Oracle, even
from llava.eval.samples import read_questions
from tests.eval.conftest import TinyData
from visiondrop import Geometry, Uniform

METHODS = ("visiondrop", "random", "uniform", "oracle")


def test_even_is_the_uniform_methods_spacing() -> None:
    assert even(3, 36) == [6, 18, 30]
    assert even(4, 4) == [0, 1, 2, 3]


def test_oracle_keeps_the_region_and_spreads_the_rest() -> None:
    oracle = Oracle(6, {"a": [10, 11], "b": list(range(20)), "none": []})
    kept = oracle.patches("a", 36)
    assert {10, 11} <= set(kept) and len(set(kept)) == 6 and kept == sorted(kept)
    assert max(b - a for a, b in zip(kept, kept[1:])) <= 36 // 3
    assert set(oracle.patches("b", 36)) <= set(range(20)) and len(oracle.patches("b", 36)) == 6
    assert oracle.patches("none", 36) == even(6, 36)
    with pytest.raises(EvalError, match="does not know"):
        oracle.patches("c", 36)
    with pytest.raises(ValueError, match="1 to 36"):
        Oracle(37).check(Geometry(8, 36, True, (6, 6)))


def test_oracle_runs_as_planned(tiny_model: Path) -> None:
    """Where the region is empty the oracle is the uniform method, in the model too."""
    model = load_model(ModelChoice(str(tiny_model), device="cpu")).model
    ids = torch.tensor([[1, 5, -200, 7, 8, 9]])
    pixels = torch.rand(1, 3, 84, 84)
    logits = []
    for method in (Oracle(6, {"k": []}), Uniform(6), Oracle(6, {"k": [3, 4, 5]})):
        with torch.inference_mode(), method(model, keys=["k"]) as trace:
            out = model.generate(
                ids, images=pixels, max_new_tokens=1, do_sample=False,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        assert trace.samples[0].tokens_per_layer == method.ledger(8, 36) == [6] * 8
        logits.append(out.logits[0])
    assert {3, 4, 5} <= set(trace.samples[0].stages[0].kept)
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    assert (logits[2] - logits[1]).abs().max() > 1e-4


def test_best_constant_answer_against_brute_force(shared_data: TinyData) -> None:
    samples = read_questions(shared_data.questions)
    entries = json.loads(shared_data.annotations.read_text())["data"]
    evaluator = TextVQAAccuracyEvaluator()
    groups = {"t0": entries[0::2], "t1": entries[1::2]}
    found = pocket_table.constant_answer(samples, shared_data.folder)
    for name, group in groups.items():
        candidates = {answer for entry in group for answer in entry["answers"]}
        best = max(
            sum(evaluator.score(answer, entry["answers"]) for entry in group)
            for answer in candidates
        )
        assert found[name]["score"] == pytest.approx(100 * best / len(group))
        assert found[name]["n"] == len(group)
    assert found["all"]["score"] == pytest.approx((found["t0"]["score"] + found["t1"]["score"]) / 2)


def test_table_holds_every_cell_and_is_made_once(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    args = [
        *("--data", str(shared_data.folder), "--model-path", str(tiny_model), "--nproc", "1"),
        *("--out", str(tmp_path / "out"), "--results", str(results), "--tokens", "9,6"),
        *("--batch-size", "4", "--max-new-tokens", "3", "--workers", "0", "--dtype", "float32"),
    ]
    benchmark, steps = run_benchmark.main, []

    def stop_at_the_second_budget(argv: list[str]) -> int:
        steps.append(argv)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return benchmark(argv)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_benchmark, "main", stop_at_the_second_budget)
        with pytest.raises(KeyboardInterrupt):
            pocket_table.main(args)
    first = (results / "pocket_textvqa.md").read_text().splitlines()
    assert [line.split(" | ")[0][2:] for line in first[2:9]] == [
        pocket_table.FULL, pocket_table.BLANK, pocket_table.CONSTANT, *METHODS,
    ]  # fmt: skip
    assert pocket_table.main(args) == 0
    made = {path.name: path.read_bytes() for path in results.iterdir()}
    assert sorted(made) == [f"pocket_textvqa.{ending}" for ending in ("csv", "json", "md")]
    with (results / "pocket_textvqa.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    cells = {(r["method"], r["tokens"], r["type"]): r for r in rows}
    assert len(cells) == len(rows) == (3 + 2 * len(METHODS)) * 3
    for method in METHODS:
        stored = tmp_path / "out" / "seen" / "textvqa" / f"{method}-6" / "result.json"
        result = json.loads(stored.read_text())
        cell = cells[method, f"{result['mean_tokens']:g}", "all"]
        assert float(cell["accuracy"]) == pytest.approx(result["score"], abs=1e-4)
        assert bool(cell["spread"]) == (method == "random")
    markdown = made["pocket_textvqa.md"].decode().splitlines()
    assert markdown[0] == "| method | tokens | all (20) | t0 (10) | t1 (10) |"
    assert [line.split(" | ")[0] for line in markdown[2:5]] == [
        "| full", "| blank picture", "| best constant",
    ]  # fmt: skip
    lines = json.loads(made["pocket_textvqa.json"])
    assert all(line["method"] == pocket_table.CONSTANT or line["result"]["git_commit"] != ""
               for line in lines)  # fmt: skip
    capsys.readouterr()
    assert pocket_table.main(args) == 0, "a second time nothing is computed"
    assert "tiny-llava" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in results.iterdir()} == made


def test_answered_column_holds_the_types_that_need_the_picture():
    """Types in which the full model beats itself on blank pictures; others do not count."""

    def line(method: str, seen: float, guessed: float) -> dict:
        cells = {"all": {"score": 0.0, "n": 4}, "read": {"score": seen, "n": 3}}
        return {
            "method": method,
            "tokens": None,
            "cells": {**cells, "guess": {"score": guessed, "n": 1}},
        }

    lines = [
        line("full", 90.0, 50.0),
        line("blank picture", 10.0, 48.0),
        line("uniform", 40.0, 51.0),
    ]
    pocket_table.add_answered(lines[:1])
    assert pocket_table.kinds_of(lines) == ["all", "guess", "read"]
    pocket_table.add_answered(lines)
    assert pocket_table.kinds_of(lines) == ["all", "answered", "guess", "read"]
    assert [x["cells"]["answered"] for x in lines] == [
        {"score": 90.0, "n": 3}, {"score": 10.0, "n": 3}, {"score": 40.0, "n": 3}
    ]  # fmt: skip
