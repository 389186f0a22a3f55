"""A table in Weights & Biases: one group, and in it one run for each cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llava.eval.running import Job
from llava.eval.tables.board import Board, Cell
from llava.eval.tables.columns import Column
from llava.eval.wandb_log import LoggedRun, log_run

SUMMARY = ("score", "spread", "n", "failed", "mean_tokens", "flops", "kv_bytes")
NOTE = "wandb-table.json"


def log_cells(columns: Sequence[Column], board: Board, group: str) -> Iterator[str]:
    """Log every answered cell; yields a line for each that says what was done."""
    loaded: Job | None = None
    for column in columns:
        if column.job is None:
            continue
        if loaded is not None:
            column.job._loaded = loaded._loaded
        loaded = column.job
        answered = board.column(column.request.benchmark)
        for cell in answered.cells.values():
            runs = column.cells.get(cell.result["cell"])
            if runs and (cell.row.label == "blank picture") == column.request.blank:
                yield log_cell(column, cell, group)


def log_cell(column: Column, cell: Cell, group: str) -> str:
    """One cell; of several seeds' the pictures and answers are the first's."""
    job = column.job
    assert job is not None
    run = column.cells[cell.result["cell"]][0]
    result = cell.result
    summary = {name: result[name] for name in SUMMARY if result.get(name) is not None}
    summary.update({f"figures/{name}": value for name, value in result["figures"].items()})
    summary.update({f"types/{kind}": entry["score"] for kind, entry in result["types"].items()})
    config = {k: v for k, v in result.items() if k not in (*SUMMARY, "types", "computed")}
    with job.store(run) as store:
        settings, rows = store.settings, store.rows()
    name = f"{column.request.benchmark}/{cell.row.label}"
    name += "" if cell.row.tokens is None else f"-{cell.row.tokens}"
    note = job.out / result["cell"] / NOTE
    logged = LoggedRun(name, note, settings, config, summary, rows, group)
    return log_run(logged, job.loaded, run.method, job.dataset(settings))
