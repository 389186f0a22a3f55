"""Results as one table: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llava.eval.comparing import describe, show_interval
from llava.eval.intervals import Interval
from llava.eval.planning import Refusal

HEAD = ("method", "asked", "tokens", "{metric}", "vs {}", "relative", "FLOPs", "samples/s")
SCORE, COMPARED, RELATIVE = 3, 4, 5
LEAST_WIDTH = 92  # of a console that shows every column


def format_flops(flops: float | None) -> str:
    """FLOPs with the unit that leaves digits before the point: "3.8 T", "12.4 G"."""
    if flops is None:
        return "-"
    unit, scale = ("T", 1e12) if flops >= 1e12 else ("G", 1e9)
    return f"{flops / scale:.2f} {unit}"


def format_number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def relative(result: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> float | None:
    """Score in percent of the unpruned model's; None without it, or where it scored nothing."""
    full = next((r["score"] for r in results if r["method"] == "full"), 0)
    return 100 * result["score"] / full if full else None


def label_of(result: Mapping[str, Any]) -> str:
    """The method's name in the table, with the layers where its first drop had to move forward."""
    label = str(result.get("label") or result["method"])
    if layers := result.get("layers"):
        label += f", layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
    return label


def table_rows(
    results: Sequence[Mapping[str, Any]], intervals: Mapping[str, Interval] | None = None
) -> list[tuple[str, ...]]:
    """The cells, row by row, under ``HEAD``."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        score = format_number(result["score"], 2)
        if result.get("spread") is not None:
            score += f" ± {result['spread']:.2f}"
        if result["failed"]:
            score += f" ({result['failed']} failed)"
        share = relative(result, results)
        rows.append(
            (
                label_of(result),
                "-" if result.get("budget") is None else str(result["tokens"]),
                format_number(result["mean_tokens"]),
                score,
                show_interval((intervals or {}).get(result.get("cell", ""))),
                "-" if share is None else f"{share:.1f} %",
                format_flops(result["flops"]),
                format_number(result["samples_per_second"]),
            )
        )
    return rows


def refused_rows(refused: Sequence[Refusal]) -> list[tuple[str, ...]]:
    """Rows of budgets that a method cannot reach; other reasons are told in `notes`."""
    return [
        (r.name, str(r.tokens), "-", r.cell, *["-"] * (len(HEAD) - 4))
        for r in refused
        if r.tokens is not None and r.cell.startswith("not reachable")
    ]


def notes(refused: Sequence[Refusal]) -> list[str]:
    """Why methods did not run, each reason once; what else works stands in the table itself."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for r in refused:
        reason = r.reason.split("; methods that work")[0]
        asked = reasons.setdefault((r.name, reason), [])
        asked += [] if r.tokens is None else [str(r.tokens)]
    return [
        f"not run: {name}{' at ' if asked else ''}{', '.join(asked)}: {reason}"
        for (name, reason), asked in reasons.items()
    ]


def caption(results: Sequence[Mapping[str, Any]], reference: str | None = None) -> str:
    """What the table's scores depend on, in a line."""
    first = results[0]
    seeds = sorted({len(r["seeds"]) for r in results if r.get("seeds")})
    spread = f"; ± is the sample standard deviation over {seeds[-1]} seeds" if seeds else ""
    compared = f"; {describe(reference)}" if reference is not None else ""
    budgets = {r.get("budget") for r in results} - {None}
    asked = "the papers' count" if budgets == {"nominal"} else "the same mean"
    split = f"{first['split']}, " if first.get("split") else ""
    small = f" with {first['quantisation']} weights" if first.get("quantisation") else ""
    return (
        f"{first['model']}, {split}{first['n']} questions, batch {first['batch_size']}, "
        f"{first['dtype']}{small}, {first['attn_implementation']} on {first['device']}; "
        "tokens: mean of visual tokens over decoder layers, measured; "
        f"asked: {asked}, as asked for; FLOPs: prefill of one sample{spread}{compared}"
    )


@dataclass(frozen=True)
class Comparison:
    """What stands beside the scores.

    Attributes:
        reference: label of what others are compared with.
        intervals: cell -> difference to it.
        refused: what could not run.
    """

    reference: str | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    refused: Sequence[Refusal] = ()

    @property
    def shown(self) -> str | None:
        """The reference, where something was compared with it."""
        return self.reference if self.intervals else None

    def lines(
        self, results: Sequence[Mapping[str, Any]], without: Sequence[int] = ()
    ) -> tuple[list[str], list[list[str]]]:
        """Head and rows, the comparison's column left out where there is none."""
        hidden = {*without, *(() if self.shown else (COMPARED,))}
        rows = [*table_rows(results, self.intervals), *refused_rows(self.refused)]
        kept = [i for i in range(len(HEAD)) if i not in hidden]
        metric = results[0].get("metric", "accuracy")
        names = [HEAD[i].format(self.shown, metric=metric) for i in kept]
        cells = [[row[i] for i in kept] for row in rows]
        beside = results[0].get("beside", [])
        names[SCORE + 1 : SCORE + 1] = beside
        for i, line in enumerate(cells):
            figures = results[i].get("figures", {}) if i < len(results) else {}
            line[SCORE + 1 : SCORE + 1] = [format_number(figures.get(b), 2) for b in beside]
        return names, cells


def print_table(
    title: str,
    results: Sequence[Mapping[str, Any]],
    console: Console | None = None,
    comparison: Comparison | None = None,
) -> None:
    """For the terminal; a narrow one goes without the relative scores."""
    console = console or Console()
    comparison = comparison or Comparison()
    without = (RELATIVE,) if comparison.shown and console.width < LEAST_WIDTH else ()
    head, rows = comparison.lines(results, without)
    table = Table(title=title, caption=caption(results, comparison.shown), box=SIMPLE_HEAD)
    table.pad_edge = False
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in notes(comparison.refused):
        console.print(line, highlight=False, markup=False)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, the others to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    lines = [head, rule, *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def markdown_table(
    title: str, results: Sequence[Mapping[str, Any]], comparison: Comparison | None = None
) -> str:
    """Title, table, caption, and why methods did not run."""
    comparison = comparison or Comparison()
    head, rows = comparison.lines(results)
    text = f"### {title}\n\n{markdown(head, rows)}\n{caption(results, comparison.shown)}\n"
    return (
        text
        + "".join(f"\n- {line}" for line in notes(comparison.refused))
        + ("\n" if comparison.refused else "")
    )
