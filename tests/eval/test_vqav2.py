"""VQAv2 in the official formats: scores by hand, both splits, the upload file, bad files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.convert_vqav2_for_submission import main as convert_main
from llava.eval.errors import EvalError, run_main
from llava.eval.eval_vqav2 import main as eval_main
from llava.eval.run_benchmark import main as run_benchmark
from tests.eval.conftest import SUFFIX

ROOT = Path(__file__).parents[2]
# question_id, picture, question, humans, answer type, an answer, its score by hand
CASES: list[tuple[int, int, str, list[str], str, str, float]] = [
    (262148000, 262148, "Where is he looking?",
     ["down"] * 8 + ["at table", "skateboard"], "other", "Down.", 1.0),
    (262148001, 262148, "How many wheels are there?",
     ["4"] * 7 + ["four"] * 3, "number", "Four", 1.0),
    (393225000, 393225, "Is this a restaurant?",
     ["yes"] * 9 + ["no"], "yes/no", "No", 0.3),
    (393225001, 393225, "Whose shoes are these?",
     ["men's"] * 2 + ["boys"] * 8, "other", "Men's", 0.6),
]  # fmt: skip
UPLOAD = ["down", "4", "no", "men 's"]  # normalised as LLaVA normalises what it hands in


def write_val(folder: Path) -> Path:
    """The val split as the VQA site has it, without a file of LLaVA's."""
    (folder / "val2014").mkdir(parents=True)
    for picture in (262148, 393225):
        Image.new("RGB", (40, 30), "red").save(folder / f"val2014/COCO_val2014_{picture:012d}.jpg")
    questions = {
        "info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {},
        "data_subtype": "val2014",
        "questions": [
            {"image_id": image, "question": text, "question_id": name}
            for name, image, text, *_ in CASES
        ],
    }  # fmt: skip
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": humans[0],
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1}
                for i, answer in enumerate(humans)
            ],
            "image_id": image,
            "answer_type": kind,
            "question_id": name,
        }
        for name, image, _, humans, kind, *_ in reversed(CASES)  # matched by id, not by position
    ]
    write(folder / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    write(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    return folder


def write_test_dev(folder: Path) -> Path:
    """Test-dev as LLaVA's eval.zip has it: two of the three questions of test."""
    (folder / "test2015").mkdir(parents=True)
    lines = []
    for name in (262144000, 262144001, 262144002):
        image = "COCO_test2015_000000262144.jpg"
        text = f"Is it the ball no. {name}?\n{SUFFIX}"
        lines.append({"question_id": name, "image": image, "text": text, "category": "default"})
        Image.new("RGB", (40, 30), "blue").save(folder / "test2015" / image)
    write_lines(folder / "llava_vqav2_mscoco_test2015.jsonl", lines)
    write_lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", lines[:2])
    return folder


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answers() -> list[dict[str, Any]]:
    return [
        {"question_id": name, "prompt": f"{text}\n{SUFFIX}", "text": answer, "metadata": {}}
        for name, _, text, _, _, answer, _ in CASES
    ]


def test_questions_come_from_the_official_file(tmp_path: Path) -> None:
    benchmark = get_benchmark("vqav2")
    files = benchmark.files(write_val(tmp_path))
    samples = benchmark.read(files)
    assert files.split == "val" and files.questions.name.startswith("v2_OpenEnded")
    assert [sample.question_id for sample in samples] == [case[0] for case in CASES]
    assert samples[0].prompt == (
        "Where is he looking?\nAnswer the question using a single word or phrase."
    )
    assert samples[2].image == "COCO_val2014_000000393225.jpg"
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)


def test_llavas_question_file_goes_first(tmp_path: Path) -> None:
    write_val(tmp_path)
    name, image = CASES[2][0], "COCO_val2014_000000393225.jpg"
    line = {"question_id": name, "image": image, "text": "Is it?\nShortly."}
    write_lines(tmp_path / "llava_vqav2_mscoco_val2014.jsonl", [line])
    benchmark = get_benchmark("vqav2")
    files = benchmark.files(tmp_path)
    samples = benchmark.read(files)
    assert [sample.prompt for sample in samples] == ["Is it?\nShortly."]
    benchmark.check(samples, files)


def test_scores_by_hand(tmp_path: Path) -> None:
    benchmark = get_benchmark("vqav2")
    files = benchmark.files(write_val(tmp_path))
    scores = benchmark.score(answers(), files)
    assert scores.per_sample == pytest.approx([case[-1] for case in CASES])
    assert scores.score == pytest.approx(72.5)
    expected = {"number": (100, 1), "other": (80, 2), "yes/no": (30, 1)}
    assert scores.types.keys() == expected.keys()
    for kind, (score, n) in expected.items():
        assert scores.types[kind] == (pytest.approx(score), n)
    first = benchmark.score(answers()[:2], files)
    assert first.score == pytest.approx(100) and list(first.types) == ["number", "other"]


def test_an_answer_that_could_not_be_given_is_wrong(tmp_path: Path) -> None:
    """Even where its empty text is what the humans' answer comes to."""
    benchmark = get_benchmark("vqav2")
    files = benchmark.files(write_val(tmp_path))
    content = json.loads(files.answers.read_text())
    for entry in content["annotations"]:
        for given in entry["answers"]:
            given["answer"] = "the"
    write(files.answers, content)
    rows = [{**row, "text": ""} for row in answers()]
    assert benchmark.score(rows, files).score == 100
    rows[1]["metadata"] = {"error": "broken picture"}
    assert benchmark.score(rows, files).per_sample == [1, 0, 1, 1]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_val(tmp_path)
    write_lines(tmp_path / "answers.jsonl", answers())
    upload = [{"question_id": case[0], "answer": case[5]} for case in CASES]
    write(tmp_path / "results.json", upload)
    labels = str(tmp_path / "v2_mscoco_val2014_annotations.json")
    for name in ("answers.jsonl", "results.json"):
        path = str(tmp_path / name)
        assert eval_main(["--annotation-file", labels, "--result-file", path]) == 0
        out = capsys.readouterr().out
        assert "Samples: 4\nOverall accuracy: 72.50\n" in out
        assert "  other: 80.00 (2)\n" in out and "  what: 72.50 (4)\n" in out
    content = json.loads(Path(labels).read_text())
    content["annotations"][1]["answers"] = [{"answer": "no"}] * 10  # all of one mind: "No" is not
    write(Path(labels), content)
    args = ["--annotation-file", labels, "--result-file", str(tmp_path / "answers.jsonl")]
    assert eval_main(args) == 0
    assert "Overall accuracy: 90.00" in capsys.readouterr().out  # (1 + 1 + 1 + 0.6) / 4
    assert eval_main([*args, "--as-written"]) == 0
    assert "Overall accuracy: 65.00" in capsys.readouterr().out  # (1 + 1 + 0 + 0.6) / 4


# --- test-dev --------------------------------------------------------------------------------


def test_splits(tmp_path: Path) -> None:
    val, test_dev = write_val(tmp_path / "val"), write_test_dev(tmp_path / "test")
    assert get_benchmark("vqav2").files(val).split == "val"
    assert get_benchmark("vqav2").files(test_dev).split == "test-dev"
    both = write_test_dev(write_val(tmp_path / "both"))
    assert get_benchmark("vqav2").files(both).split == "val"
    assert get_benchmark("vqav2", "test-dev").files(both).split == "test-dev"
    with pytest.raises(EvalError, match="vqav2 has no split 'test' to choose; it has val, test-d"):
        get_benchmark("vqav2", "test")
    with pytest.raises(EvalError, match="textvqa has no split 'val' to choose; it has one"):
        get_benchmark("textvqa", "val")
    with pytest.raises(EvalError) as error:
        get_benchmark("vqav2", "val").files(test_dev)
    for name in ("val2014", "v2_mscoco_val2014_annotations.json", "v2_OpenEnded"):
        assert name in str(error.value)
    assert "test2015" not in str(error.value)
    (val / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(EvalError, match=r"VQAv2 data not found \(val: annotations: .*, or test-"):
        get_benchmark("vqav2").files(val)


def test_test_dev_is_not_scored_and_the_upload_file_covers_all_of_test(tmp_path: Path) -> None:
    benchmark = get_benchmark("vqav2")
    files = benchmark.files(write_test_dev(tmp_path))
    samples = benchmark.read(files)
    benchmark.check(samples, files)
    rows = [{"question_id": s.question_id, "text": "The Two, of 1,000."} for s in samples]
    assert benchmark.score(rows, files).score is None
    (path,) = benchmark.write_files(rows, files, tmp_path / "cell")
    answer = "2 of 1000"
    expected = [
        {"question_id": 262144000, "answer": answer},
        {"question_id": 262144001, "answer": answer},
        {"question_id": 262144002, "answer": ""},
    ]
    assert json.loads(path.read_text()) == expected
    (tmp_path / "llava_vqav2_mscoco_test2015.jsonl").unlink()
    (path,) = benchmark.write_files(rows, files, tmp_path / "cell")
    assert json.loads(path.read_text()) == expected[:2]


def test_converter_with_llavas_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_test_dev(tmp_path)
    split = "llava_vqav2_mscoco_test-dev2015"
    source = tmp_path / "answers" / split / "some-ckpt" / "merge.jsonl"
    source.parent.mkdir(parents=True)
    write_lines(source, [{"question_id": 262144001, "text": "A dog"}])
    script = ROOT / "scripts" / "convert_vqav2_for_submission.py"
    args = ["--dir", str(tmp_path), "--split", split, "--ckpt", "some-ckpt"]
    done = subprocess.run([sys.executable, script, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("total results: 1, total split: 3")
    written = tmp_path / "answers_upload" / split / "some-ckpt.json"
    assert [entry["answer"] for entry in json.loads(written.read_text())] == ["", "dog", ""]

    assert run_main(convert_main, ["--dir", str(tmp_path), "--ckpt", "some-ckpt"]) == 2
    assert "give --split and --ckpt, or --src and --dst" in capsys.readouterr().err
    for rows, message in (
        ([{"question_id": 262144001, "text": "a"}] * 2, "262144001 is answered twice"),
        ([{"question_id": 5, "text": "a"}], "no question for 1 of 1: '5'"),
        ([{"question_id": 262144001}], 'line 1: an answer is {"question_id"'),
        ([], "holds no answer"),
    ):
        write_lines(source, rows)
        assert run_main(convert_main, args) == 2
        assert message in capsys.readouterr().err


def test_val_answers_as_an_upload_file(tmp_path: Path) -> None:
    benchmark = get_benchmark("vqav2")
    files = benchmark.files(write_val(tmp_path))
    (path,) = benchmark.write_files(answers(), files, tmp_path)
    entries = json.loads(path.read_text())
    assert [entry["answer"] for entry in entries] == UPLOAD
    assert [entry["question_id"] for entry in entries] == [case[0] for case in CASES]


def test_from_pictures_to_the_upload_file(tmp_path: Path, tiny_model: Path) -> None:
    """The whole command on test-dev: no score, an upload file in every cell."""
    data = write_test_dev(write_val(tmp_path / "data"))
    args = ["vqav2", "--model-path", str(tiny_model), "--data", str(data), "--out", str(tmp_path),
            "--methods", "full,uniform", "--tokens", "9", "--max-new-tokens", "3", "--workers", "0",
            "--dtype", "float32", "--nproc", "1"]  # fmt: skip
    assert run_benchmark([*args, "--split", "test-dev"]) == 0
    for cell in ("full-36", "uniform-9"):
        folder = tmp_path / "vqav2-test-dev" / cell
        result = json.loads((folder / "result.json").read_text())
        assert result["score"] is None and result["n"] == 2 and result["split"] == "test-dev"
        assert result["files"] == ["upload.json"]
        assert len(json.loads((folder / "upload.json").read_text())) == 3
    assert run_benchmark([*args, "--limit", "3"]) == 0
    result = json.loads((tmp_path / "vqav2" / "uniform-9" / "result.json").read_text())
    assert result["n"] == 3 and 0 <= result["score"] <= 100 and result["split"] == "val"
    assert result["metric"] == "VQA accuracy"
    assert {kind: cell["n"] for kind, cell in result["types"].items()} == {
        "number": 1, "other": 1, "yes/no": 1,
    }  # fmt: skip


# --- bad files -------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """What the command does before the model is loaded."""
    benchmark = get_benchmark("vqav2")
    files = benchmark.files(folder)
    samples = benchmark.read(files)
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)


def change(path: Path, key: str, change: Any) -> None:
    content = json.loads(path.read_text())
    content[key] = change(content[key])
    write(path, content)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda e: e[1:], r"no annotation for 1 of 4: '393225001'; do the two files belong"),
        (lambda e: [*e[:3], {**e[3], "image_id": 7}],
         r"question_id 262148000 is about picture 7 there, and about 'COCO_val2014_000000262148."),
        (lambda e: [*e, e[2]], r"annotation 5: question_id 262148001 was annotated before"),
        (lambda e: [{**e[0], "answers": []}, *e[1:]],
         r"annotation 1 \(question_id 393225001\): \"answers\" must be a list"),
        (lambda e: [{**e[0], "answers": ["men's"]}, *e[1:]], r"annotation 1 .*must be a list"),
        (lambda e: [{**e[0], "answers": [{"answer": 2}]}, *e[1:]], r"annotation 1 .*must be a"),
        (lambda e: ["x", *e], r"annotation 1: no question_id in 'x'"),
        (lambda e: {}, r"is not a VQAv2 annotation file"),
    ],
)  # fmt: skip
def test_bad_labels(tmp_path: Path, changed: Any, message: str) -> None:
    path = write_val(tmp_path) / "v2_mscoco_val2014_annotations.json"
    change(path, "annotations", changed)
    with pytest.raises(EvalError, match=message) as error:
        prepare(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda e: [*e, e[0]], "lines 1 and 5 are the same sample"),
        (lambda e: [*e, {**e[0], "question": "Who?"}], r"262148000 comes twice \(lines 1 and 5\)"),
        (lambda e: [e[0], {"question": "Who?"}], r"question 2: expected \{\"image_id\""),
        (lambda e: [{**e[0], "image_id": "../../etc/passwd"}], "question 1: expected"),
        (lambda e: [], "is not a VQAv2 question file"),
        (lambda e: [{**e[0], "image_id": 9}], r"COCO_val2014_000000000009.jpg \(line 1\)"),
    ],
)
def test_bad_questions(tmp_path: Path, changed: Any, message: str) -> None:
    path = write_val(tmp_path) / "v2_OpenEnded_mscoco_val2014_questions.json"
    change(path, "questions", changed)
    with pytest.raises(EvalError, match=message):
        prepare(tmp_path)


@pytest.mark.parametrize("name", ["OpenEnded_mscoco_val2014_questions", "mscoco_val2014_annota"])
def test_a_download_cut_short(tmp_path: Path, name: str) -> None:
    path = next(write_val(tmp_path).glob(f"v2_{name}*.json"))
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(EvalError, match="line 1, column .*was the download cut short") as error:
        prepare(tmp_path)
    assert str(path) in str(error.value)


def test_a_picture_outside_of_the_folder(tmp_path: Path) -> None:
    write_val(tmp_path)
    line = {"question_id": 1, "image": "../../etc/passwd", "text": "What?"}
    write_lines(tmp_path / "llava_vqav2_mscoco_val2014.jsonl", [line])
    with pytest.raises(EvalError, match="line 1: image '../../etc/passwd' leaves the image folder"):
        prepare(tmp_path)
