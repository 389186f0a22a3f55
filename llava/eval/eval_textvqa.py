"""Score TextVQA answers with the official metric.

    python -m llava.eval.eval_textvqa --annotation-file TextVQA_0.5.1_val.json \\
        --result-file answers.jsonl

An answer finds its annotation as in LLaVA: by (image id, lower-cased question), the question being
taken out of the prompt.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.labels import failed
from llava.eval.m4c_evaluator import NUM_ANSWERS, TextVQAAccuracyEvaluator
from llava.eval.samples import REFERENCE, read_jsonl

Annotations = dict[tuple[str, str], Mapping[str, Any]]


def question_of(prompt: str) -> str:
    """The question inside one of LLaVA's TextVQA prompts, in lower case.

    Three forms: ``OCR tokens: ... Question: Q Short answer:``; three lines, one of which is the
    list of reference OCR tokens (before or after the question); two lines, the question first.
    Raises ValueError for any other.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        match = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if match is not None:
            return match.group(1).lower()
    elif REFERENCE in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(REFERENCE) else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ValueError(
        f"cannot find the question in the prompt {prompt[:80]!r}; expected 'question\\ninstruction'"
        f", with or without a line '{REFERENCE} ...'"
    )


def load_annotations(path: str | Path) -> Annotations:
    """TextVQA's annotation file as (image id, lower-cased question) -> annotation."""
    path = Path(path)
    if not path.is_file():
        raise EvalError(f"annotation file not found: {path}")
    try:
        entries = json.loads(path.read_bytes())["data"]
        found = {(str(e["image_id"]), e["question"].lower()): e for e in entries}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise EvalError(
            f'{path} is not a TextVQA annotation file ({error!r}); expected {{"data": [{{'
            '"image_id", "question", "answers"}, ...]}'
        ) from None
    for i, entry in enumerate(entries):
        answers = entry.get("answers")
        if (
            not isinstance(answers, list)
            or len(answers) != NUM_ANSWERS
            or not all(isinstance(a, str) for a in answers)
        ):
            raise EvalError(
                f"{path}, entry {i + 1} (image id {entry['image_id']!r}): "
                f'"answers" must be a list of {NUM_ANSWERS} texts, got {str(answers)[:80]!r}; '
                "use the official file, of a split whose answers are public"
            )
    return found


def annotation_of(row: Mapping[str, Any], annotations: Annotations) -> Mapping[str, Any]:
    """The annotation of an answer (or of a question with "prompt"); EvalError if there is none."""
    try:
        question = question_of(row["prompt"])
    except ValueError as error:
        raise EvalError(str(error)) from None
    key = (str(row["question_id"]), question)
    if key not in annotations:
        raise EvalError(
            f"no annotation for image id {key[0]!r} and question {question!r}; do question file "
            "and annotation file belong together?"
        )
    return annotations[key]


def score_answers(rows: Sequence[Mapping[str, Any]], annotations: Annotations) -> list[float]:
    """Accuracy (0..1) of every answer, in order; 0 for one that could not be given, although people
    may have said what is nothing once normalised ("?")."""
    evaluator = TextVQAAccuracyEvaluator()
    scores = []
    for row in rows:
        answers = annotation_of(row, annotations)["answers"]
        try:
            scores.append(0.0 if failed(row) else evaluator.score(row["text"], answers))
        except ValueError as error:
            raise EvalError(f"question_id {row['question_id']!r}: {error}") from None
    return scores


def result_files(args: argparse.Namespace) -> list[Path]:
    if args.result_file is not None:
        return [Path(args.result_file)]
    folder = Path(args.result_dir)
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not files:
        raise EvalError(f"no .jsonl file in {folder}")
    return files


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score TextVQA answers with the official metric.")
    parser.add_argument("--annotation-file", required=True, help="TextVQA_0.5.1_val.json")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--result-file", help="one answers file")
    group.add_argument("--result-dir", help="every .jsonl of a folder")
    args = parser.parse_args(argv)
    annotations = load_annotations(args.annotation_file)
    for file in result_files(args):
        rows = [row for _, row in read_jsonl(file)]
        if not rows:
            raise EvalError(f"{file} holds no answer")
        scores = score_answers(rows, annotations)
        print(file.stem)
        print(f"Samples: {len(rows)}\nAccuracy: {100 * sum(scores) / len(rows):.2f}%\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
