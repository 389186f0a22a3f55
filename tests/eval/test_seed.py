"""SEED-Bench: accuracy by dimension by hand, pictures apart from videos, the leaderboard's file."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.errors import EvalError
from llava.eval.eval_seed import main
from llava.eval.run_benchmark import main as run_benchmark
from tests.eval.conftest import answer_rows

LETTER = "Answer with the option's letter from the given choices directly."
TYPES = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
# id, dimension, answer, kind
QUESTIONS = [
    ("101669", 5, "A", "image"),
    ("v12", 10, "B", "video"),
    ("101670", 1, "D", "image"),
    ("101671", 5, "C", "image"),
]
REPOSITORY = Path(__file__).parents[2]


def write_seed(folder: Path) -> Path:
    """Three questions about two pictures and one about a video's frame."""
    lines, entries = [], []
    for i, (name, kind, answer, data_type) in enumerate(QUESTIONS):
        place = "SEED-Bench-image" if data_type == "image" else "SEED-Bench-video-image"
        image = f"{place}/14544{min(i, 2)}_25910"  # without an ending, as in the real archive
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(folder / image, format="png")
        choices = [f"{name}-{word}" for word in ("one", "two", "three", "four")]
        question = f"What is thing {name}, in the end?"
        options = "\n".join(f"{c}. {choice}" for c, choice in zip("ABCD", choices))
        text = f"{question}\n{options}\n{LETTER}"
        lines.append({"image": image, "text": text, "question_id": int(name) if i == 0 else name})
        entries.append(
            {
                **{f"choice_{c}": choice for c, choice in zip("abcd", choices)},
                **{"answer": answer, "data_id": f"14544{min(i, 2)}_25910", "data_type": data_type},
                **{"question": question, "question_id": name, "question_type_id": kind},
            }
        )
    content = {"questions": entries, "question_type": TYPES}
    (folder / "SEED-Bench.json").write_text(json.dumps(content))
    path = folder / "llava-seed-bench.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_scores_by_hand(tmp_path: Path) -> None:
    """Videos are left out; a letter with anything beside it is wrong, as in LLaVA."""
    benchmark = get_benchmark("seed")
    files = benchmark.files(write_seed(tmp_path))
    samples = benchmark.read(files)
    assert [str(s.question_id) for s in samples] == ["101669", "101670", "101671"]
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)
    scores = benchmark.score(answer_rows("seed", tmp_path, ["A", "D", "C."]), files)
    assert scores.per_sample == [1, 1, 0] and scores.score == pytest.approx(200 / 3)
    assert scores.types == {"Instances Counting": (50, 2), "Scene Understanding": (100, 1)}
    assert files.split == "image" and benchmark.metric == "accuracy"


def test_leaderboard_file_and_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_seed(tmp_path / "data")
    benchmark = get_benchmark("seed")
    answers = answer_rows("seed", folder, ["A", "B", "C"])
    (written,) = benchmark.write_files(answers[::-1], benchmark.files(folder), tmp_path)
    expected = [
        {"question_id": "101669", "prediction": "A"},
        {"question_id": "101670", "prediction": "B"},
        {"question_id": "101671", "prediction": "C"},
    ]
    assert [json.loads(line) for line in written.read_text().splitlines()] == expected
    result, upload = tmp_path / "answers.jsonl", tmp_path / "upload.jsonl"
    result.write_text("".join(json.dumps(row) + "\n" for row in answers))
    args = [
        *("--annotation-file", str(folder / "SEED-Bench.json"), "--result-file", str(result)),
        *("--result-upload-file", str(upload)),
    ]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "Instances Counting: 100.00% (2 questions)" in out
    assert "Scene Understanding: 0.00% (1 questions)" in out
    assert "Total accuracy: 50.00%" in out, "the video's question is not answered, so wrong"
    assert "image accuracy: 66.67%\n" in out
    assert "video accuracy: 0.00% (0 of 1 answered)" in out
    assert upload.read_bytes() == written.read_bytes()
    script = REPOSITORY / "scripts" / "convert_seed_for_submission.py"
    monkeypatch.setattr(sys, "argv", [str(script), *args])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(script), run_name="__main__")
    assert done.value.code == 0 and capsys.readouterr().out == out


def test_a_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = write_seed(tmp_path / "data")
    flags = [
        *("seed", "--model-path", str(tiny_model), "--data", str(folder), "--tokens", "9"),
        *("--methods", "uniform", "--max-new-tokens", "2", "--workers", "0", "--nproc", "1"),
        *("--dtype", "float32", "--batch-size", "2", "--out", str(tmp_path / "out")),
    ]
    assert run_benchmark(flags) == 0
    cell = tmp_path / "out" / "seed" / "uniform-9"
    result = json.loads((cell / "result.json").read_text())
    assert (result["n"], result["split"], result["files"]) == (3, "image", ["seed_upload.jsonl"])
    assert len((cell / "seed_upload.jsonl").read_text().splitlines()) == 3


# --- bad input -----------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    benchmark = get_benchmark("seed")
    with pytest.raises(EvalError) as error:
        files = benchmark.files(folder)
        samples = benchmark.read(files)
        benchmark.pictures(files).check(samples)
        benchmark.check(samples, files)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "E"}, "question 3 (id '101670'): \"answer\" is 'E'"),
        ({"answer": None}, "question 3 (id '101670'): \"answer\" is None"),
        ({"data_type": "sound"}, "\"data_type\" is 'sound'"),
        ({"question_type_id": 99}, '"question_type_id" is 99, which is none of "question_type" (1'),
        ({"question_id": "101669"}, "question 3: id '101669' comes twice"),
        ({"question_id": "7"}, "line 3: question_id '101670' is not in SEED-Bench.json"),
        ({"question": "Who is it?"}, "line 3: SEED-Bench.json has 'Who is it?'"),
        ({"choice_d": "nothing"}, "line 3: SEED-Bench.json has 'nothing' in question '101670'"),
    ],
)
def test_bad_annotations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_seed(tmp_path) / "SEED-Bench.json"
    content = json.loads(path.read_text())
    content["questions"][2].update(changes)
    path.write_text(json.dumps(content))
    assert message in refusal(tmp_path)


def test_an_option_that_is_missing(tmp_path: Path) -> None:
    path = write_seed(tmp_path) / "SEED-Bench.json"
    content = json.loads(path.read_text())
    del content["questions"][1]["choice_c"]
    path.write_text(json.dumps(content))
    assert f"{path}, question 2: no choice_c; use the official file" in refusal(tmp_path)
    del content["question_type"]
    path.write_text(json.dumps(content))
    assert "is not SEED-Bench.json (KeyError('question_type'))" in refusal(tmp_path)


def test_bad_files(tmp_path: Path) -> None:
    folder = write_seed(tmp_path)
    annotations, questions = folder / "SEED-Bench.json", folder / "llava-seed-bench.jsonl"
    lines, whole = questions.read_text().splitlines(), annotations.read_bytes()
    bad = json.dumps({**json.loads(lines[2]), "image": "/etc/passwd"})
    questions.write_text("\n".join([*lines[:2], bad, lines[3]]) + "\n")
    assert "line 3: image '/etc/passwd' leaves the image folder" in refusal(folder)
    questions.write_text(lines[1] + "\n")
    assert "asks about videos only" in refusal(folder)
    questions.write_text("\n".join(lines) + "\n")
    (folder / "SEED-Bench-image" / "145441_25910").unlink(missing_ok=True)
    (folder / "SEED-Bench-image" / "145442_25910").unlink()
    assert "145442_25910 (line 3)" in refusal(folder)
    annotations.write_bytes(whole[:-30])
    assert (said := refusal(folder)).startswith(f"{annotations}, line 1") and "cut short" in said
    annotations.unlink()
    assert "data not found (annotations: " in refusal(folder)
