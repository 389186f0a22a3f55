"""Score SEED-Bench answers by dimension, and write the file that its leaderboard takes.

    python -m llava.eval.eval_seed --annotation-file SEED-Bench.json --result-file answers.jsonl \\
        --result-upload-file upload.jsonl

An answer is right where it is the option's letter and nothing else, as in LLaVA.
``scripts/convert_seed_for_submission.py`` is the same under LLaVA's name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.files import json_line, write_atomically
from llava.eval.labels import by_question, by_type, read_answers, read_json, require_known, words_of
from llava.eval.samples import Sample

LETTERS = "ABCD"
CHOICES = tuple(f"choice_{letter.lower()}" for letter in LETTERS)
KINDS = ("image", "video")


@dataclass(frozen=True)
class Question:
    """One entry of ``SEED-Bench.json``.

    Attributes:
        dimension: what it tests, by name.
        kind: "image" or "video".
        choices: texts of options A to D.
    """

    question_id: str
    text: str
    choices: tuple[str, ...]
    answer: str
    dimension: str
    kind: str


def load_questions(path: str | Path) -> dict[str, Question]:
    """``SEED-Bench.json`` as question id -> question, in its order."""
    content = read_json(path, "SEED-Bench.json")
    try:
        names = {number: name for name, number in content["question_type"].items()}
        entries = list(content["questions"])
    except (KeyError, TypeError, AttributeError) as error:
        raise EvalError(
            f'{path} is not SEED-Bench.json ({error!r}); expected {{"questions": [...], '
            '"question_type": {"name": number}}'
        ) from None
    questions: dict[str, Question] = {}
    for number, entry in enumerate(entries, start=1):
        question = _question(entry, names, f"{path}, question {number}")
        if question.question_id in questions:
            raise EvalError(
                f"{path}, question {number}: id {question.question_id!r} comes twice; use the "
                "official file"
            )
        questions[question.question_id] = question
    if not questions:
        raise EvalError(f"{path} holds no question")
    return questions


def _question(entry: Mapping[str, Any], names: Mapping[Any, str], where: str) -> Question:
    needed = ("question_id", "question", *CHOICES, "answer", "data_type", "question_type_id")
    missing = [name for name in needed if not isinstance(entry, dict) or name not in entry]
    if missing:
        raise EvalError(f"{where}: no {', '.join(missing)}; use the official file")
    where += f" (id {entry['question_id']!r})"
    if entry["answer"] not in tuple(LETTERS):
        raise EvalError(f'{where}: "answer" is {entry["answer"]!r}; it must be A, B, C or D')
    if entry["data_type"] not in KINDS:
        raise EvalError(
            f'{where}: "data_type" is {entry["data_type"]!r}; it must be image or video'
        )
    if entry["question_type_id"] not in names:
        raise EvalError(
            f'{where}: "question_type_id" is {entry["question_type_id"]!r}, which is none of '
            f'"question_type" ({", ".join(map(str, names))})'
        )
    return Question(
        str(entry["question_id"]),
        str(entry["question"]),
        tuple(str(entry[name]) for name in CHOICES),
        entry["answer"],
        names[entry["question_type_id"]],
        entry["data_type"],
    )


def check_questions(
    samples: Sequence[Sample], known: Mapping[str, Question], path: str | Path
) -> None:
    """Raise EvalError where a question of the question file is another one in SEED-Bench.json.

    Args:
        path: of the question file."""
    for sample in samples:
        where = f"{path}, line {sample.line}"
        question = known.get(str(sample.question_id))
        if question is None:
            raise EvalError(
                f"{where}: question_id {sample.question_id!r} is not in SEED-Bench.json; do the "
                "two files belong together?"
            )
        prompt = words_of(sample.prompt)
        for text in (question.text, *question.choices):
            if words_of(text) not in prompt:
                raise EvalError(
                    f"{where}: SEED-Bench.json has {text[:60]!r} in question "
                    f"{sample.question_id!r}, which is not asked here; do the two files belong "
                    "together?"
                )


def accuracies(
    answers: Mapping[str, str], questions: Sequence[Question]
) -> dict[str, tuple[float, int]]:
    """Accuracy (0..100) and number of questions of each dimension; unanswered ones are wrong."""
    right = [float(answers.get(q.question_id) == q.answer) for q in questions]
    return by_type(right, [q.dimension for q in questions])


def accuracy(answers: Mapping[str, str], questions: Sequence[Question]) -> float:
    """Accuracy (0..100) over all of them; unanswered ones are wrong."""
    return 100 * sum(answers.get(q.question_id) == q.answer for q in questions) / len(questions)


def write_upload(answers: Mapping[str, str], questions: Sequence[Question], path: Path) -> None:
    """The leaderboard's file: ``{"question_id", "prediction"}`` a line, in SEED-Bench.json's order,
    of the questions that are answered."""
    write_atomically(
        path,
        "".join(
            json_line({"question_id": q.question_id, "prediction": answers[q.question_id]})
            for q in questions
            if q.question_id in answers
        ),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score SEED-Bench answers by dimension.")
    parser.add_argument("--annotation-file", required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", required=True, help="the answers file")
    parser.add_argument("--result-upload-file", help="the leaderboard's file goes there")
    args = parser.parse_args(argv)
    questions = load_questions(args.annotation_file)
    answers = by_question(read_answers(args.result_file), args.result_file)
    require_known(list(answers), questions, "question", args.annotation_file)
    every = list(questions.values())
    for name, (score, n) in accuracies(answers, every).items():
        print(f"{name}: {score:.2f}% ({n} questions)")
    print(f"Total accuracy: {accuracy(answers, every):.2f}%")
    for kind in KINDS:
        part = [q for q in every if q.kind == kind]
        answered = sum(q.question_id in answers for q in part)
        if part:
            some = "" if answered == len(part) else f" ({answered} of {len(part)} answered)"
            print(f"{kind} accuracy: {accuracy(answers, part):.2f}%{some}")
    if args.result_upload_file is not None:
        write_upload(answers, every, Path(args.result_upload_file))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
