"""The official VQA metric and VizWiz's: cases by hand, and the definition written out."""

from __future__ import annotations

import random

import pytest

from llava.eval.m4c_evaluator import EvalAIAnswerProcessor
from llava.eval.vqa_eval import leave_one_out, normalise, vizwiz_accuracy, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("Yes", "yes"),
        ("Yes.", "yes"),
        (" a\nRed\tBus ", "red bus"),
        ("The two dogs", "2 dogs"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),  # number words end at ten
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("Im", "im"),  # the table's "Im" is never met in lower case
        ("t-shirt", "t shirt"),
        ("t- shirt", "t shirt"),  # a mark beside a space goes
        ("red/white", "red white"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # a comma in a number: every mark goes
        ("1,,000", "1 000"),  # two commas are none in a number; two spaces are one
        ("men's", "men's"),  # apostrophes and colons stay
        ("10:30", "10:30"),
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("St.", "st"),
        ("?", ""),
        ("[]{}()=+\\_-><@`", ""),
        ("$20", "$20"),  # no mark of the list
        ("the", ""),
    ],
)
def test_normalisation_by_hand(answer: str, normalised: str) -> None:
    assert normalise(answer) == normalised


def test_textvqas_normalisation_is_another() -> None:
    """The three differences that `llava.eval.vqa_eval` names."""
    differing = {"men's": "men 's", "red,white": "redwhite", "what?now": "whatnow"}
    for answer, textvqas in differing.items():
        assert EvalAIAnswerProcessor()(answer) == textvqas != normalise(answer)


@pytest.mark.parametrize("total", [10, 3])
def test_leave_one_out_written_out(total: int) -> None:
    for agree in range(total + 1):
        humans = [True] * agree + [False] * (total - agree)
        scores = [min(1, sum(humans[:i] + humans[i + 1 :]) / 3) for i in range(total)]
        assert leave_one_out(agree, total) == pytest.approx(sum(scores) / total, abs=1e-12)


def test_leave_one_out_of_ten_by_hand() -> None:
    expected = {0: 0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1, 10: 1}
    for agree, accuracy in expected.items():
        assert leave_one_out(agree, 10) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("prediction", "humans", "accuracy"),
    [
        ("Yes", ["yes"] * 10, 1.0),
        ("Yes", ["yes"] * 9 + ["no"], 1.0),
        ("no", ["yes"] * 9 + ["no"], 0.3),
        ("2", ["two"] * 2 + ["3"] * 8, 0.6),
        ("A T-shirt.", ["t-shirt"] * 3 + ["shirt"] * 7, 0.9),
        ("T-shirt", ["t-shirt"] * 10, 1.0),
        ("men's", ["men's"] * 2 + ["mens"] * 8, 0.6),
        ("red,white", ["red and white"] * 5 + ["red white"] * 5, 1.0),
        ("dont know", ["don't know"] * 1 + ["no"] * 9, 0.3),
        ("", ["yes"] * 10, 0.0),
    ],
)
def test_vqa_accuracy_by_hand(prediction: str, humans: list[str], accuracy: float) -> None:
    assert vqa_accuracy(prediction, humans) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("prediction", "humans", "accuracy"),
    [
        ("Yes", ["yes"] * 10, 0.0),  # the humans agree: strings as they are
        ("yes\n", ["yes"] * 10, 1.0),
        ("t-shirt", ["t-shirt"] * 10, 1.0),
        ("t shirt", ["t-shirt"] * 10, 0.0),
        ("Yes", ["yes"] * 9 + ["Yes"], 1.0),  # they do not: all of them normalised
        ("t shirt", ["t-shirt"] * 3 + ["shirt"] * 7, 0.9),
    ],
)
def test_the_script_to_the_letter(prediction: str, humans: list[str], accuracy: float) -> None:
    assert vqa_accuracy(prediction, humans, as_written=True) == pytest.approx(accuracy)


def test_both_readings_agree_where_humans_differ() -> None:
    """And where they agree, the one that normalises never gives less."""
    draw = random.Random(0)
    words = ["yes", "Yes", "no.", "t-shirt", "T shirt", "two", "2", "a bus", "bus", "men's"]
    for _ in range(300):
        humans = [draw.choice(words[: draw.randint(1, 4)]) for _ in range(10)]
        prediction = draw.choice(words)
        ours = vqa_accuracy(prediction, humans)
        letter = vqa_accuracy(prediction, humans, as_written=True)
        assert ours == letter if len(set(humans)) > 1 else ours >= letter


@pytest.mark.parametrize(
    ("prediction", "humans", "accuracy"),
    [
        ("Unanswerable", ["unanswerable"] * 6 + ["blurry"] * 4, 1.0),
        ("Unanswerable.", ["unanswerable"] * 2 + ["unsuitable"] * 8, 0.6),
        ("A red can", ["red can"] * 3 + ["can"] * 7, 0.9),
        ("a can", ["a can"] * 10, 0.0),  # the humans' article stays
        ("T-Shirt", ["t-shirt"] * 10, 0.0),
        ("T-Shirt", ["t shirt"] * 10, 1.0),
        ("Ten", ["10"] * 1 + ["9"] * 9, 0.3),
    ],
)
def test_vizwiz_accuracy_by_hand(prediction: str, humans: list[str], accuracy: float) -> None:
    assert vizwiz_accuracy(prediction, humans) == pytest.approx(accuracy)
