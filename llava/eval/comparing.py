"""Methods against a reference on the same questions, with paired intervals, per budget."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.errors import EvalError
from llava.eval.files import write_atomically
from llava.eval.intervals import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    bootstrap_intervals,
    bootstrap_statistics,
)

REFERENCES = ("visiondrop", "random")
SEED = 0
PAIRS_AT_A_TIME = 24
STEM = "comparison"

Result = Mapping[str, Any]
Scores = Mapping[str, Sequence[Sequence[float]]]
"""Cell -> for each of its seeds the score (0 to 1) of every question."""


@dataclass(frozen=True)
class Parts:
    """What scores are made of that are no means over questions.

    Attributes:
        cells: cell -> for each of its seeds [n, k], what every question adds.
        headline: the score from sums [..., k], as [...]; see ``Benchmark.headline``.
    """

    cells: Mapping[str, Sequence[np.ndarray]]
    headline: Callable[[np.ndarray], np.ndarray]

    def intervals(
        self, pairs: Sequence[tuple[str, str]], pictures: Sequence[str]
    ) -> list[Interval]:
        """Of each pair's first cell minus its second."""
        columns: list[np.ndarray] = []
        places: dict[str, list[slice]] = {}
        width = 0
        for cell in dict.fromkeys(name for pair in pairs for name in pair):
            places[cell] = []
            for part in self.cells[cell]:
                places[cell].append(slice(width, width + part.shape[1]))
                columns.append(part)
                width += part.shape[1]

        def differences(sums: np.ndarray) -> np.ndarray:
            score = {
                cell: np.mean([self.headline(sums[:, place]) for place in own], axis=0)
                for cell, own in places.items()
            }
            return np.stack([score[one] - score[other] for one, other in pairs], axis=1)

        values = np.concatenate(columns, axis=1)
        return bootstrap_statistics(values, pictures, differences, seed=SEED)


def choose_reference(results: Sequence[Result], wanted: str | None) -> str | None:
    """The label of what others are compared with; None where there is nothing to compare with.

    Raises EvalError for one that was asked for and is not there."""
    labels = [result["label"] for result in results]
    if wanted is not None:
        if wanted not in labels:
            raise EvalError(
                f"--reference {wanted}: not among the methods of this run "
                f"({', '.join(dict.fromkeys(labels))})"
            )
        return wanted
    return next((name for name in REFERENCES if name in labels), None)


def reference_of(result: Result, references: Sequence[Result]) -> Result | None:
    """The reference's cell at the same budget; where it has none itself (the full model), it is
    that of all, and where only one is there it is that of what has no budget."""
    if len(references) == 1 and None in (result.get("budget"), references[0].get("budget")):
        return references[0]
    if result.get("budget") is None:
        return None
    return next((r for r in references if r["tokens"] == result["tokens"]), None)


def compare(
    results: Sequence[Result],
    scores: Scores,
    pictures: Sequence[str],
    reference: str,
    parts: Parts | None = None,
) -> dict[str, Interval]:
    """Cell -> interval of its score minus the reference's at the same budget, in points.

    Args:
        results: cells of a table, each with "cell", "label", "tokens" and "budget".
        scores: of several seeds' the mean is compared, question by question.
        pictures: of each question, in order: what is resampled.
        reference: the label of the reference.
        parts: in place of ``scores`` where the score is no mean over questions.
    """
    references = [result for result in results if result["label"] == reference]
    pairs = []
    for result in results:
        other = reference_of(result, references)
        if other is not None and other["cell"] != result["cell"]:
            pairs.append((result["cell"], other["cell"]))
    intervals = compare_pairs(pairs, scores, pictures, parts)
    return {cell: interval for (cell, _), interval in intervals.items()}


def compare_pairs(
    pairs: Sequence[tuple[str, str]],
    scores: Scores,
    pictures: Sequence[str],
    parts: Parts | None = None,
) -> dict[tuple[str, str], Interval]:
    """(one, other) -> interval of one cell's score minus the other's, all from the same draws.

    Empty where there are fewer than two pictures, from which nothing can be told.  Arguments as
    for `compare`.
    """
    if not pairs or len(set(pictures)) < 2:
        return {}
    if parts is not None:  # some at a time, as their sums are many; the draws are the same
        starts = range(0, len(pairs), PAIRS_AT_A_TIME)
        groups = [pairs[start : start + PAIRS_AT_A_TIME] for start in starts]
        intervals = [found for group in groups for found in parts.intervals(group, pictures)]
    else:
        named = dict.fromkeys(cell for pair in pairs for cell in pair)
        means = {cell: np.mean(np.asarray(scores[cell]), axis=0) for cell in named}
        columns = [100 * (means[one] - means[other]) for one, other in pairs]
        intervals = bootstrap_intervals(np.stack(columns, axis=1), pictures, seed=SEED)
    return dict(zip(pairs, intervals, strict=True))


def describe(reference: str) -> str:
    """What an interval says, for captions."""
    return (
        f"vs {reference}: difference in points on the same questions, with its paired bootstrap "
        f"{CONFIDENCE:.0%} interval ({RESAMPLES:,} draws of whole pictures, seed {SEED})"
    )


def show_interval(interval: Interval | None) -> str:
    """ "-3.1 [-5.0, -1.2]"; a dash where nothing is compared."""
    if interval is None:
        return "-"
    return f"{interval.difference:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


def write_comparison(
    folder: Path,
    results: Sequence[Result],
    intervals: Mapping[str, Interval],
    reference: str | None,
    refused: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Scores and differences as JSON and CSV; returns the files."""
    rows = [
        {
            "method": result["label"],
            "cell": result["cell"],
            "asked": result["tokens"],
            "budget": result.get("budget"),
            "mean_tokens": result["mean_tokens"],
            "layers": result.get("layers"),
            "score": result["score"],
            "spread": result.get("spread"),
            "n": result["n"],
            **(
                {k: v for k, v in intervals[result["cell"]].to_dict().items() if k != "n"}
                if result["cell"] in intervals
                else {"difference": None, "low": None, "high": None, "clusters": None}
            ),
        }
        for result in results
    ]
    content = {
        "reference": reference,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "rows": rows,
        "not_run": list(refused),
    }
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        layers = row["layers"]
        writer.writerow({**row, "layers": " ".join(map(str, layers)) if layers else ""})
    paths = [folder / f"{STEM}.{ending}" for ending in ("json", "csv")]
    write_atomically(paths[0], json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_atomically(paths[1], sheet.getvalue())
    return paths
