"""The table as rows of cells, before anybody makes Markdown or LaTeX of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from llava.eval.tables.board import Answered, Board, Row
from llava.eval.tables.figures import Figures, Key, Mean, means
from llava.eval.tables.places import PLACES
from llava.eval.tables.spec import BLANK, FULL

Mark = Literal["", "better", "worse"]
NO_BUDGET = "no token dropped by a budget"


@dataclass(frozen=True)
class Text:
    """One cell.

    Attributes:
        best: whether it is surely above every other of its budget.
        mark: how it surely compares with VisionDrop's at the same budget.
    """

    text: str
    best: bool = False
    mark: Mark = ""


@dataclass(frozen=True)
class Grid:
    """Groups of rows under one head."""

    head: list[str]
    groups: list[tuple[str, list[list[Text]]]]


def rows_of(board: Board) -> list[Row]:
    """Every row that some column has: what has no budget first, then budget by budget."""
    rows = {key: c.row for column in board.columns for key, c in column.cells.items()}
    known = {key: i for i, key in enumerate(rows)}

    def order(row: Row) -> tuple:
        first = {FULL: 0, BLANK: 1}.get(row.label, 2)
        budget = 0 if row.tokens is None else -row.tokens
        if row.group:  # of an ablation, in its order
            return (row.tokens is not None, budget, first, len(PLACES), known[row.key], "")
        return (row.tokens is not None, budget, first, PLACES.index(row.place), 0, row.label)

    return sorted(rows.values(), key=order)


def refused_text(column: Answered, row: Row) -> str:
    """What stands in a cell that is not there."""
    if column.reason is not None:
        return "not run"
    for refusal in column.refused:
        if refusal.name == row.label and refusal.tokens in (None, row.tokens):
            return refusal.cell.removeprefix("not reachable, ")
    return "failed" if any(f.name.startswith(row.label) for f in column.failed) else "-"


def score_text(column: Answered, figures: Figures, row: Row) -> Text:
    """A row's score in a column."""
    cell = column.cells.get(row.key)
    if cell is None:
        return Text(refused_text(column, row))
    if cell.result["score"] is None:
        return Text("no labels")
    text = f"{cell.result['score']:.1f}"
    if cell.result.get("spread") is not None:
        text += f" ± {cell.result['spread']:.1f}"
    if cell.result["failed"]:
        text += f" ({cell.result['failed']} failed)"
    found = figures.against_reference.get(row.key)
    mark: Mark = ""
    if found is not None and found.certain:
        mark = "better" if found.low > 0 else "worse"
    return Text(text, row.key in figures.best, mark)


def mean_text(found: Mean | None, columns: int) -> str:
    """A mean share; of fewer columns than there are, with their number."""
    if found is None:
        return "-"
    some = "" if found.benchmarks == columns else f" ({found.benchmarks} of {columns})"
    return f"{found.percent:.1f}{some}"


def scores_grid(board: Board, figures: Mapping[str, Figures]) -> Grid:
    """Rows x benchmarks, and the mean share of the full model's score."""
    shares = means(board, figures)
    usable = sum(bool(figures[column.name].relative) for column in board.columns)
    head = ["method", "place", "tokens", *(c.title for c in board.columns), "mean %"]
    groups: dict[str, list[list[Text]]] = {}
    for row in rows_of(board):
        name = NO_BUDGET if row.tokens is None else f"{row.tokens} tokens"
        line = [
            Text(row.label),
            Text(row.group or row.place),
            Text(tokens_text(board, row)),
            *(score_text(column, figures[column.name], row) for column in board.columns),
            Text(mean_text(shares.get(row.key), usable)),
        ]
        groups.setdefault(name, []).append(line)
    return Grid(head, list(groups.items()))


def tokens_text(board: Board, row: Row) -> str:
    """The true mean over the columns."""
    found = [
        cell.result["mean_tokens"]
        for column in board.columns
        if (cell := column.cells.get(row.key)) and cell.result["mean_tokens"] is not None
    ]
    return f"{fmean(found):.1f}" if found else "-"


def published_grid(
    columns: Sequence[str], titles: Sequence[str], cells: Mapping[tuple[Key, str], str]
) -> Grid:
    """Rows x benchmarks of published numbers, those that there are; see `published_cells`."""
    keys = list(dict.fromkeys(key for key, _ in cells))
    groups: dict[str, list[list[Text]]] = {}
    for label, tokens in sorted(keys, key=lambda key: -(key[1] or 10**6)):
        name = "full model" if tokens is None else f"{tokens} tokens"
        line = [Text(label), *(Text(cells.get(((label, tokens), c), "-")) for c in columns)]
        groups.setdefault(name, []).append(line)
    return Grid(["method", *titles], list(groups.items()))
