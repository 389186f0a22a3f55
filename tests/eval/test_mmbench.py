"""MMBench: options read out of answers, both accuracies by hand, all rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.base import Scores
from llava.eval.errors import EvalError, run_main
from llava.eval.eval_mmbench import main as evaluate
from llava.eval.eval_mmbench import read_option
from llava.eval.mmbench_tsv import read_table
from tests.eval.mmbench_files import (
    NAME,
    SAID,
    answers_of,
    rows_of_file,
    write_answers,
    write_dev,
    write_tsv,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dev(tmp_path)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("[D]", "D"),
        ("B. blue", "B"),
        ("The answer is B", "B"),
        ("The answer is A", "A"),
        ("A: red", "A"),
        ("A", "A"),
        ("答案是B。", "B"),
        ("选D", "D"),
        ("A red bus in a street", "A"),  # an article, and the text of option A
        ("A blue bus in a street", "B"),
        ("Blue", "B"),
        ("it is black", "D"),
        ("A or B", None),
        ("A, B", None),
        ("red or blue", None),
        ("E", None),
        ("b", None),  # a letter is a capital letter
        ("BB", None),
        ("", None),
        ("yellow", None),
        ("the picture shows a very long street with a blue bus in it", None),
    ],
)
def test_read_option(text: str, option: str | None) -> None:
    assert read_option(text, ("red", "blue", "green", "black")) == option


def test_letters_beyond_the_options_mean_nothing() -> None:
    assert read_option("C", ("yes", "no")) is None
    assert read_option("C. yes", ("yes", "no")) == "A"


def score(data: Path, said: Any, limit: int | None = None) -> Scores:
    benchmark = get_benchmark("mmbench")
    files = benchmark.files(data)
    samples = benchmark.read(files)[:limit]
    benchmark.check(samples, files)
    return benchmark.score(answers_of(samples, said), files)


def test_scores_by_hand(data: Path) -> None:
    scores = score(data, SAID)
    assert scores.score == pytest.approx(100 / 3)
    assert scores.figures == {"plain": pytest.approx(200 / 3), "unread": pytest.approx(10)}
    assert scores.per_sample == [1, 1, 1, 1, 1, 0, 0, 1, 1, 1]
    assert scores.types == {
        "attribute_recognition": (50, 2),
        "spatial_relationship": (0, 1),
        "l2-category/finegrained_perception (cross-instance)": (0, 1),
        "l2-category/finegrained_perception (instance-level)": (50, 2),
    }
    assert scores.details["attribute_recognition"] == {"plain": 100}
    assert scores.details["spatial_relationship"] == {"plain": 0}


def test_the_score_is_made_of_its_parts(data: Path) -> None:
    """What intervals resample: sums over pictures, each question counting once."""
    scores = score(data, SAID)
    assert scores.parts is not None and scores.parts.shape == (10, 2)
    benchmark = get_benchmark("mmbench")
    assert benchmark.headline(scores.parts.sum(0)) == pytest.approx(scores.score)
    assert scores.parts.sum(0).tolist() == [1, 3]
    twice = scores.parts[:4].sum(0) * 2 + scores.parts[4:6].sum(0)
    assert benchmark.headline(twice) == pytest.approx(200 / 3)


def test_chance(data: Path) -> None:
    """Always "A" is right once a question and never in every rotation."""
    scores = score(data, lambda _: "A")
    assert scores.score == 0
    assert sum(scores.per_sample) == 3


def test_an_answer_that_could_not_be_given_is_wrong(data: Path) -> None:
    benchmark = get_benchmark("mmbench")
    files = benchmark.files(data)
    rows = answers_of(benchmark.read(files), SAID)
    rows[2]["metadata"] = {"error": "cannot read picture 241"}
    assert benchmark.score(rows, files).score == 0


def test_a_limit_leaves_out_questions_that_it_cuts(data: Path) -> None:
    """Seven rows: two whole questions, and the third as it stands."""
    scores = score(data, SAID, 7)
    assert scores.score == 50 and scores.figures["plain"] == pytest.approx(200 / 3)
    assert scores.types["attribute_recognition"] == (50, 2)
    assert "spatial_relationship" not in scores.types
    with pytest.raises(EvalError, match="limit 3 leaves no question.*index 241, has 4.*LIMIT to 4"):
        score(data, SAID, 3)


def test_a_file_without_circular_rows_has_plain_accuracy(tmp_path: Path) -> None:
    write_tsv(tmp_path / NAME, rows_of_file(circular=False))
    benchmark = get_benchmark("mmbench")
    files = benchmark.files(tmp_path)
    samples = benchmark.read(files)
    assert (benchmark.metric, benchmark.beside) == ("accuracy", ())
    scores = benchmark.score(answers_of(samples, SAID), files)
    assert scores.score == scores.figures["plain"] == pytest.approx(200 / 3)
    assert get_benchmark("mmbench").metric == "circular accuracy"


def test_scoring_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also with LLaVA's own answers: other order, no image, the prompt without its instruction."""
    rows = answers_of(read_table(data / NAME).samples(""), SAID)
    for row in rows:
        del row["image"]
    answers = write_answers(tmp_path / "answers.jsonl", rows[::-1])
    args = ["--annotation-file", str(data / NAME), "--result-file", str(answers)]
    assert evaluate(args) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["all", "33.33", "3", "66.67", "3"]
    assert lines[2] == ["attribute_recognition", "50.00", "2", "100.00", "2"]
    assert "10.00%" in lines[-1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[0].update(question_id=7), "no row of index 7"),
        (lambda rows: rows[0].update(round_id=4), "no round 4 for index 241"),
        (lambda rows: rows.append(rows[0]), "index 241 is answered twice"),
        (lambda rows: rows[0].pop("text"), "line 1: an answer is"),
    ],
)
def test_answers_of_another_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    rows = answers_of(read_table(data / NAME).samples(), SAID)
    spoil(rows)
    answers = write_answers(tmp_path / "answers.jsonl", rows)
    args = ["--annotation-file", str(data / NAME), "--result-file", str(answers)]
    assert run_main(evaluate, args) == 2
    assert message in capsys.readouterr().err


def test_all_rounds_ask_what_circular_rows_ask(tmp_path: Path) -> None:
    """LLaVA's --all-rounds on a plain file, against the circular rows of the other file."""
    plain = read_table(write_tsv(tmp_path / "plain.tsv", rows_of_file(circular=False)))
    circular = read_table(write_tsv(tmp_path / "circular.tsv", rows_of_file()))
    rounds, rows = plain.samples(all_rounds=True), circular.samples()
    assert [s.prompt for s in rounds] == [s.prompt for s in rows]
    assert [s.question_id + 1_000_000 * s.round_id for s in rounds] == [s.question_id for s in rows]
    assert len({s.key for s in rounds}) == len(rounds)
    third = rounds[2]
    assert third.beside == {
        "options": ["green", "black", "red", "blue"],
        "option_char": ["C", "D", "A", "B"],
    }


def test_all_rounds_score_as_circular_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tsv(tmp_path / "plain.tsv", rows_of_file(circular=False))
    samples = read_table(path).samples(all_rounds=True)
    rows = answers_of(samples, lambda _: "")
    for row, sample in zip(rows, samples):
        row["text"] = SAID[sample.question_id + 1_000_000 * sample.round_id]
    answers = write_answers(tmp_path / "answers.jsonl", rows)
    assert evaluate(["--annotation-file", str(path), "--result-file", str(answers)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["all", "33.33", "3", "66.67", "3"]
