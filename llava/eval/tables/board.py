"""What there is of a table: cells that are answered and scored, and why others are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llava.eval.benchmarks import Benchmark
from llava.eval.planning import Refusal
from llava.eval.tables.columns import Column
from llava.eval.tables.places import place_of
from llava.eval.tables.spec import BLANK

NOMINAL = "+budget=nominal"


@dataclass(frozen=True)
class Row:
    """A line of the table: a method at a budget.

    Attributes:
        label: as the table names it.
        tokens: asked for; None for what has no budget.
        place: where the method acts, one of ``places.PLACES``.
        group: of an ablation's row, what is varied.
    """

    label: str
    tokens: int | None
    place: str
    group: str = ""

    @property
    def key(self) -> tuple[str, int | None]:
        return self.label, self.tokens


@dataclass
class Cell:
    """An answered cell.

    Attributes:
        result: its result json (of several seeds', put together).
        scores: for each seed the score (0 to 1) of every question.
        parts: for each seed what the score is made of, where it is no mean of those.
    """

    row: Row
    result: dict[str, Any]
    scores: list[list[float]]
    parts: list[np.ndarray] = field(default_factory=list)


@dataclass
class Answered:
    """A benchmark's column of the table, as far as it is answered.

    Attributes:
        benchmark: None where it could not be planned.
        split: by its official name.
        whole: whether all questions of the split are asked.
        pictures: of each question, in order.
        cells: by row.
        refused: methods that cannot run here, or not at a budget.
        failed: cells that should have run.
        reason: why nothing of it can be answered.
    """

    name: str
    title: str
    benchmark: Benchmark | None = None
    split: str = ""
    whole: bool = False
    pictures: list[str] = field(default_factory=list)
    cells: dict[tuple[str, int | None], Cell] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    failed: list[Refusal] = field(default_factory=list)
    reason: str | None = None

    @classmethod
    def of(cls, column: Column) -> Answered:
        """An empty one."""
        job = column.job
        if job is None:
            return cls(column.request.benchmark, column.title, reason=column.reason)
        return cls(
            column.request.benchmark,
            column.title,
            job.benchmark,
            job.files.split,
            len(job.samples) == job.args.of,
            [sample.image or sample.key for sample in job.samples],
            refused=column.refused,
        )

    def add(self, column: Column, result: dict[str, Any]) -> None:
        """Take over a cell that `run_all` finished."""
        job, cell = column.job, result["cell"]
        assert job is not None
        row = row_of(column, result)
        seeds = max(1, len(result.get("seeds", [])))  # scored anew, the last ones count
        parts = job.parts.get(cell, [])[-seeds:]
        self.cells[row.key] = Cell(row, result, job.scores[cell][-seeds:], parts)

    @property
    def n(self) -> int:
        """Questions."""
        return len(self.pictures)

    def get(self, label: str, tokens: int | None = None) -> Cell | None:
        return self.cells.get((label, tokens))


def row_of(column: Column, result: dict[str, Any]) -> Row:
    """The line that a result stands in."""
    if column.request.blank:
        return Row(BLANK, None, "control")
    tokens = result["tokens"] if result.get("budget") else None
    variant = column.variants.get(result["cell"])
    if variant is not None:
        return Row(variant.slug, tokens, place_of(result), variant.group)
    # What is the same in all rows is no part of a name; of budgets, `Board.nominal` tells.
    label = result["label"].removesuffix(NOMINAL)
    for argument in column.request.spec.method_args:
        label = label.replace(f"+{argument}", "")
    return Row(label, tokens, place_of(result))


@dataclass
class Board:
    """All columns of a table, in order."""

    columns: list[Answered]

    def column(self, name: str) -> Answered:
        return next(column for column in self.columns if column.name == name)

    @property
    def results(self) -> list[dict[str, Any]]:
        """Of all cells."""
        return [cell.result for column in self.columns for cell in column.cells.values()]

    @property
    def failed(self) -> Sequence[Refusal]:
        """Cells that should have run."""
        return [refusal for column in self.columns for refusal in column.failed]

    @property
    def missing(self) -> list[Answered]:
        """Columns of which nothing can be answered."""
        return [column for column in self.columns if column.reason is not None]

    @property
    def nominal(self) -> bool:
        """Whether budgets are the papers' own counts."""
        return any(result.get("budget") == "nominal" for result in self.results)

    @property
    def failed_samples(self) -> int:
        return sum(result["failed"] for result in self.results)
