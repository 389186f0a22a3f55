"""What a GPT judge said of answers about clips: accuracy and average score.

    python -m llava.eval.eval_video_gpt --result results.json

``--result`` is the judge script's combined file, ``{id: [{"pred": "yes", "score": 4}, {"q", "a",
"pred"}]}``, or its folder of one file a question.  As in Video-LLaVA's script: accuracy is the
share of "yes" among verdicts of yes or no; the average score is over all questions, each cut to a
whole number, and a verdict that cannot be read counts 0 there.  Which model judged, and when,
decides such numbers: they compare only within one judge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.labels import read_json

EXPECTED = 'a judge\'s result, {id: [{"pred": "yes", "score": 4}, {...}]}'


@dataclass(frozen=True)
class Verdicts:
    """accuracy: percent; score: 0 to 5; unread: verdicts without yes or no, or without a score."""

    accuracy: float | None
    score: float
    n: int
    unread: int


def read_verdicts(path: str | Path) -> dict[str, Any]:
    """id -> what the judge script wrote about it, from its combined file or its folder."""
    path = Path(path)
    if path.is_dir():
        found = {p.stem: read_json(p, EXPECTED) for p in sorted(path.glob("*.json"))}
    else:
        found = read_json(path, EXPECTED)
    if not isinstance(found, dict) or not found:
        raise EvalError(f"{path} holds no verdict; expected {EXPECTED}")
    return found


def count_verdicts(found: Mapping[str, Any]) -> Verdicts:
    """Accuracy and average score over a judge's verdicts."""
    yes = no = unread = 0
    total = 0
    for entry in found.values():
        verdict = entry[0] if isinstance(entry, list) and entry else {}
        verdict = verdict if isinstance(verdict, dict) else {}
        score, pred = _score(verdict.get("score")), verdict.get("pred")
        said = pred.lower() if isinstance(pred, str) else ""
        # As in the script: a verdict without a readable score says nothing of the answer either.
        readable = score is not None and ("yes" in said or "no" in said)
        total += score or 0
        unread += not readable
        if readable:
            yes += "yes" in said
            no += "yes" not in said
    accuracy = 100 * yes / (yes + no) if yes + no else None
    return Verdicts(accuracy, total / len(found), len(found), unread)


def _score(value: Any) -> int | None:
    """As Python's ``int``: 4.8 is 4, "4" is 4, anything else is None."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Accuracy and score of a GPT judge's verdicts.")
    parser.add_argument("--result", required=True, help="the judge's json file, or its folder")
    args = parser.parse_args(argv)
    found = count_verdicts(read_verdicts(args.result))
    shown = "none" if found.accuracy is None else f"{found.accuracy:.2f}%"
    print(f"Verdicts: {found.n} ({found.unread} that cannot be read)")
    print(f"GPT-assisted accuracy: {shown}\nAverage score: {found.score:.2f} of 5")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
