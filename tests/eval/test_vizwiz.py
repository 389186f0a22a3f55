"""VizWiz in the official formats: scores by hand, both splits, the upload file, bad files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.convert_vizwiz_for_submission import main as convert_main
from llava.eval.errors import EvalError, run_main
from llava.eval.eval_vizwiz import main as eval_main
from llava.eval.run_benchmark import main as run_benchmark
from llava.eval.samples import raw_question

ROOT = Path(__file__).parents[2]
LINES = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    "\nAnswer the question using a single word or phrase."
)
# question, humans, answer type, an answer, its score by hand
CASES: list[tuple[str, list[str], str, str, float]] = [
    ("Can you tell me what this is?", ["unanswerable"] * 8 + ["blurry", "floor"],
     "unanswerable", "Unanswerable", 1.0),
    ("What colour is this shirt?", ["unanswerable"] * 2 + ["grey"] * 3 + ["gray"] * 5,
     "other", "Grey.", 0.9),
    ("Is it on?", ["yes"] * 9 + ["unanswerable"], "yes/no", "unanswerable", 0.3),
    ("What does it say?", ["a b c"] * 10, "other", "A B C", 0.0),  # humans' article stays
    ("How many?", ["10"] * 4 + ["unsuitable"] * 6, "number", "Ten", 1.0),
]  # fmt: skip


def image_name(split: str, i: int) -> str:
    return f"VizWiz_{split}_{i:08d}.jpg"


def write_val(folder: Path) -> Path:
    """``val.json`` and its pictures; LLaVA has no question file of it."""
    (folder / "val").mkdir(parents=True)
    entries = []
    for i, (question, humans, kind, *_) in enumerate(CASES):
        Image.new("RGB", (30, 40), "green").save(folder / "val" / image_name("val", i))
        entries.append(
            {
                "answerable": int(kind != "unanswerable"),
                "image": image_name("val", i),
                "question": question,
                "answer_type": kind,
                "answers": [{"answer": a, "answer_confidence": "maybe"} for a in humans],
            }
        )
    (folder / "val.json").write_text(json.dumps(entries))
    return folder


def write_test(folder: Path) -> Path:
    """Test as LLaVA prepares it; ``val.json`` comes in the same archive of annotations."""
    (folder / "test").mkdir(parents=True)
    (folder / "val.json").write_text("[]")
    lines = []
    for i in range(3):
        name = image_name("test", i)
        Image.new("RGB", (30, 40), "green").save(folder / "test" / name)
        lines.append({"question_id": name, "image": name, "text": f"What is {i}?{LINES}",
                      "category": "default"})  # fmt: skip
    write_lines(folder / "llava_test.jsonl", lines)
    return folder


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answers() -> list[dict[str, Any]]:
    return [
        {"question_id": image_name("val", i), "image": image_name("val", i), "text": case[3]}
        for i, case in enumerate(CASES)
    ]


def test_questions_come_from_val_json(tmp_path: Path) -> None:
    benchmark = get_benchmark("vizwiz")
    files = benchmark.files(write_val(tmp_path))
    samples = benchmark.read(files)
    assert files.split == "val" and files.questions == files.annotations
    assert samples[1].prompt == f"What colour is this shirt?{LINES}"
    assert raw_question(samples[1].prompt) == "What colour is this shirt?"
    assert samples[1].image == samples[1].question_id == "VizWiz_val_00000001.jpg"
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)


def test_scores_by_hand(tmp_path: Path) -> None:
    benchmark = get_benchmark("vizwiz")
    files = benchmark.files(write_val(tmp_path))
    scores = benchmark.score(answers(), files)
    assert scores.per_sample == pytest.approx([case[-1] for case in CASES])
    assert scores.score == pytest.approx(64)
    assert {kind: (pytest.approx(score), n) for kind, (score, n) in scores.types.items()} == {
        "number": (100, 1), "other": (45, 2), "unanswerable": (100, 1), "yes/no": (30, 1),
    }  # fmt: skip
    failed = [{**row, "metadata": {"error": "no picture"}} for row in answers()]
    assert benchmark.score(failed, files).score == 0


def test_questions_of_a_file_may_have_ids_of_their_own(tmp_path: Path) -> None:
    write_val(tmp_path)
    lines = [
        {"question_id": i, "image": image_name("val", i), "text": f"{case[0]}{LINES}"}
        for i, case in enumerate(CASES)
    ]
    write_lines(tmp_path / "llava_val.jsonl", lines)
    benchmark = get_benchmark("vizwiz")
    files = benchmark.files(tmp_path)
    samples = benchmark.read(files)
    benchmark.check(samples, files)
    rows = [{**row, "question_id": i} for i, row in enumerate(answers())]
    assert benchmark.score(rows, files).score == pytest.approx(64)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_val(tmp_path)
    write_lines(tmp_path / "answers.jsonl", answers())
    upload = [{"image": row["image"], "answer": row["text"]} for row in answers()]
    (tmp_path / "upload.json").write_text(json.dumps(upload))
    for name in ("answers.jsonl", "upload.json"):
        args = ["--annotation-file", str(tmp_path / "val.json"),
                "--result-file", str(tmp_path / name)]  # fmt: skip
        assert eval_main(args) == 0
        out = capsys.readouterr().out
        assert "Samples: 5\nOverall accuracy: 64.00\n" in out
        assert "  unanswerable: 100.00 (1)\n" in out and "  other: 45.00 (2)\n" in out


def test_splits(tmp_path: Path) -> None:
    val, test = write_val(tmp_path / "val"), write_test(tmp_path / "test")
    assert get_benchmark("vizwiz").files(val).split == "val"
    assert get_benchmark("vizwiz").files(test).split == "test", "val.json alone is no split"
    both = write_val(write_test(tmp_path / "both"))
    assert get_benchmark("vizwiz").files(both).split == "val"
    assert get_benchmark("vizwiz", "test").files(both).annotations is None
    with pytest.raises(EvalError, match="VizWiz data not found"):
        get_benchmark("vizwiz", "test").files(val)


def test_test_is_not_scored(tmp_path: Path) -> None:
    benchmark = get_benchmark("vizwiz")
    files = benchmark.files(write_test(tmp_path))
    samples = benchmark.read(files)
    benchmark.check(samples, files)
    rows = [{"question_id": s.question_id, "image": s.image, "text": "A Dog."} for s in samples]
    assert benchmark.score(rows, files).score is None
    (path,) = benchmark.write_files(rows[:2], files, tmp_path / "cell")
    assert json.loads(path.read_text()) == [
        {"image": image_name("test", i), "answer": "dog"} for i in range(2)
    ]


def test_converter_as_in_llava(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_test(tmp_path)
    result, upload = tmp_path / "answers.jsonl", tmp_path / "answers_upload" / "ckpt.json"
    rows = [{"question_id": image_name("test", i), "text": f"{i},000"} for i in (2, 0, 1)]
    write_lines(result, rows)
    args = ["--annotation-file", str(tmp_path / "llava_test.jsonl"), "--result-file", str(result),
            "--result-upload-file", str(upload)]  # fmt: skip
    script = ROOT / "scripts" / "convert_vizwiz_for_submission.py"
    done = subprocess.run([sys.executable, script, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(upload.read_text()) == [
        {"image": image_name("test", i), "answer": f"{i}000"} for i in range(3)
    ]
    upload.unlink()
    write_lines(result, rows[:1])
    assert run_main(convert_main, args) == 2
    error = capsys.readouterr().err
    assert "answers.jsonl has no answer for 2 of 3: 'VizWiz_test_00000000.jpg'" in error
    assert not upload.exists()


def test_from_pictures_to_the_result(tmp_path: Path, tiny_model: Path) -> None:
    data = write_val(tmp_path / "data")
    (data / "val" / image_name("val", 2)).write_bytes(b"\xff\xd8\xff broken")
    args = ["vizwiz", "--model-path", str(tiny_model), "--data", str(data), "--out", str(tmp_path),
            "--methods", "full", "--max-new-tokens", "3", "--workers", "0", "--dtype", "float32",
            "--nproc", "1"]  # fmt: skip
    assert run_benchmark(args) == 3, "one picture cannot be read, the others are answered"
    folder = tmp_path / "vizwiz" / "full-36"
    result = json.loads((folder / "result.json").read_text())
    assert (result["n"], result["failed"], result["split"]) == (5, 1, "val")
    assert sum(cell["n"] for cell in result["types"].values()) == 5
    upload = json.loads((folder / "upload.json").read_text())
    assert [entry["image"] for entry in upload] == [image_name("val", i) for i in range(5)]


# --- bad files -------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """What the command does before the model is loaded."""
    benchmark = get_benchmark("vizwiz")
    files = benchmark.files(folder)
    samples = benchmark.read(files)
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda e: [e[0], {**e[1], "answers": None}, *e[2:]],
         r"val.json, entry 2 \(VizWiz_val_00000001.jpg\): \"answers\" must be a list"),
        (lambda e: [e[0], {**e[1], "image": "../../etc/passwd"}],
         r"entry 2: image '../../etc/passwd' leaves the image folder"),
        (lambda e: [e[0], {"image": "a.jpg"}], r"entry 2: \"image\" and \"question\" expected"),
        (lambda e: [*e, {**e[0], "question": "What?"}], r"comes twice \(lines 1 and 6\)"),
        (lambda e: [{**e[0], "image": "other.jpg"}, *e[1:]], r"other.jpg \(line 1\)"),
        (lambda e: {"annotations": e}, r"val.json is not a VizWiz annotation file"),
        (lambda e: [], r"val.json is not a VizWiz annotation file"),
    ],
)  # fmt: skip
def test_bad_annotations(tmp_path: Path, changed: Any, message: str) -> None:
    path = write_val(tmp_path) / "val.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()))))
    with pytest.raises(EvalError, match=message):
        prepare(tmp_path)


def test_a_download_cut_short(tmp_path: Path) -> None:
    path = write_val(tmp_path) / "val.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(EvalError, match="val.json, line 1, column .* download cut short"):
        prepare(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"question_id": 1, "text": "What?"}], "llava_val.jsonl, line 1: no image"),
        ([{"question_id": 1, "image": "VizWiz_val_00000009.jpg", "text": "What?"}],
         "val.json has no annotation for 1 of 1: 'VizWiz_val_00000009.jpg'; do the two files"),
        ([{"question_id": 1, "image": "VizWiz_val_00000000.jpg", "text": text} for text in "ab"],
         r"question_id 1 comes twice \(lines 1 and 2\)"),
        ([{"question_id": q, "image": "VizWiz_val_00000000.jpg", "text": "What?"} for q in (1, 2)],
         "line 2: picture 'VizWiz_val_00000000.jpg' was asked about in line 1"),
    ],
)  # fmt: skip
def test_questions_that_do_not_match(tmp_path: Path, lines: list[Any], message: str) -> None:
    write_val(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / image_name("val", 9))
    write_lines(tmp_path / "llava_val.jsonl", lines)
    with pytest.raises(EvalError, match=message):
        prepare(tmp_path)
