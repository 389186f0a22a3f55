"""ScienceQA: the released scorer's own figures, LLaVA's files, questions without pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.errors import EvalError, run_main
from llava.eval.eval_science_qa import (
    main,
    parsed_choice,
    parsed_letter,
    summarise_split,
    write_outputs,
)
from llava.eval.model_vqa_science import main as model_vqa_science
from llava.eval.preparing import build_prompt
from llava.eval.run_benchmark import main as run_benchmark
from llava.eval.samples import raw_question
from tests.eval.conftest import answer_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "scoring.json"
CASE = json.loads(GOLDEN.read_text())["scienceqa"]
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize("name", CASE["problems"], ids=lambda n: f"golden-scoring-scienceqa-{n}")
def test_golden_scoring_scienceqa(name: str) -> None:
    texts = [p["text"] for p in CASE["predictions"] if p["question_id"] == name]
    num_choices = len(CASE["problems"][name]["choices"])
    choice = parsed_choice(texts[-1], num_choices) if texts else -1
    assert choice == CASE["parsed_choice"][name]


def test_golden_scoring_scienceqa_over_the_split(tmp_path: Path) -> None:
    summary = summarise_split(CASE["predictions"], CASE["problems"], list(CASE["problems"]))
    assert (summary.correct, summary.count) == (CASE["correct"], CASE["count"])
    assert summary.accuracy == pytest.approx(CASE["accuracy"])
    assert f"{summary.image_accuracy:.2f}" == f"{CASE['image_accuracy']:.2f}"
    write_outputs(summary, tmp_path / "output.json", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["results"] == CASE["parsed_choice"] and result["correct"] == CASE["correct"]
    output = json.loads((tmp_path / "output.json").read_text())
    assert len(output["correct"]) == CASE["correct"]
    assert len(output["correct"]) + len(output["incorrect"]) == CASE["count"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "FAILED"),
        (" B", "FAILED"),
        ("B.", "FAILED"),
        ("B. because", "B"),
        ("F", "FAILED"),
        ("The answer is B", "FAILED"),  # nothing follows the letter
        ("so The answer is B!", "B"),
        ("The answer is F.", "F"),  # a letter, and no choice
        ("The answer is A. The answer is A.", "FAILED"),
        ("AB", "FAILED"),
        ("", "FAILED"),
    ],
)
def test_letters(text: str, letter: str) -> None:
    assert parsed_letter(text) == letter


def test_a_letter_beyond_the_choices_is_none() -> None:
    assert [parsed_choice("C", n) for n in (2, 3)] == [-1, 2]
    assert parsed_choice("The answer is F.", 5) == -1


# --- files ---------------------------------------------------------------------------------------


def write_sqa(folder: Path) -> Path:
    """Four questions, two with a picture; one more problem in another split."""
    problems = {
        "4": problem("Which word rhymes?", ["cat", "dog"], 1, "language science", "grade2"),
        "5": problem("What is shown?", ["bus", "car", "tv"], 2, "natural science", "grade8", True),
        "11": problem(
            "Which is larger?",
            ["red", "blue"],
            0,
            "natural science",
            "grade7",
            True,
            "Look closely.",
        ),
        "15": problem("Where is it?", ["here", "there"], 0, "social science", "grade3", hint="Hm."),
        "99": problem("Not in the test split?", ["no", "yes"], 0, "social science", "grade12"),
    }
    entries = []
    for name in ("4", "5", "11", "15"):
        p = problems[name]
        context = f"Context: {p['hint']}\n" if p["hint"] else ""
        options = "\n".join(f"{c}. {choice}" for c, choice in zip("ABCDE", p["choices"]))
        value = f"{context}{p['question']}\n{options}"
        entry: dict[str, Any] = {"id": name}
        if p["image"]:
            value = f"<image>\n{value}"
            entry["image"] = f"{name}/image.png"
            picture = folder / "images" / "test" / name / "image.png"
            picture.parent.mkdir(parents=True)
            Image.new("RGB", (40, 30), "red" if name == "5" else "blue").save(picture)
        entry["conversations"] = [
            {"from": "human", "value": value},
            {"from": "gpt", "value": "ABCDE"[p["answer"]]},
        ]
        entries.append(entry)
    (folder / "llava_test_CQM-A.json").write_text(json.dumps(entries, indent=2))
    (folder / "problems.json").write_text(json.dumps(problems))
    splits = {"train": ["99"], "test": ["4", "5", "11", "15"]}
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    return folder


def problem(
    question: str,
    choices: list[str],
    answer: int,
    subject: str,
    grade: str,
    image: bool = False,
    hint: str = "",
) -> dict[str, Any]:
    return {
        **{"question": question, "choices": choices, "answer": answer, "subject": subject},
        **{"grade": grade, "image": "image.png" if image else None, "hint": hint},
    }


def test_prompts_are_llavas(tmp_path: Path) -> None:
    benchmark = get_benchmark("sqa")
    plain, shown, hinted, _ = benchmark.read(benchmark.files(write_sqa(tmp_path)))
    assert plain.prompt == f"Which word rhymes?\nA. cat\nB. dog\n{LETTER}" and plain.image is None
    assert shown.prompt == f"<image>\nWhat is shown?\nA. bus\nB. car\nC. tv\n{LETTER}"
    assert shown.image == "5/image.png"
    assert hinted.prompt.startswith("<image>\nContext: Look closely.\nWhich is larger?\nA. red")
    prompt = build_prompt(shown.prompt, "vicuna_v1")
    assert prompt.count("<image>") == 1 and "USER: <image>\nWhat is shown?\nA. bus" in prompt
    assert raw_question(shown.prompt) == "What is shown?\nA. bus\nB. car\nC. tv"


def test_scores_by_hand(tmp_path: Path) -> None:
    benchmark = get_benchmark("sqa")
    files = benchmark.files(write_sqa(tmp_path))
    benchmark.check(benchmark.read(files), files)
    scores = benchmark.score(answer_rows("sqa", tmp_path, ["B", "C", "B", "A. here"]), files)
    assert scores.per_sample == [1, 1, 0, 1] and scores.score == 75
    assert scores.figures == {"image accuracy": 50}
    assert scores.types == {
        "subject: language": (100, 1),
        "subject: natural": (50, 2),
        "subject: social": (100, 1),
        "context: picture": (50, 2),
        "context: text": (50, 2),
        "context: none": (100, 1),
        "grades: 1-6": (100, 2),
        "grades: 7-12": (50, 2),
    }
    assert files.split == "test"
    first = benchmark.score(answer_rows("sqa", tmp_path, ["A"]), files)
    assert first.score == 0 and first.figures == {}


def test_command_line_counts_the_whole_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = write_sqa(tmp_path / "data"), tmp_path / "answers.jsonl"
    file.write_text(
        "".join(json.dumps(r) + "\n" for r in answer_rows("sqa", folder, ["B", "C", "B"]))
    )
    output, result = tmp_path / "output.json", tmp_path / "result.json"
    args = ["--base-dir", str(folder), "--result-file", str(file)]
    assert main([*args, "--output-file", str(output), "--output-result", str(result)]) == 0
    said = capsys.readouterr().out
    assert "Total: 4, Correct: 2, Accuracy: 50.00%, IMG-Accuracy: 50.00%" in said
    assert json.loads(result.read_text())["results"] == {"4": 1, "5": 2, "11": 1, "15": -1}
    wrong = json.loads(output.read_text())["incorrect"]
    assert [(w["question_id"], w["parsed_ans"], w["ground_truth"]) for w in wrong] == [
        ("11", "B", "A"),
        ("15", "FAILED", "A"),
    ]
    assert run_main(main, [*args, "--split", "tset"]) == 2
    assert "has no split 'tset'; it has: train, test" in capsys.readouterr().err
    assert run_main(main, [*args, "--output-file", "o.json"]) == 2


def test_questions_with_and_without_pictures_share_a_run(tiny_model: Path, tmp_path: Path) -> None:
    """One batch of both kinds, answered as one by one; a picture that breaks fails alone."""
    folder = write_sqa(tmp_path / "data")
    flags = [
        *("sqa", "--model-path", str(tiny_model), "--data", str(folder), "--tokens", "9"),
        *("--methods", "visiondrop", "--max-new-tokens", "3", "--workers", "0", "--nproc", "1"),
        *("--dtype", "float32"),
    ]
    texts = []
    for size in ("4", "1"):
        out = tmp_path / f"out{size}"
        assert run_benchmark([*flags, "--out", str(out), "--batch-size", size]) == 0
        cell = out / "sqa" / "visiondrop-9"
        lines = (cell / "answers.jsonl").read_text().splitlines()
        texts.append([json.loads(line)["text"] for line in lines])
        result = json.loads((cell / "result.json").read_text())
        assert (result["split"], result["metric"], result["n"]) == ("test", "accuracy", 4)
        assert result["files"] == ["scienceqa_output.json", "scienceqa_result.json"]
        assert result["figures"].keys() == {"image accuracy"} and result["mean_tokens"] < 10
        assert json.loads((cell / "scienceqa_result.json").read_text())["count"] == 4
        assert "image accuracy" in (out / "sqa" / "table.md").read_text().splitlines()[2]
    assert texts[0] == texts[1]
    (folder / "images" / "test" / "5" / "image.png").write_bytes(b"no picture")
    out = tmp_path / "broken"
    assert run_benchmark([*flags, "--out", str(out), "--batch-size", "4"]) == 3
    result = json.loads((out / "sqa" / "visiondrop-9" / "result.json").read_text())
    assert (result["n"], result["failed"]) == (4, 1)


def test_llavas_two_commands(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = write_sqa(tmp_path / "data"), tmp_path / "answers.jsonl"
    args = [
        *("--model-path", str(tiny_model), "--image-folder", str(folder / "images" / "test")),
        *("--question-file", str(folder / "llava_test_CQM-A.json"), "--workers", "0"),
        *("--dtype", "float32", "--batch-size", "4", "--max_new_tokens", "2"),
    ]
    assert model_vqa_science([*args, "--answers-file", str(file), "--single-pred-prompt"]) == 0
    prompts = [json.loads(line)["prompt"] for line in file.read_text().splitlines()]
    assert [p.startswith("<image>\n") for p in prompts] == [False, True, True, False]
    assert all(p.endswith(LETTER) for p in prompts)
    capsys.readouterr()
    assert main(["--base-dir", str(folder), "--result-file", str(file)]) == 0
    assert "Total: 4, Correct: " in capsys.readouterr().out
    plain = tmp_path / "plain.jsonl"
    assert model_vqa_science([*args, "--answers-file", str(plain), "--limit", "1"]) == 0
    (line,) = plain.read_text().splitlines()
    assert json.loads(line)["prompt"] == "Which word rhymes?\nA. cat\nB. dog"


# --- bad input -----------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    benchmark = get_benchmark("sqa")
    with pytest.raises(EvalError) as error:
        files = benchmark.files(folder)
        samples = benchmark.read(files)
        benchmark.pictures(files).check(samples)
        benchmark.check(samples, files)
    return str(error.value)


def change(path: Path, edit: Any) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("problems.json", lambda p: p["5"].update(answer=3), "problem '5': \"answer\" is 3"),
        ("problems.json", lambda p: p["5"].update(choices=["one"]), "problem '5': it needs 2 to 5"),
        ("problems.json", lambda p: p["5"].pop("choices"), "problem '5': it needs 2 to 5"),
        ("problems.json", lambda p: p.pop("5"), "entry 2 (id '5'): not among the 4 problems"),
        (
            "problems.json",
            lambda p: p["5"].update(question="Who?"),
            "entry 2 (id '5'): it does not",
        ),
        ("problems.json", lambda p: p["5"].update(image=None), "has no picture for it"),
        ("problems.json", lambda p: p["4"].update(image="a.png"), "has a picture for it"),
        ("pid_splits.json", lambda s: s["test"].remove("11"), "entry 3 (id '11'): not among the 3"),
        ("pid_splits.json", lambda s: s.pop("test"), "has no split 'test'; it has: train"),
        ("llava_test_CQM-A.json", lambda q: q[1].pop("conversations"), "entry 2: not"),
        ("llava_test_CQM-A.json", lambda q: q[1].update(image=7), '"image" must be a path, got 7'),
        (
            "llava_test_CQM-A.json",
            lambda q: q[1].update(image="../../etc/passwd"),
            "entry 2 (id '5'): image '../../etc/passwd' leaves the image folder",
        ),
        ("llava_test_CQM-A.json", lambda q: q[1].update(image="5/gone.png"), "5/gone.png (line 2)"),
        ("llava_test_CQM-A.json", lambda q: q.append(q[0]), "lines 1 and 5 are the same sample"),
    ],
)
def test_bad_files(tmp_path: Path, file: str, edit: Any, message: str) -> None:
    folder = write_sqa(tmp_path)
    change(folder / file, edit)
    assert message in (said := refusal(folder)) and (file in said or "image" in said)


@pytest.mark.parametrize("file", ["llava_test_CQM-A.json", "problems.json", "pid_splits.json"])
def test_truncated_files(tmp_path: Path, file: str) -> None:
    path = write_sqa(tmp_path) / file
    path.write_bytes(path.read_bytes()[:-20])
    assert (said := refusal(tmp_path)).startswith(f"{path}, line ") and "Fetch it again" in said
    path.unlink()
    assert "ScienceQA data not found" in refusal(tmp_path)
