"""One bad sample never ends a run: it fails, is counted, and the exit status says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.eval import answering
from llava.eval.answering import generate
from llava.eval.errors import run_main
from llava.eval.run_benchmark import main
from tests.eval.conftest import TinyData
from tests.eval.test_run_benchmark import flags, read, result

CELL = Path("textvqa") / "visiondrop-9"


def poisoned(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], error: Exception
) -> list[int]:
    """From now on the model raises at prompts with one of the words; returns batch sizes seen."""
    seen: list[int] = []

    def fails(loaded: Any, prepared: Any, samples: Any, *rest: Any) -> Any:
        seen.append(len(samples))
        if any(word in sample.prompt for sample in samples for word in words):
            raise error
        return generate(loaded, prepared, samples, *rest)

    monkeypatch.setattr(answering, "generate", fails)
    return seen


def test_an_error_of_the_model_fails_one_sample(
    tiny_model: Path,
    tiny_data: TinyData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [json.loads(line) for line in tiny_data.questions.read_text().splitlines()]
    entries = json.loads(tiny_data.annotations.read_text())["data"]
    for i in (4, 16):
        lines[i]["text"] = lines[i]["text"].replace("thing", "poison")
        entries[i]["question"] = entries[i]["question"].replace("thing", "poison")
    tiny_data.questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny_data.annotations.write_text(json.dumps({"data": entries}))
    (tiny_data.folder / "regions.json").unlink()
    args = flags(tiny_model, tiny_data, tmp_path, "--methods", "visiondrop")
    whole = [*args[: args.index("--out")], "--out", str(tmp_path / "whole")]
    whole += args[args.index("--out") + 2 :]
    assert main(whole) == 0
    expected = read(tmp_path / "whole" / CELL / "answers.jsonl")
    with monkeypatch.context() as patch:
        seen = poisoned(patch, ("poison",), RuntimeError("index out of range\nin self"))
        capsys.readouterr()
        assert run_main(main, args) == 3
    assert seen == [3, 3, 1, 1, 1, 3, 3, 3, 3, 1, 1, 1, 2]
    assert "2 samples could not be answered" in capsys.readouterr().err
    found = read(tmp_path / CELL / "answers.jsonl")
    for i, (row, good) in enumerate(zip(found, expected)):
        if i in (4, 16):
            assert row["text"] == ""
            assert row["metadata"] == {"error": "RuntimeError: index out of range in self"}
        else:
            assert row == good
    assert result(tmp_path / CELL)["failed"] == 2
    assert result(tmp_path / CELL)["near_ties"]["checked"] == 18
    assert main(args) == 0, "tried again, it can be answered"
    assert found != expected == read(tmp_path / CELL / "answers.jsonl")
    assert result(tmp_path / CELL)["computed"] == 6, "the two batches of these samples"


def test_a_bad_first_sample_does_not_end_a_run(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, ("number 0?",), IndexError("no such row"))
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "visiondrop", "--batch-size", "1")
    assert main(args) == 3
    rows = read(tmp_path / CELL / "answers.jsonl")
    assert [i for i, row in enumerate(rows) if "error" in row["metadata"]] == [0, 4, 8, 12, 16]


def test_a_model_that_never_works_ends_the_run(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = poisoned(monkeypatch, ("",), RuntimeError("no kernel image"))
    with pytest.raises(RuntimeError, match="no kernel image"):
        main(flags(tiny_model, shared_data, tmp_path, "--methods", "visiondrop"))
    assert sum(size == 1 for size in seen) == 9, "three batches, sample by sample"
    assert not (tmp_path / CELL / "answers.jsonl").exists()
    assert not (tmp_path / CELL / "answers.jsonl.partial").exists()


def test_out_of_memory_names_the_batch(
    tiny_model: Path,
    shared_data: TinyData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poisoned(monkeypatch, ("",), torch.OutOfMemoryError("CUDA out of memory"))
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "visiondrop")
    assert run_main(main, args) == 2
    assert "out of memory with a batch of 3; use a smaller one" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_fails_before_the_model(
    tiny_model: Path, tiny_data: TinyData, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in tiny_data.questions.read_text().splitlines()]
    lines[5]["text"] = lines[5]["text"].replace("a, b", "a, b" * 500)
    tiny_data.questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(flags(tiny_model, tiny_data, tmp_path, "--methods", "visiondrop")) == 3
    rows = read(tmp_path / CELL / "answers.jsonl")
    failed = [i for i, row in enumerate(rows) if "error" in row["metadata"]]
    assert failed == [5]
    assert "prompt too long" in rows[5]["metadata"]["error"]
    assert "the model has 512 positions" in rows[5]["metadata"]["error"]
