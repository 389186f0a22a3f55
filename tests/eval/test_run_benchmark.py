"""The main job on a tiny model: answering, scoring, one table, and coming back to it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from llava.eval import running
from llava.eval.answers import AnswerStore
from llava.eval.comparing import show_interval
from llava.eval.errors import run_main
from llava.eval.eval_textvqa import main as eval_textvqa
from llava.eval.intervals import paired_bootstrap
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.eval.run_benchmark import main, parser
from llava.eval.table import caption, table_rows
from tests.eval.conftest import TinyData

METHODS = "full,visiondrop,random,uniform"


@pytest.fixture(scope="module")
def answered(
    tiny_model: Path, shared_data: TinyData, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of four methods.  The annotations are the full model's own answers, so that it
    scores 100 and every other figure means something."""
    out = tmp_path_factory.mktemp("out")
    assert main(flags(tiny_model, shared_data, out, "--methods", "full")) == 0
    entries = json.loads(shared_data.annotations.read_text())["data"]
    rows = read(out / "textvqa" / "full-36" / "answers.jsonl")
    for entry, row in zip(entries, rows):
        entry["answers"] = [row["text"]] * 10
    shared_data.annotations.write_text(json.dumps({"data": entries}))
    args = flags(tiny_model, shared_data, out, "--methods", METHODS, "--seeds", "0,1,2")
    assert main(args) == 0
    return out / "textvqa"


def flags(model: Path, data: TinyData, out: Path, *more: str) -> list[str]:
    return [
        *("textvqa", "--model-path", str(model), "--data", str(data.folder), "--out", str(out)),
        *("--tokens", "9", "--batch-size", "3", "--max-new-tokens", "4", "--workers", "0"),
        *("--dtype", "float32", "--nproc", "1", *more),
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_result_json_says_what_the_score_depends_on(answered: Path) -> None:
    full, dropped = result(answered / "full-36"), result(answered / "visiondrop-9")
    assert full["score"] == 100 and full["computed"] == 0 and full["n"] == 20
    assert full["mean_tokens"] == full["tokens"] == 36
    assert dropped["method"] == "visiondrop" and dropped["tokens"] == 9
    assert dropped["mean_tokens"] == sum(dropped["ledger"]) / 8
    assert abs(dropped["mean_tokens"] - 9) <= 0.25
    assert dropped["n"] == dropped["computed"] == 20 and dropped["failed"] == 0
    assert dropped["method_config"]["name"] == "visiondrop"
    assert dropped["method_config"]["encoder"] and dropped["method_config"]["llm"]
    assert dropped["batch_size"] == 3 and dropped["dtype"] == "float32"
    assert dropped["attn_implementation"] == "sdpa" and dropped["image_aspect_ratio"] == "pad"
    assert dropped["versions"].keys() >= {"python", "torch", "transformers", "visiondrop"}
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", dropped["git_commit"] or "0" * 40)
    assert dropped["seed"] == 0 and dropped["split"] == "val"
    assert dropped["question_file"] == "llava_textvqa_val_v051_ocr.jsonl"
    assert dropped["metric"] == "accuracy" and dropped["figures"] == {}
    assert 0 < dropped["flops"] < full["flops"]
    assert 0 < dropped["kv_bytes"] < full["kv_bytes"]
    assert dropped["samples_per_second"] > 0
    assert dropped["processes"] == [{"rank": 0, "computed": 20}]
    assert dropped["near_ties"]["checked"] == 20 and dropped["near_ties"]["below"] == 1e-4
    assert {kind: cell["n"] for kind, cell in dropped["types"].items()} == {"t0": 10, "t1": 10}


def test_scores_are_the_metrics(
    answered: Path, shared_data: TinyData, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result json, the scoring command, and the mean by hand agree; so do the types' means."""
    entries = json.loads(shared_data.annotations.read_text())["data"]
    evaluator = TextVQAAccuracyEvaluator()
    for cell in ("visiondrop-9", "uniform-9"):
        rows = read(answered / cell / "answers.jsonl")
        by_hand = [evaluator.score(r["text"], e["answers"]) for r, e in zip(rows, entries)]
        found = result(answered / cell)
        assert found["score"] == pytest.approx(100 * sum(by_hand) / 20)
        assert found["types"]["t1"]["score"] == pytest.approx(100 * sum(by_hand[1::2]) / 10)
        answers = str(answered / cell / "answers.jsonl")
        capsys.readouterr()
        eval_textvqa(["--annotation-file", str(shared_data.annotations), "--result-file", answers])
        assert f"Accuracy: {found['score']:.2f}%" in capsys.readouterr().out
    assert result(answered / "visiondrop-9")["score"] < 100


def test_seeds_give_mean_and_spread(answered: Path) -> None:
    combined = result(answered / "random-9")
    singles = [result(answered / "random-9" / f"seed-{seed}") for seed in (0, 1, 2)]
    assert combined["seeds"] == [0, 1, 2]
    assert combined["scores"] == [single["score"] for single in singles]
    mean = sum(combined["scores"]) / 3
    variance = sum((score - mean) ** 2 for score in combined["scores"]) / 2
    assert combined["score"] == pytest.approx(mean)
    assert combined["spread"] == pytest.approx(variance**0.5)
    answers = {
        (answered / "random-9" / f"seed-{seed}" / "answers.jsonl").read_bytes()
        for seed in (0, 1, 2)
    }
    assert len(answers) == 3


def test_table(answered: Path, shared_data: TinyData) -> None:
    results = [result(answered / f"{cell}") for cell in
               ("full-36", "visiondrop-9", "random-9", "uniform-9")]  # fmt: skip
    cells = table_rows(results)
    assert [row[0] for row in cells] == METHODS.split(",")
    assert cells[0][1:4] == ("-", "36.0", "100.00") and cells[0][5] == "100.0 %"
    assert cells[1][1:3] == ("9", f"{results[1]['mean_tokens']:.1f}"), "asked for, and measured"
    assert cells[1][5] == f"{results[1]['score']:.1f} %"
    assert cells[2][3] == f"{results[2]['score']:.2f} ± {results[2]['spread']:.2f}"
    text = (answered / "table.md").read_text()
    for row in cells:
        assert "| " + " | ".join(row[:4]) + " | " in text
        assert " | " + " | ".join(row[5:]) + " |" in text
    assert "20 questions, batch 3, float32, sdpa on cpu" in text
    assert "| method | asked | tokens | accuracy | vs visiondrop | relative |" in text


def test_differences_are_those_of_the_same_questions(answered: Path, shared_data: TinyData) -> None:
    """The comparison beside the scores, against one made by hand from the answers files."""
    made = json.loads((answered / "comparison.json").read_text())
    assert made["reference"] == "visiondrop" and made["not_run"] == []
    rows = {row["cell"]: row for row in made["rows"]}
    entries = json.loads(shared_data.annotations.read_text())["data"]
    evaluator = TextVQAAccuracyEvaluator()

    def scores(folder: Path) -> list[float]:
        found = read(folder / "answers.jsonl")
        return [100 * evaluator.score(r["text"], e["answers"]) for r, e in zip(found, entries)]

    reference = scores(answered / "visiondrop-9")
    pictures = [entry["image_id"] for entry in entries]
    seeds = [scores(answered / "random-9" / f"seed-{seed}") for seed in (0, 1, 2)]
    expected = {
        "uniform-9": scores(answered / "uniform-9"),
        "random-9": [sum(three) / 3 for three in zip(*seeds)],
        "full-36": scores(answered / "full-36"),
    }
    for cell, own in expected.items():
        interval = paired_bootstrap(own, reference, pictures)
        found = rows[cell]
        assert found["difference"] == pytest.approx(sum(own) / 20 - sum(reference) / 20)
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
        assert (found["n"], found["clusters"]) == (20, 5)
        assert show_interval(interval) in (answered / "table.md").read_text()
    assert rows["visiondrop-9"]["difference"] is None
    with (answered / "comparison.csv").open(newline="") as stream:
        sheet = {row["cell"]: row for row in csv.DictReader(stream)}
    assert sheet.keys() == rows.keys()
    assert float(sheet["uniform-9"]["low"]) == rows["uniform-9"]["low"]


def test_a_second_run_computes_nothing(
    answered: Path,
    tiny_model: Path,
    shared_data: TinyData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(running, "load_model", load)
    before = {path: path.read_bytes() for path in answered.rglob("answers.jsonl")}
    score = result(answered / "visiondrop-9")
    args = flags(tiny_model, shared_data, answered.parent, "--methods", METHODS, "--seeds", "0,1,2")
    assert main(args) == 0
    assert {path: path.read_bytes() for path in answered.rglob("answers.jsonl")} == before
    again = result(answered / "visiondrop-9")
    assert again.pop("computed") == 0 and score.pop("computed") == 20
    assert again.pop("processes") == [{"rank": 0, "computed": 0}]
    again.pop("git_commit"), score.pop("git_commit"), score.pop("processes")
    assert again == score
    assert "visiondrop" in capsys.readouterr().out


def test_two_processes_are_one_run(
    answered: Path, tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "visiondrop,uniform")
    assert main([*args, "--nproc", "2"]) == 0
    for cell in ("visiondrop-9", "uniform-9"):
        folder = tmp_path / "textvqa" / cell
        assert (folder / "answers.jsonl").read_bytes() == (
            answered / cell / "answers.jsonl"
        ).read_bytes()
        assert not list(folder.glob("*.partial*"))
        found = result(folder)
        assert [p["rank"] for p in found["processes"]] == [0, 1]
        assert all(p["computed"] >= 0.4 * 20 for p in found["processes"])
        assert sum(p["computed"] for p in found["processes"]) == found["computed"] == 20
        assert found["score"] == result(answered / cell)["score"]
        assert found["near_ties"] == result(answered / cell)["near_ties"]
    assert main([*args, "--nproc", "2"]) == 0
    counts = [process["computed"] for process in result(folder)["processes"]]
    assert counts == [0, 0], "what was there is not counted again"


def test_stopped_runs_go_on(
    answered: Path, tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "visiondrop")
    append = AnswerStore.append

    def stop(self: AnswerStore, batch: int, *answers: Any) -> None:
        append(self, batch, *answers)
        if batch == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerStore, "append", stop)
        assert run_main(main, args) == 130
    assert main(args) == 0
    folder = tmp_path / "textvqa" / "visiondrop-9"
    assert result(folder)["computed"] == 8
    assert (folder / "answers.jsonl").read_bytes() == (
        answered / "visiondrop-9" / "answers.jsonl"
    ).read_bytes()


def test_no_flops_where_the_ledger_does_not_say_them(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "tome,vista,uniform")
    assert main([*args, "--limit", "2", "--method-arg", "window=2"]) == 0
    flops = {
        path.parent.name.partition("-")[0].partition("+")[0]: json.loads(path.read_text())["flops"]
        for path in tmp_path.glob("textvqa/*/result.json")
    }
    assert flops.pop("uniform") > 0 and flops == {"tome": None, "vista": None}


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODEL": "m", "DATA": "d", "METHODS": "random", "TOKENS": "32,64", "LIMIT": "7",
        "OUT": "o", "NPROC": "2", "SEEDS": "0,1", "BATCH": "5", "DTYPE": "bf16",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    args = parser().parse_args(["textvqa"])
    assert (args.model_path, args.data, args.methods, args.tokens) == ("m", "d", "random", "32,64")
    assert (args.limit, args.out, args.nproc, args.seeds) == ("7", "o", 2, "0,1")
    assert (args.batch_size, args.dtype) == (5, "bf16")
    args = parser().parse_args(["textvqa", "--model-path", "flag", "--batch-size", "6"])
    assert (args.model_path, args.batch_size) == ("flag", 6), "flags win"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "full,visiondorp"), "unknown method 'visiondorp'"),
        (("--tokens", "600"), "600"),
        (("--tokens", "many"), "whole numbers"),
        (("--methods", "visiondrop@paper"), "visiondrop has no preset 'paper'"),
        (("--reference", "random", "--methods", "full,uniform"), "--reference random: not among"),
        (("--limit", "some"), "limit must be a whole number or 'all'"),
        (("--limit", "0"), "limit must be at least 1"),
        (("--data", "nowhere"), "TextVQA data not found (questions: nowhere"),
        (("--batch-size", "4"), "batch_size: 3 there, 4 here"),
        (("--limit", "5"), "already holds 20 answers and this run asks for 5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_bad_settings_are_refused_before_any_compute(
    answered: Path,
    tiny_model: Path,
    shared_data: TinyData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(running, "load_model", load)
    before = {path: path.read_bytes() for path in answered.rglob("*.json*")}
    args = flags(tiny_model, shared_data, answered.parent, "--methods", METHODS, "--seeds", "0,1,2")
    assert run_main(main, [*args, *more]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert {path: path.read_bytes() for path in answered.rglob("*.json*")} == before


def test_a_question_without_annotation_is_found_before_any_compute(
    tiny_model: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = json.loads(tiny_data.annotations.read_text())["data"]
    tiny_data.annotations.write_text(json.dumps({"data": entries[:-1]}))
    assert run_main(main, flags(tiny_model, tiny_data, tmp_path / "out")) == 2
    assert "no annotation for image id 'picture4'" in capsys.readouterr().err


def test_wandb_offline_writes_one_run_once(
    tiny_model: Path,
    shared_data: TinyData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "visiondrop", "--wandb")
    assert main(args) == 0
    folder = tmp_path / "textvqa" / "visiondrop-9"
    runs = list(folder.glob("wandb/offline-run-*"))
    digest = result(folder)["settings_digest"]
    assert len(runs) == 1 and runs[0].name.endswith(digest[:20])
    assert len(list(runs[0].glob("files/media/images/*.png"))) == 5, "one drawing a picture"
    table = json.loads(next(runs[0].glob("files/media/table/*.json")).read_text())
    answers = {row["prompt"]: row["text"] for row in read(folder / "answers.jsonl")[:1]}
    assert table["data"][0][1:4] == [*next(iter(answers.items())), 9.0]
    assert main(args) == 0
    assert list(folder.glob("wandb/offline-run-*")) == runs
    assert "was logged to W&B before" in capsys.readouterr().out


def test_caption_names_quantised_weights():
    names = ("model", "n", "batch_size", "dtype", "attn_implementation", "device")
    plain = dict.fromkeys(names, "x")
    assert "with" not in caption([plain | {"quantisation": None}])
    assert "x with 8bit weights, x on x" in caption([plain | {"quantisation": "8bit"}])
