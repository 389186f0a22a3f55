"""MMBench: the upload file, and the whole way on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.eval import run_benchmark, running
from llava.eval.benchmarks import get_benchmark
from llava.eval.convert_mmbench_for_submission import main as convert
from llava.eval.errors import EvalError, run_main
from llava.eval.mmbench_tsv import read_table
from llava.eval.model_vqa_mmbench import main as answer
from tests.eval.mmbench_files import (
    NAME,
    ROOT,
    SAID,
    answers_of,
    base64_of,
    noise,
    rows_of_file,
    sheet_of,
    write_answers,
    write_dev,
    write_tsv,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dev(tmp_path)


def test_upload_file(data: Path, tmp_path: Path) -> None:
    """Columns and order of LLaVA's converter; answers as they were given."""
    said = {**SAID, 241: "=1+1", 252: "A\x07", 253: "选D"}
    rows = answers_of(read_table(data / NAME).samples(), said)
    write_answers(tmp_path / "answers" / "one.jsonl", rows)
    script = ROOT / "scripts" / "convert_mmbench_for_submission.py"
    args = ["--annotation-file", str(data / NAME), "--result-dir", str(tmp_path / "answers"),
            "--upload-dir", str(tmp_path / "upload"), "--experiment", "one"]  # fmt: skip
    subprocess.run([sys.executable, str(script), *args], check=True, cwd=ROOT)
    sheet = sheet_of(tmp_path / "upload" / "one.xlsx")
    assert sheet[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert [line[0] for line in sheet[1:]] == [row["index"] for row in rows_of_file()]
    assert sheet[1] == (
        241, "Which bus is it?", "red", "blue", "green", "black", "=1+1", "B", "dev"
    )  # fmt: skip
    assert sheet[2][2:8] == ("yes", "no", None, None, "A", "A")
    assert sheet[3][6] == "选D"
    assert sheet[5][6] == SAID[1000252]


def test_upload_of_answers_that_are_not_whole(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = answers_of(read_table(data / NAME).samples()[:4], SAID)
    write_answers(tmp_path / "one.jsonl", rows)
    args = ["--annotation-file", str(data / NAME), "--result-dir", str(tmp_path),
            "--upload-dir", str(tmp_path), "--experiment", "one"]  # fmt: skip
    assert run_main(convert, args) == 3
    assert "6 of 10 rows have no answer" in capsys.readouterr().err
    predictions = [line[6] for line in sheet_of(tmp_path / "one.xlsx")[1:]]
    assert predictions[:4] == ["B", None, None, "A. blue"]


def test_openpyxl_is_asked_for_before_any_compute(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    benchmark = get_benchmark("mmbench")
    files = benchmark.files(data)
    with pytest.raises(EvalError, match="needs openpyxl.*pip install openpyxl"):
        benchmark.check(benchmark.read(files), files)


def test_benchmark_runs(
    data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that breaks off while it is decoded fails its own rows, and says so."""
    rows = rows_of_file(shared=True)
    whole = base64_of(noise(80))
    rows[1]["image"] = whole[: len(whole) // 8 * 4]
    write_tsv(data / NAME, rows)
    out = tmp_path / "out"
    args = ["mmbench", "--model-path", str(tiny_model), "--data", str(data), "--out", str(out),
            "--methods", "full,visiondrop,random", "--tokens", "9", "--batch-size", "4",
            "--max-new-tokens", "2", "--workers", "1", "--nproc", "1",
            "--dtype", "float32"]  # fmt: skip
    assert run_main(run_benchmark.main, args) == 3
    folder = out / "mmbench" / "visiondrop-9"
    result = json.loads((folder / "result.json").read_text())
    assert (result["n"], result["failed"]) == (10, 2)
    assert (result["metric"], result["split"]) == ("circular accuracy", "mmbench_dev_20230712")
    assert result["figures"].keys() == {"plain", "unread"} and result["files"] == ["upload.xlsx"]
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines if "error" in line["metadata"]] == [252, 1000252]
    sheet = sheet_of(folder / "upload.xlsx")
    texts = {
        line["question_id"]: "".join(c for c in line["text"] if c >= " " or c in "\t\n\r") or None
        for line in lines
    }
    assert {line[0]: line[6] for line in sheet[1:]} == texts
    table = (out / "mmbench" / "table.md").read_text()
    assert "| circular accuracy | plain |" in table


def test_answering_command(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    """LLaVA's flags; each answer with what LLaVA writes beside it."""
    out = tmp_path / "answers.jsonl"
    args = ["--model-path", str(tiny_model), "--question-file", str(data / NAME), "--answers-file",
            str(out), "--max_new_tokens", "2", "--workers", "0", "--limit", "5", "--lang", "cn",
            "--batch-size", "5"]  # fmt: skip
    assert answer([*args, "--all-rounds", "--single-pred-prompt"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["question_id"], line["round_id"]) for line in lines] == [
        (241, 0), (241, 1), (241, 2), (241, 3), (1000241, 0)
    ]  # fmt: skip
    assert lines[1]["options"] == ["blue", "green", "black", "red"]
    assert lines[1]["option_char"] == ["B", "C", "D", "A"]
    assert lines[1]["prompt"].endswith("D. red\n请直接回答选项字母。")
    assert answer([*args, "--overwrite"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["prompt"].endswith("D. black")


def test_bad_flags(
    data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model-path", str(tiny_model), "--question-file", str(data / NAME),
            "--answers-file", str(tmp_path / "answers.jsonl")]  # fmt: skip
    assert run_main(answer, [*args, "--lang", "de"]) == 2
    assert "unknown language 'de'; --lang is en or cn" in capsys.readouterr().err
    assert run_main(answer, [*args, "--limit", "0"]) == 2
    assert "limit must be at least 1" in capsys.readouterr().err


def test_bad_pictures_are_refused_before_the_model_is_loaded(
    data: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(running, "load_model", load)
    rows = rows_of_file(shared=True)
    rows[2]["image"] = "QUJD" * 30
    write_tsv(data / NAME, rows)
    args = ["mmbench", "--model-path", str(tiny_model), "--data", str(data), "--out",
            str(tmp_path), "--tokens", "9"]  # fmt: skip
    assert run_main(run_benchmark.main, args) == 2
    assert "line 5: the image cell of index 253 holds no picture" in capsys.readouterr().err
