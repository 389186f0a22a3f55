"""Answers about clips as the lines that Video-LLaVA writes and GPT-assisted scoring reads.

    python scripts/convert_video_for_gpt.py --src answers.jsonl --questions test_q.json \\
        --answers test_a.json --dst merge.jsonl

Each line is ``{"id", "question", "answer", "pred"}``, ``--pred_path`` of Video-LLaVA's and
Video-ChatGPT's scripts.  The judge calls a paid service and is no part of this repository; what it
writes, `llava.eval.eval_video_gpt` reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.errors import run_main
from llava.eval.eval_video import ClipQuestion, load_questions
from llava.eval.files import write_atomically
from llava.eval.labels import by_question, read_answers, require_known


def convert(
    rows: Sequence[Mapping[str, Any]],
    questions: Sequence[ClipQuestion],
    path: str = "the answers file",
) -> str:
    """The lines, in the rows' order; EvalError for a question that is answered twice or unknown."""
    known = {str(q.question_id): q for q in questions}
    texts = by_question(rows, path)
    require_known(list(texts), known, "question", path)
    lines = []
    for name, text in texts.items():
        q = known[name]
        line = {"id": q.question_id, "question": q.text, "answer": q.answer, "pred": text}
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert answers about clips for GPT scoring.")
    parser.add_argument("--src", required=True, help="the answers file")
    parser.add_argument("--questions", required=True, help="test_q.json")
    parser.add_argument("--answers", required=True, help="test_a.json")
    parser.add_argument("--dst", required=True, help="the file to write")
    args = parser.parse_args(argv)
    rows = read_answers(args.src)
    text = convert(rows, load_questions(args.questions, args.answers), args.src)
    write_atomically(args.dst, text)
    print(f"{len(rows)} answers: {args.dst}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
