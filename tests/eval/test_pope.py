"""POPE: the official script's own figures, labels by position, both versions of the random file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava.eval.benchmarks import get_benchmark
from llava.eval.errors import EvalError, run_main
from llava.eval.eval_pope import Counts, count, main, object_of, read_labels, says_yes
from tests.eval.conftest import SUFFIX

GOLDEN = Path(__file__).parents[1] / "golden" / "scoring.json"
CASE = json.loads(GOLDEN.read_text())["pope"]


def test_golden_scoring_pope() -> None:
    rows = CASE["rows"]
    counts = count([says_yes(r["text"]) for r in rows], [r["label"] == "yes" for r in rows])
    assert counts == Counts(CASE["TP"], CASE["FP"], CASE["TN"], CASE["FN"])
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert getattr(counts, name) == pytest.approx(CASE[name], abs=1e-12)


@pytest.mark.parametrize(
    "index", range(len(CASE["rows"])), ids=lambda i: f"golden-scoring-pope-{i}"
)
def test_golden_scoring_pope_rows_have_the_counts_of_a_slow_reading(index: int) -> None:
    """Each answer against a reading written down word by word."""
    text = CASE["rows"][index]["text"]
    sentence = text[: text.find(".")] if "." in text else text
    words = "".join(c for c in sentence if c != ",").split(" ")
    assert says_yes(text) == all(word not in ("No", "no", "not") for word in words)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("no", False),
        ("NO", True),  # the official script knows these spellings only
        ("No.", False),
        ("Yes. No.", True),
        ("No, there is a dog", False),
        ("No,thanks", True),
        ("it is not there", False),
        ("Yes, no doubt", False),
        ("", True),
    ],
)
def test_what_an_answer_says(text: str, yes: bool) -> None:
    assert says_yes(text) == yes


def test_nothing_to_share_is_zero() -> None:
    never = count([False, False], [False, False])
    assert (never.precision, never.recall, never.f1, never.accuracy) == (0, 0, 0, 1)


# --- files ---------------------------------------------------------------------------------------

OBJECTS = {"adversarial": "dog cat orange", "random": "car tv", "popular": "bus cup"}
FIRST_ID = {"adversarial": 1, "random": 10000001, "popular": 20000001}
LABELS = {"adversarial": "yes no yes", "random": "yes no", "popular": "no no"}


def write_pope(folder: Path) -> Path:
    """Seven questions in the three categories, ids and the typing error as in the real files."""
    (folder / "coco").mkdir(parents=True)
    (folder / "val2014").mkdir()
    lines = []
    for category, objects in OBJECTS.items():
        labels = []
        for i, (thing, label) in enumerate(zip(objects.split(), LABELS[category].split())):
            article = "an" if thing == "orange" else "a"
            question = f"Is there {article} {thing} in the image?"
            image = f"COCO_val2014_{i // 2:012}.jpg"
            typed = question.replace("image", "imange") if thing == "orange" else question
            lines.append(
                {
                    "question_id": FIRST_ID[category] + i,
                    "image": image,
                    "text": f"{typed}\n{SUFFIX}",
                    "category": category,
                }
            )
            labels.append({"question_id": i, "image": image, "text": question, "label": label})
        path = folder / "coco" / f"coco_pope_{category}.json"
        path.write_text("".join(json.dumps(row) + "\n" for row in labels))
    (folder / "llava_pope_test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    return folder


def answers(folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    samples = get_benchmark("pope").read(get_benchmark("pope").files(folder))
    return [
        {
            "question_id": s.question_id,
            "prompt": s.prompt,
            "image": s.image,
            "text": text,
            "metadata": {"error": "gone"} if text == "FAILED" else {},
        }
        for s, text in zip(samples, texts)
    ]


def test_scores_by_hand(tmp_path: Path) -> None:
    """adversarial yes/no/yes: TP 1, FP 1, FN 1; random yes/no: all right; popular no/no: one FP."""
    folder = write_pope(tmp_path)
    benchmark = get_benchmark("pope")
    files = benchmark.files(folder)
    benchmark.check(benchmark.read(files)[:1], files)
    rows = answers(folder, ["Yes", "yes", "no", "Yes, a car.", "no", "no", "yes"])
    scores = benchmark.score(rows, files)
    assert scores.per_sample == [1, 0, 0, 1, 1, 1, 0]
    assert scores.types == {"adversarial": (50, 3), "popular": (0, 2), "random": (100, 2)}
    assert scores.score == pytest.approx(50)
    assert scores.details["adversarial"] == pytest.approx(
        {"F1": 50, "accuracy": 100 / 3, "precision": 50, "recall": 50, "yes ratio": 200 / 3}
    )
    assert scores.figures == pytest.approx(
        {
            "accuracy": (100 / 3 + 100 + 50) / 3,
            "precision": 50,
            "recall": 50,
            "yes ratio": (200 / 3 + 50 + 50) / 3,
        }
    )
    assert scores.parts is not None
    assert benchmark.headline(scores.parts.sum(0)) == pytest.approx(scores.score)
    assert files.split == "COCO val2014, random with 2 lines"
    assert benchmark.metric == "mean F1" and "accuracy" in benchmark.beside


def test_the_headline_of_any_draw_is_the_mean_f1_of_its_answers(tmp_path: Path) -> None:
    folder = write_pope(tmp_path)
    benchmark = get_benchmark("pope")
    files = benchmark.files(folder)
    rng = np.random.default_rng(0)
    rows = answers(folder, [str(rng.choice(["yes", "no"])) for _ in range(7)])
    parts = benchmark.score(rows, files).parts
    assert parts is not None
    for _ in range(20):
        picked = np.concatenate(
            [rng.integers(0, 3, 3), rng.integers(3, 5, 2), rng.integers(5, 7, 2)]
        )
        f1 = []
        for category in OBJECTS:
            at = [i for i in picked if json_category(folder, i) == category]
            said = [says_yes(rows[i]["text"]) for i in at]
            right = [LABELS_IN_ORDER[i] == "yes" for i in at]
            f1.append(count(said, right).f1)
        assert benchmark.headline(parts[picked].sum(0)) == pytest.approx(100 * sum(f1) / 3)


LABELS_IN_ORDER = [label for labels in LABELS.values() for label in labels.split()]


def json_category(folder: Path, index: int) -> str:
    lines = (folder / "llava_pope_test.jsonl").read_text().splitlines()
    return json.loads(lines[index])["category"]


def test_the_first_questions_keep_their_own_labels(tmp_path: Path) -> None:
    """A limited run ends inside of a category; the labels of later ones do not move up."""
    folder = write_pope(tmp_path)
    benchmark = get_benchmark("pope")
    scores = benchmark.score(answers(folder, ["yes"] * 4), benchmark.files(folder))
    assert scores.per_sample == [1, 0, 1, 1]
    assert list(scores.types) == ["adversarial", "random"]


def test_a_failed_answer_is_wrong_whatever_the_label(tmp_path: Path) -> None:
    folder = write_pope(tmp_path)
    benchmark = get_benchmark("pope")
    scores = benchmark.score(answers(folder, ["FAILED"] * 7), benchmark.files(folder))
    assert scores.per_sample == [0] * 7 and scores.score == 0


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pope(tmp_path)
    file = tmp_path / "answers.jsonl"
    rows = answers(folder, ["Yes", "yes", "no", "Yes, a car.", "no", "no", "yes"])
    # Positions are the question file's: the order of the answers does not matter.
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    args = [
        *("--annotation-dir", str(folder / "coco"), "--result-file", str(file)),
        *("--question-file", str(folder / "llava_pope_test.jsonl")),
    ]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "Category: adversarial, # samples: 3\nTP\tFP\tTN\tFN\t\n1\t1\t0\t1\n" in out
    assert "0.500, 0.333, 0.500, 0.500, 0.667" in out and "Mean F1: 50.00" in out
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[2]]))
    assert run_main(main, args) == 2
    assert "question_id 3 is answered twice" in capsys.readouterr().err


def spoil(path: Path, line: int, **changes: Any) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **changes})
    path.write_text("\n".join(lines) + "\n")


def refusal(folder: Path) -> str:
    benchmark = get_benchmark("pope")
    with pytest.raises(EvalError) as error:
        files = benchmark.files(folder)
        benchmark.check(benchmark.read(files), files)
    return str(error.value)


def test_a_label_file_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = write_pope(tmp_path)
    path = folder / "coco" / "coco_pope_random.json"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[0] + "\n")
    message = refusal(folder)
    assert "coco_pope_random.json has 3 labels" in message and "2 questions" in message
    assert "2,910 lines in one and 3,000 in another" in message
    path.write_text(whole.splitlines()[0] + "\n")
    assert "has 1 labels" in refusal(folder)


def test_labels_of_other_questions_are_refused(tmp_path: Path) -> None:
    folder = write_pope(tmp_path)
    path = folder / "coco" / "coco_pope_adversarial.json"
    whole = path.read_text()
    spoil(path, 3, image="COCO_val2014_000000000007.jpg")
    message = refusal(folder)
    assert "coco_pope_adversarial.json, line 3" in message and "000000000007.jpg" in message
    path.write_text(whole)
    spoil(path, 2, text="Is there a dog in the image?")
    assert "line 2" in (message := refusal(folder)) and "Is there a dog" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "maybe"}, "line 2: \"label\" is 'maybe'; it must be"),
        ({"label": None}, 'line 2: "label" is None'),
    ],
)
def test_bad_labels(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_pope(tmp_path)
    spoil(folder / "coco" / "coco_pope_popular.json", 2, **changes)
    assert message in refusal(folder)


def test_bad_files(tmp_path: Path) -> None:
    folder = write_pope(tmp_path)
    questions, labels = folder / "llava_pope_test.jsonl", folder / "coco" / "coco_pope_random.json"
    whole = questions.read_text()
    spoil(questions, 4, category="randon")
    assert "line 4: category 'randon' has no label file" in refusal(folder)
    spoil(questions, 4, category=None)
    assert 'line 4: "category" is None' in refusal(folder)
    questions.write_text(whole)
    spoil(questions, 5, image="../../etc/passwd")
    message = refusal(folder)
    assert "line 5: image '../../etc/passwd' leaves the image folder" in message
    questions.write_text(whole[:-40])
    assert "line 7: not valid JSON" in refusal(folder)
    questions.write_text(whole)
    labels.write_bytes(labels.read_bytes()[:-10])
    assert "coco_pope_random.json, line 2: not valid JSON" in refusal(folder)
    labels.unlink()
    assert "no label file" in refusal(folder)
    questions.unlink()
    assert "POPE data not found (questions: " in refusal(folder)


def test_objects_are_compared_across_versions() -> None:
    old = "Is there an orange in the imange?\n" + SUFFIX
    assert object_of(old) == object_of("Is there a orange in the image?")
    assert object_of(old) != object_of("Is there an apple in the image?")


def test_labels_know_their_lines(tmp_path: Path) -> None:
    path = write_pope(tmp_path) / "coco" / "coco_pope_random.json"
    path.write_text("\n" + path.read_text())
    assert [(label.is_yes, label.line) for label in read_labels(path)] == [(True, 2), (False, 3)]
