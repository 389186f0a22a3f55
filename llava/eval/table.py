"""Results as one table: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

HEAD = ("method", "tokens", "accuracy", "relative", "FLOPs", "samples/s")


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


def table_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The cells, row by row."""
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
                str(result.get("label") or result["method"]),
                format_number(result["mean_tokens"]),
                score,
                "-" if share is None else f"{share:.1f} %",
                format_flops(result["flops"]),
                format_number(result["samples_per_second"]),
            )
        )
    return rows


def caption(results: Sequence[Mapping[str, Any]]) -> str:
    """What the table's scores depend on, in a line."""
    first = results[0]
    seeds = sorted({len(r["seeds"]) for r in results if r.get("seeds")})
    spread = f"; ± is the sample standard deviation over {seeds[-1]} seeds" if seeds else ""
    return (
        f"{first['model']}, {first['n']} questions, batch {first['batch_size']}, {first['dtype']}, "
        f"{first['attn_implementation']} on {first['device']}; tokens: mean of visual tokens over "
        f"decoder layers; FLOPs: prefill of one sample{spread}"
    )


def print_table(
    title: str, results: Sequence[Mapping[str, Any]], console: Console | None = None
) -> None:
    table = Table(title=title, caption=caption(results))
    for i, name in enumerate(HEAD):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in table_rows(results):
        table.add_row(*row)
    (console or Console()).print(table)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, the others to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    lines = [head, rule, *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def markdown_table(title: str, results: Sequence[Mapping[str, Any]]) -> str:
    return f"### {title}\n\n{markdown(HEAD, table_rows(results))}\n{caption(results)}\n"
