"""MME: accuracy and accuracy+ by hand, its own text files, pairs under one id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.errors import EvalError, run_main
from llava.eval.eval_mme import main, parse_answer, read_task_files, score_tasks
from llava.eval.run_benchmark import main as run_benchmark
from tests.eval.conftest import SUFFIX, answer_rows

# Task -> picture -> (question, answer), (question, answer); artwork lies as in the real archive.
DATA = {
    "code_reasoning": {
        "0020": (("Is a python code shown?", "No"), ("Is a c++ code shown?", "Yes")),
        "0014": (("Is the output '7'?", "Yes"), ("Is the output '1'?", "No")),
    },
    "artwork": {"10": (("Is this titled sorrow?", "Yes"), ("Is this titled  joy?", "No"))},
    "existence": {
        "a.b": (("Is there a cat?", "Yes"), ("Is there a dog?", "No")),
        "tt_2": (("Is there a bus?", "Yes"), ("Is there a cup?", "No")),
    },
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("YES, it is", "yes"),
        ("It is, yes", "other"),  # beyond the fourth character
        ("Know", "no"),
        ("", "other"),
        ("not at all", "no"),
        ("I'd say no", "other"),
    ],
)
def test_what_an_answer_says(text: str, answer: str) -> None:
    assert parse_answer(text) == answer


# --- files ---------------------------------------------------------------------------------------


def write_mme(folder: Path) -> Path:
    """Ten questions of three tasks."""
    root, lines = folder / "MME_Benchmark_release_version", []
    for task, pictures in DATA.items():
        below = "images/" if task == "artwork" else ""
        texts = root / task / ("questions_answers_YN" if below else "")
        texts.mkdir(parents=True)
        (root / task / below).mkdir(exist_ok=True)
        for name, pair in pictures.items():
            image = f"{task}/{below}{name}.png"
            Image.new("RGB", (32, 24), "green").save(root / image)
            # One of the real files' spellings has two spaces before the last sentence.
            texts.joinpath(f"{name}.txt").write_text(
                "".join(f"{q}  Please answer yes or no.\t{a}\r\n" for q, a in pair)
            )
            lines += [
                {
                    "question_id": image,
                    "image": image,
                    "text": f"{question}\n{SUFFIX}",
                    "category": task,
                }
                for question, _ in pair
            ]
    path = folder / "llava_mme.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


TEXTS = ["No", "Yes", "yes", "yes", "Yes", "perhaps", "Yes", "No", "no", "no"]


def test_scores_by_hand(tmp_path: Path) -> None:
    """code: 3 of 4, 1 of 2 pictures; artwork: 1 of 2, 0 of 1; existence: 3 of 4, 1 of 2."""
    benchmark = get_benchmark("mme")
    files = benchmark.files(write_mme(tmp_path))
    samples = benchmark.read(files)
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)
    assert len({s.question_id for s in samples}) == 5 and len({s.key for s in samples}) == 10
    scores = benchmark.score(answer_rows("mme", tmp_path, TEXTS), files)
    assert scores.per_sample == [1, 1, 1, 0, 1, 0, 1, 1, 0, 1]
    assert scores.types == {
        "existence": (125, 4),
        "artwork": (50, 2),
        "code_reasoning": (125, 4),
    }
    assert scores.figures == {"perception": 175, "cognition": 125, "tasks": 3}
    assert scores.score == 300
    assert scores.details["artwork"] == {
        **{"accuracy": 50, "accuracy+": 0, "pictures": 1, "other answers": 1}
    }
    assert benchmark.metric == "perception + cognition"


def test_the_first_questions(tmp_path: Path) -> None:
    """A limited run may end inside of a pair: that picture has no accuracy+ yet."""
    benchmark = get_benchmark("mme")
    scores = benchmark.score(
        answer_rows("mme", write_mme(tmp_path), TEXTS[:3]), benchmark.files(tmp_path)
    )
    assert scores.types == {"code_reasoning": (200, 3)}
    assert scores.details["code_reasoning"]["pictures"] == 1


def calculated(folder: Path) -> dict[str, float]:
    """The official way: consecutive lines of a text file are a picture's pair."""
    scores = {}
    for path in folder.glob("*.txt"):
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        assert all(len(cells) == 4 for cells in lines) and len(lines) % 2 == 0
        right = []
        for first, second in zip(lines[::2], lines[1::2]):
            assert first[0] == second[0], "one picture"
            right.append([parse_answer(c[3]) == c[2].lower() for c in (first, second)])
        table = np.array(right)
        scores[path.stem] = 100 * (table.mean() + table.all(1).mean())
    return scores


def test_text_files_give_the_same_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written from shuffled answers with tabs and line breaks in them, read by the rules above."""
    folder = write_mme(tmp_path / "data")
    benchmark = get_benchmark("mme")
    files = benchmark.files(folder)
    answers = answer_rows("mme", folder, ["yes\tand\nno" if t == "yes" else t for t in TEXTS])
    shuffled = [answers[i] for i in np.random.default_rng(0).permutation(10)]
    paths = benchmark.write_files(shuffled, files, tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in paths} == {
        f"eval_tool/{task}.txt" for task in DATA
    }
    expected = {"code_reasoning": 125, "artwork": 50, "existence": 125}
    assert calculated(tmp_path / "eval_tool") == pytest.approx(expected)
    again = score_tasks(read_task_files(tmp_path / "eval_tool"))
    assert {name: task.score for name, task in again.items()} == expected
    line = (tmp_path / "eval_tool" / "artwork.txt").read_text().splitlines()[0]
    assert line.split("\t")[0] == "10.txt"
    assert line.split("\t")[1].endswith("  Please answer yes or no."), "as MME has it"

    result = tmp_path / "answers.jsonl"
    result.write_text("".join(json.dumps(row) + "\n" for row in shuffled))
    made = tmp_path / "made"
    args = ["--result-file", str(result), "--data-dir", str(files.images)]
    assert main([*args, "--results_dir", str(made)]) == 0
    printed = capsys.readouterr().out
    assert "=========== Perception ===========\ntotal score: 175.0\n" in printed
    assert "\t code_reasoning  score: 125.0" in printed
    assert main(["--results_dir", str(made)]) == 0
    assert capsys.readouterr().out == printed
    (made / "existence.txt").write_text("a.txt\tIs it?\tYes\n")
    assert run_main(main, ["--results_dir", str(made)]) == 2
    assert "existence.txt, line 1: expected picture, question" in capsys.readouterr().err


def test_the_headline_of_any_draw_is_the_score_of_its_pictures(tmp_path: Path) -> None:
    benchmark = get_benchmark("mme")
    files = benchmark.files(write_mme(tmp_path))
    parts = benchmark.score(answer_rows("mme", tmp_path, TEXTS), files).parts
    assert parts is not None and benchmark.headline(parts.sum(0)) == pytest.approx(300)
    right = np.array([1, 1, 1, 0, 1, 0, 1, 1, 0, 1]).reshape(5, 2)
    tasks = np.array([0, 0, 1, 2, 2])
    rng = np.random.default_rng(1)
    for _ in range(20):
        drawn = np.concatenate([rng.integers(0, 2, 2), [2], rng.integers(3, 5, 2)])
        expected = sum(
            100 * (right[d].mean() + right[d].all(1).mean())
            for d in (drawn[tasks[drawn] == t] for t in range(3))
        )
        at = np.concatenate([2 * drawn, 2 * drawn + 1])
        assert benchmark.headline(parts[at].sum(0)) == pytest.approx(expected)


def test_a_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = write_mme(tmp_path / "data")
    flags = [
        *("mme", "--model-path", str(tiny_model), "--data", str(folder), "--tokens", "9"),
        *("--methods", "visiondrop,uniform", "--max-new-tokens", "3", "--workers", "0"),
        *("--dtype", "float32", "--batch-size", "4", "--out", str(tmp_path / "out")),
        *("--nproc", "1"),
    ]
    assert run_benchmark(flags) == 0
    cell = tmp_path / "out" / "mme" / "visiondrop-9"
    result = json.loads((cell / "result.json").read_text())
    assert result["files"] == [
        f"eval_tool/{task}.txt" for task in ("existence", "artwork", "code_reasoning")
    ]
    assert result["score"] == pytest.approx(sum(calculated(cell / "eval_tool").values()))
    assert result["types"]["artwork"].keys() >= {"score", "n", "accuracy", "accuracy+"}
    rows = json.loads((tmp_path / "out" / "mme" / "comparison.json").read_text())["rows"]
    uniform = next(row for row in rows if row["method"] == "uniform")
    assert uniform["difference"] == pytest.approx(uniform["score"] - result["score"])
    assert uniform["low"] <= uniform["difference"] <= uniform["high"] and uniform["clusters"] == 5
    head = (tmp_path / "out" / "mme" / "table.md").read_text().splitlines()[2]
    assert "| perception + cognition | perception | cognition |" in head


# --- bad input -----------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    benchmark = get_benchmark("mme")
    with pytest.raises(EvalError) as error:
        files = benchmark.files(folder)
        samples = benchmark.read(files)
        benchmark.pictures(files).check(samples)
        benchmark.check(samples, files)
    return str(error.value)


def test_bad_text_files(tmp_path: Path) -> None:
    root = write_mme(tmp_path) / "MME_Benchmark_release_version"
    path = root / "existence" / "tt_2.txt"
    whole = path.read_bytes()
    for bad, message in (
        (b"Is there a bus?\tYes\nIs there a cup? No\n", "tt_2.txt, line 2: expected a question"),
        (b"Is there a bus?\tMaybe\n", "tt_2.txt, line 1: expected a question, a tab and Yes or No"),
        (whole[:20], "tt_2.txt, line 1: expected"),
        (whole.splitlines()[0], "line 10: question 'Is there a cup?' of 'existence/tt_2.png' is"),
        (b"\xff\xfe\x00", "tt_2.txt: no UTF-8 text"),
    ):
        path.write_bytes(bad)
        assert message in refusal(tmp_path)
    path.unlink()
    assert "line 9: question" in (said := refusal(tmp_path)) and "tt_2.txt" in said
    for file in (root / "artwork" / "questions_answers_YN").iterdir():
        file.unlink()
    assert "no question/answer file (*.txt) of task 'artwork'" in refusal(tmp_path)


def test_bad_questions(tmp_path: Path) -> None:
    questions = write_mme(tmp_path) / "llava_mme.jsonl"
    lines = questions.read_text().splitlines()

    def with_line(number: int, **changes: Any) -> str:
        changed = json.dumps({**json.loads(lines[number - 1]), **changes})
        questions.write_text("\n".join([*lines[: number - 1], changed, *lines[number:]]) + "\n")
        return refusal(tmp_path)

    assert "line 3: question_id 'coding/1.png' names no task of MME" in with_line(
        3, question_id="coding/1.png"
    )
    assert "line 2: question 'Is it?' of" in with_line(2, text=f"Is it?\n{SUFFIX}")
    message = with_line(4, image="../../etc/passwd")
    assert "line 4: image '../../etc/passwd' leaves the image folder" in message
    message = with_line(4, image="code_reasoning/gone.png")
    assert "code_reasoning/gone.png (line 4)" in message
    questions.write_text("\n".join([*lines[:5], lines[5][:50]]))
    assert "line 6: not valid JSON" in refusal(tmp_path)
