"""GQA answers as the predictions file that the official script reads.

python scripts/convert_gqa_for_eval.py --src merge.jsonl --dst testdev_balanced_predictions.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from llava.eval.errors import run_main
from llava.eval.eval_gqa import prediction_of
from llava.eval.files import write_atomically
from llava.eval.labels import by_question, read_answers


def convert(rows: Iterable[Mapping[str, Any]], path: str = "the answers file") -> str:
    """The predictions file's text: ``[{"questionId", "prediction"}, ...]``, in the rows' order;
    EvalError for a question that is answered twice."""
    texts = by_question(rows, path)
    return json.dumps(
        [{"questionId": name, "prediction": prediction_of(text)} for name, text in texts.items()]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert GQA answers for the official script.")
    parser.add_argument("--src", required=True, help="the answers file")
    parser.add_argument("--dst", required=True, help="the file to write")
    args = parser.parse_args(argv)
    rows = read_answers(args.src)
    write_atomically(args.dst, convert(rows, args.src))
    print(f"{len(rows)} predictions: {args.dst}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
