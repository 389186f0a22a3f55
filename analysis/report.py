"""Tables: as files with what they depend on, in the terminal, in Weights & Biases."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from llava.eval.files import write_atomically
from llava.eval.intervals import Interval, bootstrap_statistics
from llava.eval.wandb_log import check_wandb, choose_mode

__all__ = ["check_logging", "log", "mean_interval", "show", "wide", "write"]


def write(table: Any, stem: Path, about: Mapping[str, Any]) -> list[Path]:
    """`stem`.csv (a pandas table, six significant digits) and `stem`.json (what it depends on)."""
    text = io.StringIO()
    table.to_csv(text, index=False, float_format="%.6g")
    paths = [stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.json")]
    write_atomically(paths[0], text.getvalue())
    command = " ".join(["python -m", command_name(), *sys.argv[1:]])
    facts = {**about, "command": command, "rows": len(table)}
    write_atomically(paths[1], json.dumps(facts, indent=1) + "\n")
    return paths


def command_name() -> str:
    """The module that runs, as `python -m` takes it."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).stem


def show(table: Any, title: str, digits: int = 3, console: Console | None = None) -> None:
    """Print a pandas table."""
    console = console or Console()
    printed = Table(title=title, title_justify="left", header_style="bold")
    for name in table.columns:
        numeric = table[name].dtype.kind in "fiu"
        # Long words break rather than be cut off.
        printed.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in table.itertuples(index=False):
        printed.add_row(*(cell_text(value, digits) for value in row))
    console.print(printed)


def wide(least: int = 130) -> Console:
    """A console for tables of many columns: as wide as the terminal, and no less than `least` where
    the output goes to a file.
    """
    console = Console()
    return console if console.is_terminal else Console(width=max(least, console.width))


def cell_text(value: Any, digits: int = 3) -> str:
    """A number or word as tables print it; "-" where there is none."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return str(value)


def mean_interval(
    values: Sequence[float], clusters: Sequence[Any], *, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of values and its 95 % interval, whole pictures drawn (`llava.eval.intervals`).

    Values that are NaN are left out with their pictures' names. The interval's `difference` is the
    mean. Fewer than two pictures have no interval: its ends are NaN.
    """
    kept = [(v, c) for v, c in zip(values, clusters, strict=True) if not np.isnan(v)]
    if not kept:
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
    numbers = np.array([v for v, _ in kept], dtype=np.float64)
    names = [c for _, c in kept]
    count = len(set(names))
    if count < 2:
        return Interval(float(numbers.mean()), float("nan"), float("nan"), len(kept), count)
    return bootstrap_statistics(
        np.stack([numbers, np.ones_like(numbers)], 1),
        names,
        lambda sums: sums[:, :1] / sums[:, 1:],
        resamples=resamples,
        seed=seed,
    )[0]


def check_logging(asked: bool) -> None:
    """EvalError, before any compute, where W&B was asked for and is missing."""
    if asked:
        check_wandb()


def log(
    name: str,
    about: Mapping[str, Any],
    tables: Mapping[str, Any],
    figures: Sequence[Path],
    folder: Path,
) -> str:
    """Log tables and pictures to Weights & Biases as one run; returns a line that says so.

    `WANDB_PROJECT` and `WANDB_MODE` as everywhere; offline without a key.
    """
    import wandb

    mode = choose_mode()
    folder.mkdir(parents=True, exist_ok=True)
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", "visiondrop"),
        name=f"analysis/{name}",
        job_type="analysis",
        config=dict(about),
        mode=mode,  # type: ignore[arg-type]
        dir=folder,
        settings=wandb.Settings(silent=True),
    ) as run:
        found: dict[str, Any] = {key: wandb.Table(dataframe=table) for key, table in tables.items()}
        found |= {path.stem: wandb.Image(str(path)) for path in figures if path.suffix == ".png"}
        run.log(found)
    return f"{name}: logged to W&B ({mode})"
