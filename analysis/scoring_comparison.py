"""Only the score swapped: one schedule of drops, and who judges which tokens stay.

    python -m analysis.scoring_comparison       (bash scripts/figures/figure2.sh sets everything up)

The question of Figure 2 of the VisionDrop paper. PyramidDrop's stages, at the same layers and with
the same counts, with each score in turn: the prompt's last token (as released), all text tokens,
the visual tokens themselves (VisionDrop's score, with and without correction for causality), and
the controls: random, evenly spaced, and an oracle that keeps what the question asks for. Benchmarks
are answered by the tables' engine (`llava.eval.tables`): stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from analysis import report
from analysis.scoring_figure import plot
from analysis.scoring_text import grid, markdown_text
from llava.eval import run_benchmark
from llava.eval.cli import env
from llava.eval.comparing import CONFIDENCE, RESAMPLES, SEED, Parts, compare_pairs
from llava.eval.errors import EvalError, run_main
from llava.eval.files import write_atomically
from llava.eval.intervals import Interval, bootstrap_statistics
from llava.eval.pocket_table import default_processes
from llava.eval.result import git_commit
from llava.eval.tables import command
from llava.eval.tables.board import Answered, Board, Cell
from llava.eval.tables.columns import Column, Request, plan
from llava.eval.tables.scores import VARIANTS
from llava.eval.tables.spec import FULL, Spec

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "text"
"""The score that the others are compared with."""
BENCHMARKS = ("textvqa", "gqa", "pope", "vqav2")
TOKENS = (192, 128, 64)
LIMIT = 120
NAME = "scoring_comparison"


def spec_of(scores: Sequence[str], benchmarks: Sequence[str], tokens: Sequence[int]) -> Spec:
    """The table that the engine answers. Raises `EvalError` for a score that there is not."""
    if "all" in scores:
        scores = list(VARIANTS)
    if unknown := [name for name in scores if name not in VARIANTS]:
        raise EvalError(f"unknown score {unknown[0]!r}; known are {', '.join(VARIANTS)}")
    return Spec(
        NAME,
        "One schedule, only the score swapped",
        "llava-v1.5-7b",
        tuple(benchmarks),
        tuple(tokens),
        (FULL,),
        rest=False,
        variants=tuple(VARIANTS[name] for name in scores),
        model=run_benchmark.POCKET,
        model_types=("llava",),
    )


def score_of(label: str) -> str:
    """A row's score by its name in `VARIANTS`; "full" for the unpruned model."""
    return label.removeprefix("score=")


def place_of(key: tuple[str, int | None]) -> tuple[float, int]:
    """Where a row stands: the unpruned model, then by falling budget in the order of `VARIANTS`."""
    order = [FULL, *VARIANTS]
    return (float("-inf") if key[1] is None else -key[1]), order.index(score_of(key[0]))


def own_interval(cell: Cell, answered: Answered) -> Interval | None:
    """A cell's score with its interval, whole pictures drawn; None for fewer than two pictures. Of
    several seeds the mean is taken, question by question.
    """
    if len(set(answered.pictures)) < 2:
        return None
    if cell.parts:
        assert answered.benchmark is not None
        headline, widths = answered.benchmark.headline, [p.shape[1] for p in cell.parts]
        ends = np.cumsum(widths)

        def statistic(sums: np.ndarray) -> np.ndarray:
            scores = [headline(sums[:, e - w : e]) for e, w in zip(ends, widths, strict=True)]
            return np.mean(scores, axis=0)[:, None]

        values = np.concatenate(cell.parts, axis=1)
        return bootstrap_statistics(values, answered.pictures, statistic, seed=SEED)[0]
    return report.mean_interval(100 * np.mean(cell.scores, axis=0), answered.pictures, seed=SEED)


def differences(answered: Answered) -> dict[tuple[str, int | None], Interval]:
    """Row -> its score minus the reference's at the same budget, paired question by question."""
    scored = {key: c for key, c in answered.cells.items() if c.result["score"] is not None}
    names = {key: f"{key[0]}\n{key[1]}" for key in scored}
    back = {name: key for key, name in names.items()}
    pairs = []
    for label, tokens in scored:
        reference = (f"score={REFERENCE}", tokens)
        if reference in scored and reference != (label, tokens):
            pairs.append((names[label, tokens], names[reference]))
    scores = {names[key]: cell.scores for key, cell in scored.items()}
    parts = None
    if answered.benchmark is not None and any(cell.parts for cell in scored.values()):
        made = {names[key]: cell.parts for key, cell in scored.items()}
        parts = Parts(made, answered.benchmark.headline)
    found = compare_pairs(pairs, scores, answered.pictures, parts)
    return {back[one]: interval for (one, _), interval in found.items()}


def table_of(board: Board) -> pd.DataFrame:
    """One row for each score, budget and benchmark that is answered.

    Columns: score ("full" for the unpruned model), asked (tokens, NaN for full), mean_tokens (true
    mean over decoder layers, of the runs), layers (before which it drops), kept (tokens from each
    of them on), benchmark, title, metric, n (questions), pictures, failed, seeds (of them the
    mean), accuracy (the benchmark's own score in points), low, high (its interval), spread
    (standard deviation over seeds), difference, difference_low, difference_high (to the score
    "text" at the same budget, paired).
    """
    import pandas as pd

    rows = []
    for answered in board.columns:
        against = differences(answered)
        for key, cell in sorted(answered.cells.items(), key=lambda item: place_of(item[0])):
            result = cell.result
            if result["score"] is None:
                continue
            own, paired = own_interval(cell, answered), against.get(key)
            layers = result["method_config"].get("layers", [])
            rows.append(
                {
                    "score": score_of(key[0]),
                    "asked": float("nan") if key[1] is None else key[1],
                    "mean_tokens": result["mean_tokens"],
                    "layers": " ".join(map(str, layers)),
                    "kept": " ".join(str(result["ledger"][layer]) for layer in layers),
                    "benchmark": answered.name,
                    "title": answered.title,
                    "metric": result["metric"],
                    "n": result["n"],
                    "pictures": len(set(answered.pictures)),
                    "failed": result["failed"],
                    "seeds": len(cell.scores),
                    "accuracy": result["score"],
                    "low": own.low if own else float("nan"),
                    "high": own.high if own else float("nan"),
                    "spread": result.get("spread", float("nan")),
                    "difference": paired.difference if paired else float("nan"),
                    "difference_low": paired.low if paired else float("nan"),
                    "difference_high": paired.high if paired else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def about(board: Board) -> dict[str, Any]:
    """What the numbers depend on, for JSON."""
    first = board.results[0]
    same = ("model", "model_fingerprint", "batch_size", "dtype", "attn_implementation", "device")
    return {
        "title": "one schedule of drops (PyramidDrop's), only the score swapped",
        "reference": REFERENCE,
        "interval": {
            "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED, "drawn": "pictures",
        },
        **{name: first[name] for name in same},
        "versions": first["versions"],
        "commits": sorted({str(result["git_commit"]) for result in board.results}),
        "drawn_with": git_commit(),
        "benchmarks": {
            column.name: {
                "split": column.split,
                "metric": next(iter(column.cells.values())).result["metric"],
                "questions": column.n,
                "whole": column.whole,
                "pictures": len(set(column.pictures)),
                "questions_sha256": next(iter(column.cells.values())).result["questions_sha256"],
            }
            for column in board.columns
            if column.cells
        },
        "methods": {
            result["cell"]: {**result["method_config"], "ledger": result["ledger"]}
            for result in (cell.result for cell in board.columns[0].cells.values())
        },
        "not_run": not_run(board),
    }  # fmt: skip


def not_run(board: Board) -> list[str]:
    """What has no numbers, and why."""
    out = [f"{column.title}: {column.reason}" for column in board.missing]
    for column in board.columns:
        for refusal in [*column.refused, *column.failed]:
            at = "" if refusal.tokens is None else f" at {refusal.tokens}"
            out.append(f"{column.title}, {score_of(refusal.name)}{at}: {refusal.reason}")
    return out


def write(board: Board, stem: Path, made_by: str) -> list[Path]:
    """The table, what it depends on, the figure and the text, from what is answered so far."""
    table = table_of(board)
    if not len(table):
        return []
    facts = about(board)
    paths = report.write(table, stem, facts)
    drawn = plot(table, stem) if (table["score"] != FULL).any() else []
    text = stem.with_name(f"{stem.name}.md")
    write_atomically(text, markdown_text(table, facts, stem.name, bool(drawn), made_by))
    return [*paths, *drawn, text]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="One schedule, only the score swapped; flags of run_benchmark go through to it."
    )
    p.add_argument("--benchmarks", default=env("BENCHMARKS", ",".join(BENCHMARKS)))
    p.add_argument("--tokens", default=env("TOKENS", ",".join(map(str, TOKENS))))
    p.add_argument("--scores", default=env("SCORES", "all"), help="comma list, or all")
    p.add_argument("--limit", default=env("LIMIT", str(LIMIT)), help="the first N of each, or all")
    p.add_argument("--data", default=env("DATA"), help="folder with a folder for each benchmark")
    p.add_argument("--out", default=f"outputs/analysis/{NAME}", help="where answers go")
    p.add_argument("--results", help="where the table and the figure go (the same)")
    p.add_argument("--stem", default=NAME, help="their name, without ending")
    command.add_running_flags(p)
    p.add_argument("--wandb", action="store_true", help="log table and figure to W&B")
    p.add_argument("--overwrite", action="store_true", help="throw away other runs' answers")
    p.set_defaults(quick=False)
    return p


def names_in(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args, rest = parser().parse_known_args(argv)
    report.check_logging(args.wandb)
    os.environ.setdefault("TQDM_DISABLE", "1")  # one bar for all, not one a run
    wandb, args.wandb = args.wandb, False  # one run for all, not one a cell
    benchmarks, scores = names_in(args.benchmarks), names_in(args.scores)
    tokens = tuple(dict.fromkeys(run_benchmark.parse_numbers("--tokens", args.tokens)))
    spec = spec_of(scores, benchmarks, tokens)
    flags = command.benchmark_flags(spec, args, rest)
    requests = [
        Request(spec, name, (FULL,), tokens, flags, args.out, args.data) for name in benchmarks
    ]
    columns: list[Column] = [plan(request) for request in requests]
    board = Board([Answered.of(column) for column in columns])
    stem = Path(args.results or args.out) / args.stem
    console = Console(width=None if sys.stdout.isatty() else 100)
    command.announce(spec, columns, tokens, Path(args.out), console)
    made_by = " ".join(["python -m analysis.scoring_comparison", *argv])

    def update(_: str) -> None:
        write(board, stem, made_by)

    if any(column.job is not None for column in columns):
        processes = int(default_processes()) if args.nproc is None else args.nproc
        command.answer(
            columns,
            board,
            update,
            (FULL,),
            processes,
            args.overwrite,
            console,
        )
    if board.results:
        table = table_of(board)
        report.show(grid(table), spec.title, console=console)
        for path in (paths := write(board, stem, made_by)):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        if wandb:
            figures = [path for path in paths if path.suffix == ".png"]
            console.print(report.log(NAME, about(board), {NAME: table}, figures, stem.parent))
    return command.exit_status(board, console)


if __name__ == "__main__":
    sys.exit(run_main(main))
