"""MM-Vet answers as the results json that its evaluator takes.

    python scripts/convert_mmvet_for_eval.py --src answers/llava-v1.5-7b.jsonl \\
        --dst results/llava-v1.5-7b.json

``{"v1_0": "answer", ...}``: MM-Vet (Yu et al., ICML 2024, arXiv 2308.02490) has GPT-4 rate the
answers, in the notebook at github.com/yuweihao/MM-Vet; no score is made here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.errors import run_main
from llava.eval.files import write_atomically
from llava.eval.labels import by_question, read_answers


def write_results(
    path: str | Path, rows: Sequence[Mapping[str, Any]], source: str | Path = "answers"
) -> None:
    """Write the json in one step; EvalError for a question that ``source`` answers twice."""
    results = {f"v1_{name}": text for name, text in by_question(rows, source).items()}
    write_atomically(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description="MM-Vet answers as its evaluator's results json.")
    p.add_argument("--src", required=True, help="answers jsonl")
    p.add_argument("--dst", required=True, help="results json")
    args = p.parse_args(argv)
    rows = read_answers(args.src)
    write_results(args.dst, rows, args.src)
    print(f"{args.dst}: {len(rows)} answers")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
