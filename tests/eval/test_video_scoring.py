"""Scores over answers about clips, the file for a GPT judge, and what is made of its verdicts."""

from __future__ import annotations

import json

import pytest

from llava.eval import convert_video_for_gpt, eval_video, eval_video_gpt
from llava.eval.errors import EvalError
from llava.eval.eval_video import contains, exact, load_questions, score_rows

QUESTIONS = [
    {"question": "what is a man doing?", "video_name": "v1", "question_id": "a"},
    {"question": "how many dogs are there?", "video_name": "v1", "question_id": "b"},
    {"question": "who is singing?", "video_name": "v2", "question_id": "c"},
]
ANSWERS = [
    {"answer": "someone", "type": 8, "question_id": "c"},
    {"answer": "playing", "type": 0, "question_id": "a"},
    {"answer": "two", "type": 7, "question_id": "b"},
]


@pytest.fixture
def files(tmp_path):
    q, a = tmp_path / "test_q.json", tmp_path / "test_a.json"
    q.write_text(json.dumps(QUESTIONS))
    a.write_text(json.dumps(ANSWERS))
    return q, a


def row(name, text, **more):
    return {"question_id": name, "prompt": "?", "text": text, "metadata": {}, **more}


@pytest.mark.parametrize(
    ("prediction", "answer", "same"),
    [
        ("Red.", "red", True),
        ("the red", "red", True),
        ("two", "2", True),
        ("2", "two", True),
        ("A guitar!", "guitar", True),
        ("It is red.", "red", False),
        ("reddish", "red", False),
        ("", "red", False),
        ("A", "a", True),
        ("???", "a", False),
        ("", "a", False),
    ],
)
def test_exact_match_after_normalisation(prediction, answer, same):
    assert exact(prediction, answer) is same


def test_contained_is_by_whole_words():
    assert contains("There are two dogs.", "2") and contains("a red car", "red car")
    assert not contains("reddish", "red") and not contains("", "red") and not contains("red", "")


def test_answers_are_matched_by_id_and_scored(files):
    questions = load_questions(*files)
    assert [(q.question_id, q.answer, q.kind) for q in questions] == [
        ("a", "playing", "type 0"), ("b", "two", "type 7"), ("c", "someone", "type 8"),
    ]  # fmt: skip
    rows = [row("b", "2"), row("a", "He is playing."), row("c", "someone")]
    rows[2]["metadata"] = {"error": "broken file"}
    right, held, asked = score_rows(rows, questions)
    assert right == [1, 0, 0] and held == [1, 1, 0] and asked[0].text.startswith("how many")


def test_broken_files_are_told(files, tmp_path):
    q, a = files
    a.write_text(json.dumps(ANSWERS[:2]))
    with pytest.raises(EvalError, match="no answer for 1 of 3: 'b'"):
        load_questions(q, a)
    a.write_text(json.dumps([*ANSWERS, ANSWERS[0]]))
    with pytest.raises(EvalError, match="'c' is answered twice"):
        load_questions(q, a)
    a.write_text(json.dumps(ANSWERS))
    q.write_text(json.dumps([{"question": "?", "question_id": 1}]))
    with pytest.raises(EvalError, match="entry 1: no video_name"):
        load_questions(q, a)
    q.write_text("{}")
    with pytest.raises(EvalError, match="no list"):
        load_questions(q, a)


def test_the_judges_file_has_video_llavas_lines(files, tmp_path, capsys):
    src, dst = tmp_path / "answers.jsonl", tmp_path / "merge.jsonl"
    src.write_text("".join(json.dumps(row(n, t)) + "\n" for n, t in (("c", "a man"), ("a", "x"))))
    argv = ["--questions", str(files[0]), "--answers", str(files[1])]
    assert convert_video_for_gpt.main(["--src", str(src), "--dst", str(dst), *argv]) == 0
    assert [json.loads(line) for line in dst.read_text().splitlines()] == [
        {"id": "c", "question": "who is singing?", "answer": "someone", "pred": "a man"},
        {"id": "a", "question": "what is a man doing?", "answer": "playing", "pred": "x"},
    ]
    assert eval_video.main(["--result-file", str(src), *argv]) == 0
    assert "Exact match (no GPT): 0.00%" in capsys.readouterr().out
    src.write_text(json.dumps(row("z", "x")) + "\n")
    with pytest.raises(EvalError, match="'z'"):
        convert_video_for_gpt.main(["--src", str(src), "--dst", str(dst), *argv])


def judged(pred, score):
    return [{"pred": pred, "score": score}, {"q": "?", "a": "b", "pred": "c"}]


def test_verdicts_are_counted_as_video_llavas_script_does(tmp_path, capsys):
    """The script's rule, by hand: yes 5, yes 4.8 (cut to 4), no 1, "3" as text, one unreadable
    score, which counts as a question and not as a verdict."""
    found = {
        "a": judged("yes", 5),
        "b": judged("Yes", 4.8),
        "c": judged("no", 1),
        "d": judged("no", "3"),
        "e": judged("yes", None),
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(found))
    counted = eval_video_gpt.count_verdicts(eval_video_gpt.read_verdicts(path))
    assert counted.accuracy == 50 and counted.score == (5 + 4 + 1 + 3) / 5
    assert (counted.n, counted.unread) == (5, 1)
    for name, entry in found.items():
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / f"{name}.json").write_text(json.dumps(entry))
    again = eval_video_gpt.read_verdicts(tmp_path / "folder")
    assert eval_video_gpt.count_verdicts(again) == counted
    assert eval_video_gpt.main(["--result", str(path)]) == 0
    assert "accuracy: 50.00%" in capsys.readouterr().out
    path.write_text("[]")
    with pytest.raises(EvalError, match="no verdict"):
        eval_video_gpt.read_verdicts(path)
