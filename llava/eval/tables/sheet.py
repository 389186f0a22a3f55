"""The table as CSV: one line a cell, with everything; cells that were not run say why."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from llava.eval.tables.beside import find, meaning_of, ours, why_not_comparable
from llava.eval.tables.board import Answered, Board, Cell
from llava.eval.tables.figures import Figures
from llava.eval.tables.grid import rows_of
from llava.eval.tables.spec import BLANK, Spec

COLUMNS = [
    *("benchmark", "split", "metric", "method", "place", "asked", "mean_tokens", "layers"),
    *("n", "pictures", "failed", "score", "spread", "relative"),
    *("difference_full", "low_full", "high_full", "mcnemar_lost", "mcnemar_gained", "mcnemar_p"),
    *("difference_visiondrop", "low_visiondrop", "high_visiondrop", "surely_best"),
    *("published", "published_source", "published_trust", "published_tokens", "published_on"),
    *("difference_published", "not_comparable", "flops", "kv_bytes"),
    *("model", "model_fingerprint", "batch_size", "dtype", "attn_implementation", "device"),
    *("torch", "transformers", "visiondrop", "commit", "not_run"),
]


def number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def line(
    spec: Spec, column: Answered, figures: Figures, cell: Cell, same_model: bool
) -> dict[str, Any]:
    """One answered cell."""
    key, result = cell.row.key, cell.result
    out: dict[str, Any] = {
        "benchmark": column.name,
        "split": result["split"],
        "metric": result["metric"],
        "method": cell.row.label,
        "place": cell.row.group or cell.row.place,
        "asked": "" if cell.row.tokens is None else cell.row.tokens,
        "mean_tokens": number(result["mean_tokens"]),
        "layers": " ".join(map(str, result.get("layers", []))),
        "n": result["n"],
        "pictures": len(set(column.pictures)),
        "failed": result["failed"],
        "score": number(result["score"]),
        "spread": number(result.get("spread")),
        "relative": number(figures.relative.get(key)),
        "surely_best": int(key in figures.best),
        "flops": "" if result["flops"] is None else f"{result['flops']:.6g}",
        "kv_bytes": "" if result["kv_bytes"] is None else f"{result['kv_bytes']:.6g}",
        "commit": result["git_commit"],
        **{name: result["versions"].get(name) for name in ("torch", "transformers", "visiondrop")},
        **{name: result[name] for name in ("model", "model_fingerprint", "batch_size", "dtype")},
        **{name: result[name] for name in ("attn_implementation", "device")},
    }
    for name, found in (("full", figures.against_full), ("visiondrop", figures.against_reference)):
        if (interval := found.get(key)) is not None:
            out[f"difference_{name}"] = number(interval.difference)
            out[f"low_{name}"], out[f"high_{name}"] = number(interval.low), number(interval.high)
    if (test := figures.tests.get(key)) is not None:
        out.update(mcnemar_lost=test.lost, mcnemar_gained=test.gained, mcnemar_p=f"{test.p:.4g}")
    return out | beside(spec, column, cell, same_model)


def beside(spec: Spec, column: Answered, cell: Cell, same_model: bool) -> dict[str, Any]:
    """The published number of a cell, if there is one."""
    result = cell.result
    if cell.row.label == BLANK:
        return {}
    tokens = cell.row.tokens or round(result["mean_tokens"] or 0)
    figure = find(cell.row.label, column.name, spec.published_model, tokens)
    if figure is None:
        return {}
    why = why_not_comparable(figure, result, column.whole, same_model)
    mine = ours(figure, result)
    return {
        "published": figure.value,
        "published_source": figure.source,
        "published_trust": figure.trust,
        "published_tokens": figure.tokens,
        "published_on": f"{figure.model}: {meaning_of(figure).told}",
        "difference_published": "" if why or mine is None else number(mine - figure.value),
        "not_comparable": why,
    }


def missing_lines(board: Board) -> list[dict[str, Any]]:
    """Cells that were not run."""
    out: list[dict[str, Any]] = []
    for column in board.columns:
        if column.reason is not None:
            out.append({"benchmark": column.name, "not_run": column.reason})
        for refusal in [*column.refused, *column.failed]:
            out.append(
                {
                    "benchmark": column.name,
                    "method": refusal.name,
                    "asked": "" if refusal.tokens is None else refusal.tokens,
                    "not_run": refusal.reason,
                }
            )
    return out


def sheet(spec: Spec, board: Board, figures: Mapping[str, Figures], same_model: bool) -> str:
    """The whole file."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    rows = rows_of(board)
    for column in board.columns:
        for row in rows:
            if (cell := column.cells.get(row.key)) is not None:
                writer.writerow(line(spec, column, figures[column.name], cell, same_model))
    writer.writerows(missing_lines(board))
    return stream.getvalue()
