"""VizWiz answers as the file that the evaluation server takes.

    python scripts/convert_vizwiz_for_submission.py --annotation-file llava_test.jsonl \\
        --result-file answers.jsonl --result-upload-file upload.json

``--annotation-file`` is the question file; each of its questions must be answered.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from llava.eval.errors import run_main
from llava.eval.files import write_atomically
from llava.eval.labels import by_question, read_answers, require_known
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor
from llava.eval.samples import read_questions


def convert(
    rows: Iterable[Mapping[str, Any]],
    questions: Iterable[Mapping[str, Any]],
    path: str = "the answers file",
) -> str:
    """The upload file's text: ``[{"image", "answer"}, ...]`` in the questions' order, answers
    normalised as LLaVA normalises them.

    Args:
        questions: each with "question_id" and "image".

    Raises EvalError for a question without answer.
    """
    texts = by_question(rows, path)
    asked = [(str(question["question_id"]), question["image"]) for question in questions]
    require_known([name for name, _ in asked], texts, "answer", path)
    process = EvalAIAnswerProcessor()
    return json.dumps([{"image": image, "answer": process(texts[name])} for name, image in asked])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert VizWiz answers for the server.")
    parser.add_argument("--annotation-file", required=True, help="the question file")
    parser.add_argument("--result-file", required=True, help="the answers file")
    parser.add_argument("--result-upload-file", required=True, help="the file to write")
    args = parser.parse_args(argv)
    questions = [
        {"question_id": sample.question_id, "image": sample.image}
        for sample in read_questions(args.annotation_file)
    ]
    rows = read_answers(args.result_file)
    write_atomically(args.result_upload_file, convert(rows, questions, args.result_file))
    written = args.result_upload_file
    print(f"total results: {len(rows)}, total split: {len(questions)}, written: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
