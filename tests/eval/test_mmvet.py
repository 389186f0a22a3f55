"""MM-Vet: prompts as they are, no score, the results json of its evaluator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.convert_mmvet_for_eval import main as convert
from llava.eval.errors import EvalError, run_main
from llava.eval.run_benchmark import main as run_benchmark

ROOT = Path(__file__).parents[2]
QUESTIONS = [
    (0, "v1_0.png", "What is x in the equation?"),
    (1, "v1_1.png", "What is d in the last equation?"),
    (2, "v1_1.png", "How many are there?\nCount with care."),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "mmvet"
    (folder / "images").mkdir(parents=True)
    for name in ("v1_0.png", "v1_1.png"):
        Image.new("RGB", (40, 30), "red").save(folder / "images" / name)
    lines = [
        {"question_id": i, "image": image, "text": text, "category": "default"}
        for i, image, text in QUESTIONS
    ]
    (folder / "llava-mm-vet.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    return folder


def test_questions_are_asked_as_they_are(data: Path) -> None:
    benchmark = get_benchmark("mmvet")
    samples = benchmark.read(benchmark.files(data))
    assert [(s.question_id, s.image, s.prompt) for s in samples] == QUESTIONS
    assert benchmark.max_new_tokens == 1024


def test_conversion(tmp_path: Path) -> None:
    rows = [
        {"question_id": 0, "prompt": "p", "text": "x = −1"},
        {"question_id": 17, "prompt": "p", "text": 'It says "1.25".\nTwice.'},
        {"question_id": 2, "prompt": "p", "text": "", "metadata": {"error": "no picture"}},
    ]
    source, target = tmp_path / "answers.jsonl", tmp_path / "results" / "model.json"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = ROOT / "scripts" / "convert_mmvet_for_eval.py"
    command = [sys.executable, str(script), "--src", str(source), "--dst", str(target)]
    subprocess.run(command, check=True, cwd=ROOT)
    assert json.loads(target.read_text()) == {
        "v1_0": "x = −1",
        "v1_17": 'It says "1.25".\nTwice.',
        "v1_2": "",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 0, "text": "a"}\n' * 2, "question_id 0 is answered twice"),
        ('{"question_id": 0, "text": "a"}\n{"question', "line 2: not valid JSON"),
        ('{"question_id": 0}\n', "line 1: an answer is"),
        ("", "holds no answer"),
    ],
)
def test_answers_that_cannot_be_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    source = tmp_path / "answers.jsonl"
    source.write_text(text)
    target = tmp_path / "results.json"
    assert run_main(convert, ["--src", str(source), "--dst", str(target)]) == 2
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_bad_questions(data: Path) -> None:
    benchmark = get_benchmark("mmvet")
    files = benchmark.files(data)
    lines = files.questions.read_text().splitlines()
    files.questions.write_text("\n".join([*lines, lines[0].replace("What", "Which")]))
    with pytest.raises(EvalError, match="llava-mm-vet.jsonl: lines 1 and 4 have the same quest"):
        benchmark.check(benchmark.read(files), files)
    files.questions.write_text(lines[0].replace("v1_0.png", "../../etc/passwd"))
    with pytest.raises(EvalError, match="line 1: image '../../etc/passwd' leaves"):
        benchmark.read(files)
    with pytest.raises(EvalError, match="MM-Vet data not found"):
        benchmark.files(data / "images")


def test_benchmark_runs(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Two seeds and no score: a result json, a conversion file each, a table with a dash."""
    args = ["mmvet", "--model-path", str(tiny_model), "--data", str(data), "--out", str(tmp_path),
            "--methods", "visiondrop,random", "--tokens", "9", "--batch-size", "3", "--seeds",
            "0,1", "--max-new-tokens", "3", "--workers", "0", "--nproc", "1"]  # fmt: skip
    assert run_benchmark(args) == 0
    for cell in ("visiondrop-9", "random-9/seed-1"):
        folder = tmp_path / "mmvet" / cell
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        assert (result["score"], result["n"], result["split"]) == (None, 3, "v1")
        assert result["files"] == ["results.json"]
        answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        assert json.loads((folder / "results.json").read_text()) == {
            f"v1_{row['question_id']}": row["text"] for row in answers
        }
    combined = json.loads((tmp_path / "mmvet" / "random-9" / "result.json").read_text())
    assert combined["score"] is None and combined["seeds"] == [0, 1]
    assert "| - |" in (tmp_path / "mmvet" / "table.md").read_text()
