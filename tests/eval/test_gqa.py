"""GQA in the official formats: scores by hand and by a loop, predictions file, bad files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.convert_gqa_for_eval import main as convert_main
from llava.eval.errors import EvalError, run_main
from llava.eval.eval_gqa import main as eval_main
from llava.eval.eval_gqa import prediction_of
from llava.eval.run_benchmark import main as run_benchmark
from tests.eval.conftest import SUFFIX

ROOT = Path(__file__).parents[2]
# question, answer, structural and semantic type, an answer of the model, right?
CASES = [
    ("Is it overcast?", "no", "verify", "attr", "No.", True),
    ("Who is wearing the dress?", "woman", "query", "rel", "Woman", True),
    ("Which color is it?", "dark blue", "query", "attr", "blue", False),
    ("Is it indoors or outdoors?", "outdoors", "choose", "global", "outdoors...", True),
    ("Is there a cat or a dog?", "yes", "logical", "obj", "yes, there is", False),
    ("What animal is it?", "cat", "query", "cat", "a cat", False),  # exact match, article and all
]


def write_data(folder: Path, llava: bool = True) -> Path:
    """As the GQA site and LLaVA have it; with ``llava`` its question file, in another order."""
    images = folder / "data" / "images"
    images.mkdir(parents=True)
    entries, lines = {}, []
    for i, (question, answer, structural, semantic, *_) in enumerate(CASES):
        image = f"n{161313 + i // 2}"
        Image.new("RGB", (48, 32), "white").save(images / f"{image}.jpg")
        entries[f"2013{i:05d}"] = {
            "imageId": image,
            "question": question,
            "answer": answer,
            "fullAnswer": f"{answer}.",
            "isBalanced": True,
            "groups": {"global": None, "local": "13-dress_color"},
            "types": {"structural": structural, "semantic": semantic, "detailed": "x"},
            "entailed": [],
            "equivalent": [f"2013{i:05d}"],
            "semantic": [],
            "semanticStr": "",
            "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
        }
        lines.append({"question_id": f"2013{i:05d}", "image": f"{image}.jpg",
                      "text": f"{question}\n{SUFFIX}", "category": "default"})  # fmt: skip
    (folder / "data" / "testdev_balanced_questions.json").write_text(json.dumps(entries))
    if llava:
        write_lines(folder / "llava_gqa_testdev_balanced.jsonl", lines[::-1])
    return folder


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answers() -> list[dict[str, Any]]:
    return [{"question_id": f"2013{i:05d}", "text": case[4]} for i, case in enumerate(CASES)]


@pytest.mark.parametrize("llava", [True, False])
def test_questions(tmp_path: Path, llava: bool) -> None:
    """From LLaVA's file, or from the official one alone: the same."""
    benchmark = get_benchmark("gqa")
    files = benchmark.files(write_data(tmp_path, llava))
    assert files.split == "testdev_balanced"
    samples = sorted(benchmark.read(files), key=lambda sample: sample.question_id)
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)
    assert samples[1].question_id == "201300001" and samples[1].image == "n161313.jpg"
    assert samples[1].prompt == (
        "Who is wearing the dress?\nAnswer the question using a single word or phrase."
    )
    assert len(samples) == len(CASES)


def test_unbalanced_questions_of_the_official_file_are_not_asked(tmp_path: Path) -> None:
    benchmark = get_benchmark("gqa")
    files = benchmark.files(write_data(tmp_path, llava=False))
    content = json.loads(files.answers.read_text())
    content["201300002"]["isBalanced"] = False
    files.answers.write_text(json.dumps(content))
    ids = [sample.question_id for sample in benchmark.read(files)]
    assert ids == [f"2013{i:05d}" for i in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize(
    ("text", "prediction"),
    [("Yes.", "yes"), ("Dark Blue", "dark blue"), ("u.s.", "u.s"), (".5", ".5"), ("", "")],
)
def test_prediction_of_an_answer(text: str, prediction: str) -> None:
    assert prediction_of(text) == prediction


def test_scores_by_hand(tmp_path: Path) -> None:
    benchmark = get_benchmark("gqa")
    files = benchmark.files(write_data(tmp_path))
    scores = benchmark.score(answers(), files)
    assert scores.per_sample == [float(case[5]) for case in CASES]
    assert scores.score == pytest.approx(50)
    third = pytest.approx(100 / 3)
    assert scores.figures == {"binary": pytest.approx(200 / 3), "open": third}
    assert scores.types == {
        "binary": (pytest.approx(200 / 3), 3),
        "open": (third, 3),
        "structural: choose": (100, 1),
        "structural: logical": (0, 1),
        "structural: query": (third, 3),
        "structural: verify": (100, 1),
        "semantic: attribute": (50, 2),
        "semantic: category": (0, 1),
        "semantic: object": (0, 1),
        "semantic: relation": (100, 1),
        "semantic: scene": (100, 1),
    }
    some = benchmark.score(answers()[:1], files)
    assert some.figures == {"binary": 100}, "no open question was asked"
    rows = [{**answers()[0], "metadata": {"error": "no picture"}}]
    assert benchmark.score(rows, files).score == 0


def test_scores_by_a_loop(tmp_path: Path) -> None:
    """Random answers against the metric written out over the official file."""
    benchmark = get_benchmark("gqa")
    files = benchmark.files(write_data(tmp_path))
    questions = json.loads(files.answers.read_text())
    draw = random.Random(0)
    for _ in range(20):
        rows = []
        right: dict[str, list[bool]] = defaultdict(list)
        for name, question in questions.items():
            said = draw.choice([question["answer"], "yes", "no", "woman"])
            rows.append({"question_id": name, "text": said.capitalize() + draw.choice(["", "."])})
            correct = said == question["answer"]
            kind = question["types"]["structural"]
            for group in ("all", "open" if kind == "query" else "binary", f"structural: {kind}"):
                right[group].append(correct)
        scores = benchmark.score(rows, files)
        means = {group: 100 * sum(found) / len(found) for group, found in right.items()}
        assert scores.score == pytest.approx(means.pop("all"))
        for group, mean in means.items():
            assert scores.types[group] == (pytest.approx(mean), len(right[group]))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers are scored as they are, and as the predictions file that the converter makes."""
    write_data(tmp_path)
    source, predictions = tmp_path / "merge.jsonl", tmp_path / "predictions.json"
    write_lines(source, answers())
    script = ROOT / "scripts" / "convert_gqa_for_eval.py"
    done = subprocess.run(
        [sys.executable, script, "--src", source, "--dst", predictions],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(predictions.read_text())[:2] == [
        {"questionId": "201300000", "prediction": "no"},
        {"questionId": "201300001", "prediction": "woman"},
    ]
    questions = str(tmp_path / "data" / "testdev_balanced_questions.json")
    for path in (source, predictions):
        assert eval_main(["--questions", questions, "--result-file", str(path)]) == 0
        out = capsys.readouterr().out
        assert "Samples: 6\nAccuracy: 50.00%\n  binary: 66.67% (3 questions)\n" in out
        assert "  semantic: scene: 100.00% (1 questions)\n" in out
    write_lines(source, [*answers(), answers()[0]])
    assert run_main(convert_main, ["--src", str(source), "--dst", str(predictions)]) == 2
    assert "merge.jsonl: question_id '201300000' is answered twice" in capsys.readouterr().err


def test_from_pictures_to_the_predictions(tmp_path: Path, tiny_model: Path) -> None:
    data = write_data(tmp_path / "data")
    args = ["gqa", "--model-path", str(tiny_model), "--data", str(data), "--out", str(tmp_path),
            "--methods", "full", "--max-new-tokens", "3", "--workers", "0", "--dtype", "float32",
            "--nproc", "1", "--batch-size", "3"]  # fmt: skip
    assert run_benchmark(args) == 0
    folder = tmp_path / "gqa" / "full-36"
    result = json.loads((folder / "result.json").read_text())
    assert (result["n"], result["split"], result["metric"]) == (6, "testdev_balanced", "accuracy")
    assert result["beside"] == ["binary", "open"] == list(result["figures"])
    assert result["files"] == ["testdev_balanced_predictions.json"]
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    written = json.loads((folder / "testdev_balanced_predictions.json").read_text())
    assert written == [
        {"questionId": row["question_id"], "prediction": row["text"].rstrip(".").lower()}
        for row in rows
    ]
    assert "| binary | open |" in (tmp_path / "gqa" / "table.md").read_text()


# --- bad files -------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """What the command does before the model is loaded."""
    benchmark = get_benchmark("gqa")
    files = benchmark.files(folder)
    samples = benchmark.read(files)
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imageId": "n9"}, r"'201300001' is about picture 'n9' there, and about 'n161313.jpg' in "
         r"the question file \(line 5\)"),
        ({"isBalanced": False}, r"'201300001' \(line 5 of the question file\) is not among the ba"),
        ({"types": {"structural": "query"}}, r"question '201300001': expected .*KeyError"),
        ({"types": None}, r"question '201300001': expected .*TypeError"),
    ],
)  # fmt: skip
def test_bad_official_questions(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_data(tmp_path) / "data" / "testdev_balanced_questions.json"
    content = json.loads(path.read_text())
    content["201300001"].update(changes)
    path.write_text(json.dumps(content))
    with pytest.raises(EvalError, match=message) as error:
        prepare(tmp_path)
    assert str(path) in str(error.value)


def test_bad_files(tmp_path: Path) -> None:
    path = write_data(tmp_path) / "data" / "testdev_balanced_questions.json"
    text = path.read_text()
    for spoiled, message in (
        (text[:300], "line 1, column .*cut short"),
        ("[]", "is not a GQA question file"),
        (json.dumps({"1": json.loads(text)["201300000"]}), "has no question for 6 of 6"),
    ):
        path.write_text(spoiled)
        with pytest.raises(EvalError, match=message):
            prepare(tmp_path)
    path.unlink()
    with pytest.raises(EvalError, match=r"GQA data not found \(testdev_balanced: annotations: "):
        prepare(tmp_path)


def test_bad_question_lines(tmp_path: Path) -> None:
    path = write_data(tmp_path) / "llava_gqa_testdev_balanced.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [*lines, {**lines[0], "text": "Who?"}])
    with pytest.raises(EvalError, match=r"question_id '201300005' comes twice \(lines 1 and 7\)"):
        prepare(tmp_path)
    write_lines(path, [{**lines[0], "image": "../../etc/passwd"}])
    with pytest.raises(EvalError, match="line 1: image '../../etc/passwd' leaves the image folder"):
        prepare(tmp_path)
