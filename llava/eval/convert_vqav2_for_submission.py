"""VQAv2 answers as the file that the evaluation server takes.

    python scripts/convert_vqav2_for_submission.py --split llava_vqav2_mscoco_test-dev2015 \\
        --ckpt llava-v1.5-7b

reads ``DIR/answers/SPLIT/CKPT/merge.jsonl``, as LLaVA lays out its folders, and writes
``DIR/answers_upload/SPLIT/CKPT.json``; ``--src`` and ``--dst`` name other files.  The server wants
all of test2015: questions outside of the split get an empty answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.files import write_atomically
from llava.eval.labels import by_question, question_ids, read_answers, require_known
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor
from llava.eval.samples import read_questions

UPLOAD_QUESTIONS = "llava_vqav2_mscoco_test2015.jsonl"


def convert(rows: Iterable[Mapping[str, Any]], ids: Sequence[Any]) -> str:
    """The upload file's text: ``[{"question_id", "answer"}, ...]`` in the order of ``ids``, answers
    normalised as LLaVA normalises them; EvalError for an answer to none of them."""
    texts = by_question(rows)
    require_known(list(texts), {str(name): name for name in ids}, "question", "the question file")
    process = EvalAIAnswerProcessor()
    return json.dumps(
        [{"question_id": name, "answer": process(texts.get(str(name), ""))} for name in ids]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert VQAv2 answers for the server.")
    parser.add_argument("--dir", default="./playground/data/eval/vqav2")
    parser.add_argument("--ckpt", help="the checkpoint's folder among the answers")
    parser.add_argument("--split", help="as in llava_vqav2_mscoco_test-dev2015")
    parser.add_argument("--src", help="the answers file, instead of --ckpt and --split")
    parser.add_argument("--dst", help="the file to write, instead of --ckpt and --split")
    parser.add_argument("--test-file", help=f"all questions ({UPLOAD_QUESTIONS} below --dir)")
    args = parser.parse_args(argv)
    folder = Path(args.dir)
    named = args.ckpt is not None and args.split is not None
    if not named and (args.src is None or args.dst is None):
        raise EvalError("give --split and --ckpt, or --src and --dst")
    src = Path(args.src or folder / "answers" / args.split / args.ckpt / "merge.jsonl")
    dst = Path(args.dst or folder / "answers_upload" / args.split / f"{args.ckpt}.json")
    test_file = Path(args.test_file or folder / UPLOAD_QUESTIONS)
    ids = question_ids(read_questions(test_file), test_file)
    rows = read_answers(src)
    write_atomically(dst, convert(rows, ids))
    print(f"total results: {len(rows)}, total split: {len(ids)}, written: {dst}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
