"""What stands beside the scores of a column: differences, tests, shares, and who is surely best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from llava.eval.benchmarks.base import Scores
from llava.eval.comparing import Parts, compare_pairs
from llava.eval.intervals import Interval
from llava.eval.significance import McNemar, mcnemar, paired_units
from llava.eval.tables.board import Answered, Board, Cell
from llava.eval.tables.spec import BLANK, FULL

REFERENCE = "visiondrop"
"""Whose losses and gains against others at the same budget are marked."""

Key = tuple[str, int | None]


@dataclass
class Figures:
    """Of one column.

    Attributes:
        against_full: row -> its score minus the full model's, in the score's points.
        against_reference: row -> its score minus VisionDrop's at the same budget.
        tests: row -> McNemar's test against the full model; only rows of one seed whose scores are
            0 or 1 have one.
        best: rows whose score is surely above every other's at their budget.
        relative: row -> score in percent of the full model's.
    """

    against_full: dict[Key, Interval] = field(default_factory=dict)
    against_reference: dict[Key, Interval] = field(default_factory=dict)
    tests: dict[Key, McNemar] = field(default_factory=dict)
    best: set[Key] = field(default_factory=set)
    relative: dict[Key, float] = field(default_factory=dict)


def figures_of(column: Answered) -> Figures:
    """All that stands beside a column's scores; empty where the split has no public answers."""
    cells = {key: cell for key, cell in column.cells.items() if cell.result["score"] is not None}
    out = Figures()
    full = cells.get((FULL, None))
    rivals = best_two(cells)
    unpruned: Key = (FULL, None)
    pairs = [(key, unpruned) for key in cells if full and key != unpruned]
    versus: list[tuple[Key, Key]] = [
        (key, (REFERENCE, key[1]))
        for key in cells
        if key[1] is not None and key[0] != REFERENCE and (REFERENCE, key[1]) in cells
    ]
    intervals = _intervals(column, cells, [*pairs, *versus, *rivals])
    for key, other in pairs:
        if (key, other) in intervals:
            out.against_full[key] = intervals[key, other]
    for key, other in versus:
        if (key, other) in intervals:
            out.against_reference[key] = intervals[key, other]
    for key, other in rivals:
        found = intervals.get((key, other))
        if found is not None and found.low > 0:
            out.best.add(key)
    if full is not None:
        score = full.result["score"]
        out.relative = {key: 100 * c.result["score"] / score for key, c in cells.items() if score}
        for key, cell in cells.items():
            test = None if cell is full else mcnemar_of(full, cell)
            if test is not None:
                out.tests[key] = test
    return out


def best_two(cells: Mapping[Key, Cell]) -> list[tuple[Key, Key]]:
    """(best, second best) of each budget that several rows have."""
    budgets: dict[int, list[Key]] = {}
    for key in cells:
        if key[1] is not None:
            budgets.setdefault(key[1], []).append(key)
    out = []
    for keys in budgets.values():
        ranked = sorted(keys, key=lambda key: -cells[key].result["score"])
        if len(ranked) > 1:
            out.append((ranked[0], ranked[1]))
    return out


def _intervals(
    column: Answered, cells: Mapping[Key, Cell], pairs: Sequence[tuple[Key, Key]]
) -> dict[tuple[Key, Key], Interval]:
    """Paired intervals that draw whole pictures."""
    names = {key: f"{key[0]}\n{key[1]}" for key in cells}
    back = {name: key for key, name in names.items()}
    scores = {names[key]: cell.scores for key, cell in cells.items()}
    parts = None
    if column.benchmark is not None and any(cell.parts for cell in cells.values()):
        made = {names[key]: cell.parts for key, cell in cells.items()}
        parts = Parts(made, column.benchmark.headline)
    named = [(names[one], names[other]) for one, other in pairs]
    found = compare_pairs(named, scores, column.pictures, parts)
    return {(back[one], back[other]): interval for (one, other), interval in found.items()}


def mcnemar_of(full: Cell, cell: Cell) -> McNemar | None:
    """McNemar's test of a row against the full model; None for graded scores and several seeds."""
    if len(cell.scores) > 1 or len(full.scores) > 1:
        return None
    return mcnemar(*paired_units(_scores(full), _scores(cell)))


def _scores(cell: Cell) -> Scores:
    return Scores(None, cell.scores[0], parts=cell.parts[0] if cell.parts else None)


@dataclass(frozen=True)
class Mean:
    """A row's mean share of the full model's score.

    Attributes:
        percent: mean over the benchmarks that it has.
        benchmarks: how many these are.
    """

    percent: float
    benchmarks: int


def means(board: Board, figures: Mapping[str, Figures]) -> dict[Key, Mean]:
    """Row -> mean relative score over the columns that have one."""
    shares: dict[Key, list[float]] = {}
    for column in board.columns:
        for key, share in figures[column.name].relative.items():
            shares.setdefault(key, []).append(share)
    return {key: Mean(fmean(values), len(values)) for key, values in shares.items()}


def blind(board: Board, figures: Mapping[str, Figures]) -> list[str]:
    """Columns in which the full model is not surely better than itself on blank pictures."""
    out = []
    for column in board.columns:
        found = figures[column.name].against_full.get((BLANK, None))
        if found is not None and not found.high < 0:
            out.append(column.title)
    return out
