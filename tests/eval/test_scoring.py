"""The official TextVQA metric, checked against the official scorer's own figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval.errors import EvalError
from llava.eval.eval_textvqa import load_annotations, main, question_of, score_answers
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor, TextVQAAccuracyEvaluator

GOLDEN = Path(__file__).parents[1] / "golden" / "scoring.json"
CASES = json.loads(GOLDEN.read_text())["textvqa"]


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"golden-scoring-textvqa-{i}")
def test_golden_scoring(index: int) -> None:
    case = CASES[index]
    evaluator = TextVQAAccuracyEvaluator()
    assert evaluator.answer_processor(case["prediction"]) == case["normalised_prediction"]
    score = evaluator.score(case["prediction"], case["answers"])
    assert score == pytest.approx(case["accuracy"], abs=1e-12)


def test_golden_scoring_mean_over_all_cases() -> None:
    pairs = [{"pred_answer": c["prediction"], "gt_answers": c["answers"]} for c in CASES]
    expected = sum(c["accuracy"] for c in CASES) / len(CASES)
    assert TextVQAAccuracyEvaluator().eval_pred_list(pairs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("The Cat's", "cat 's"),
        ("ten o'clock", "10 o'clock"),
        ("dont", "don't"),
        ("couldn'tve couldnt've", "couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("a/b", "b"),  # the slash becomes a space, then the article goes
    ],
)
def test_normalisation(answer: str, normalised: str) -> None:
    assert EvalAIAnswerProcessor()(answer) == normalised


@pytest.mark.parametrize("agree", range(11))
def test_accuracy_is_the_leave_one_out_mean(agree: int) -> None:
    answers = ["yes"] * agree + [f"no{i}" for i in range(10 - agree)]
    by_hand = 0.0
    for left_out in range(10):
        others = answers[:left_out] + answers[left_out + 1 :]
        by_hand += min(1, others.count("yes") / 3) / 10
    assert TextVQAAccuracyEvaluator().score("yes", answers) == pytest.approx(by_hand)


def test_wrong_number_of_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs 10 answers a question, got 9"):
        TextVQAAccuracyEvaluator().score("a", ["a"] * 9)


@pytest.mark.parametrize(
    "prompt",
    [
        "What IS it?\nReference OCR token: a, b\nAnswer shortly.",
        "Reference OCR token: a, b\nWhat IS it?\nAnswer shortly.",
        "What IS it?\nAnswer shortly.",
        "OCR tokens: a b. Question: What IS it? Short answer:",
    ],
)
def test_question_of_every_prompt_form(prompt: str) -> None:
    assert question_of(prompt) == "what is it?"


def test_question_of_another_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot find the question"):
        question_of("What is it?")


def write_annotations(folder: Path) -> Path:
    """Two questions under one image id, which ids alone would mix up."""
    path = folder / "annotations.json"
    entries = [
        {"image_id": "x", "question": "What colour?", "answers": ["red"] * 10},
        {"image_id": "x", "question": "How many?", "answers": ["2"] * 10},
    ]
    path.write_text(json.dumps({"data": entries}))
    return path


def test_answers_are_matched_by_image_and_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = write_annotations(tmp_path)
    rows = [
        {"question_id": "x", "prompt": "How many?\nShort.", "text": "two"},
        {"question_id": "x", "prompt": "What colour?\nShort.", "text": "blue"},
    ]
    assert score_answers(rows, load_annotations(annotations)) == [1.0, 0.0]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for flags in (["--result-file", str(answers)], ["--result-dir", str(tmp_path)]):
        assert main(["--annotation-file", str(annotations), *flags]) == 0
        assert capsys.readouterr().out == "answers\nSamples: 2\nAccuracy: 50.00%\n\n"


def test_an_answer_without_annotation_is_an_error(tmp_path: Path) -> None:
    row = {"question_id": "y", "prompt": "How many?\nShort.", "text": "2"}
    with pytest.raises(EvalError, match="no annotation for image id 'y' and question 'how many"):
        score_answers([row], load_annotations(write_annotations(tmp_path)))


@pytest.mark.parametrize("answers", [None, "red", [], ["red"] * 9, [1] * 10])
def test_an_annotation_without_ten_answers_is_named_before_any_answer(
    tmp_path: Path, answers: Any
) -> None:
    path = write_annotations(tmp_path)
    content = json.loads(path.read_text())
    content["data"][1]["answers"] = answers
    path.write_text(json.dumps(content))
    with pytest.raises(EvalError, match=r"entry 2 \(image id 'x'\).*list of 10 texts"):
        load_annotations(path)


def test_an_answer_that_could_not_be_given_is_wrong_whatever_people_said(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    entry = {"image_id": "x", "question": "What is it?", "answers": ["?"] * 10}
    path.write_text(json.dumps({"data": [entry]}))
    row: dict[str, Any] = {"question_id": "x", "prompt": "What is it?\nAnswer.", "text": ""}
    failed = {**row, "metadata": {"error": "cannot read picture"}}
    assert score_answers([row, failed], load_annotations(path)) == [1.0, 0.0]
