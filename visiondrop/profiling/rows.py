"""The rows of a profile: what they hold, how they are kept on the disk, how they are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visiondrop.profiling.flops import Flops

__all__ = ["NOT_MEASURED", "Row", "Store", "cells", "head", "text_table"]

NOT_MEASURED = "not yet measured"


@dataclass
class Row:
    """One method at one budget, one prompt.

    Attributes:
        method: name in the registry, or "stock" for the model without the mechanism; settings: the
            method whole.
        tokens: asked for; None for methods without a budget.
        reason: why there are no figures; remark: in what the method is not itself.
        mean_tokens: visual tokens, the mean over decoder layers, by plan.
        tflops, parts: the VisionDrop paper's counting (whole tower, LM head at all positions).
        tflops_run, parts_run: what runs (tower to the layer that is read, LM head at the last
            position), by formula, of what the counted run recorded, or by plan where none was
            counted.
        tflops_counted, parts_counted: the same by torch's counter, without tflops_selection, what
            the method spends on choosing.
        measured_tokens: the mean that the counted run recorded, newlines included.
        kv_bytes, kv_bytes_by_layer: after the prefill, by plan.
        ttft_ms, ...: as `latency.Times`; None where nothing was timed.
    """

    method: str
    tokens: float | None = None
    reason: str = ""
    remark: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    mean_tokens: float | None = None
    tflops: float | None = None
    parts: dict[str, float] | None = None
    tflops_run: float | None = None
    parts_run: dict[str, float] | None = None
    tflops_counted: float | None = None
    parts_counted: dict[str, float] | None = None
    tflops_selection: float | None = None
    measured_tokens: float | None = None
    kv_bytes: int | None = None
    kv_bytes_by_layer: list[int] | None = None
    ttft_ms: dict[str, float] | None = None
    decode_ms: dict[str, float] | None = None
    end_to_end_ms: dict[str, dict[str, float]] | None = None
    faster: dict[str, dict[str, float]] | None = None
    selection_ms: dict[str, float] | None = None
    of_rest: dict[str, float] | None = None
    peak_bytes: int | None = None
    peak_rise: int | None = None
    energy_j: float | None = None
    recordings: int | None = None
    recording_s: float | None = None

    @property
    def deviation(self) -> float | None:
        """By how much of it the counter differs from the formula."""
        if self.tflops_counted is None or not self.tflops_run:
            return None
        return abs(self.tflops_counted / self.tflops_run - 1)


def tera(flops: Flops) -> dict[str, float]:
    """The four parts in TFLOPs."""
    parts = flops.to_dict()
    parts.pop("total")
    return {name: value / 1e12 for name, value in parts.items()}


class Store:
    """Rows on the disk with the settings that they belong to, written row by row.

    Args:
        path: None keeps nothing.
        facts: "machine", "versions" and "settings"; rows of a file with other ones are thrown away
            where they hold no times, and refused where they do.

    Raises `ValueError` where the file is none of ours, or holds times of other settings.
    """

    def __init__(self, path: Path | None, facts: dict[str, Any]):
        self.path, self.facts = path, json.loads(json.dumps(facts))
        self.rows: dict[str, Row] = {}
        if path is None or not path.is_file():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = {key: Row(**row) for key, row in zip(content["keys"], content["rows"])}
            there = {name: content[name] for name in self.facts}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"--json {path}: the file is there and holds no profile; name another file, or "
                "remove it"
            ) from None
        if there == self.facts:
            self.rows = rows
        elif any(row.ttft_ms for row in rows.values()):
            differs = ", ".join(
                f"{name} {there[group].get(name)} there, {self.facts[group].get(name)} here"
                for group in self.facts
                for name in {**there[group], **self.facts[group]}
                if there[group].get(name) != self.facts[group].get(name)
            )
            raise ValueError(
                f"--json {path}: the file holds times of other settings ({differs}); name another "
                "file, or remove it"
            )

    def add(self, key: str, row: Row, asked: Sequence[str]) -> None:
        """Keep a row and write the file anew, whole or not at all."""
        self.rows[key] = row
        self.write(asked)

    def write(self, asked: Sequence[str]) -> None:
        """`tflops` stands at the top, too, where one row was asked for."""
        if self.path is None:
            return
        rows = [asdict(row) for row in self.rows.values()]
        content = {**self.facts, "keys": list(self.rows), "rows": rows}
        if len(asked) == 1 and asked[0] in self.rows:
            content = {"tflops": self.rows[asked[0]].tflops, **content}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def head(new_tokens: Sequence[int]) -> list[str]:
    """Of the terminal's table."""
    return [
        *("method", "tokens", "mean", "TFLOPs", "run", "counted", "choosing", "KV MB"),
        *("ttft ms", "faster", *(f"{n} new, s" for n in new_tokens if n > 1)),
        *("faster", "decode ms", "selection ms", "of rest", "peak GB", "rise MB", "J"),
    ]


def cells(row: Row, new_tokens: Sequence[int]) -> list[str]:
    """A row under `head`."""
    asked = "-" if row.tokens is None else f"{row.tokens:g}"
    if row.reason:
        return [row.method, asked, row.reason]
    digits = 4 if (row.tflops_run or row.tflops_counted or 1) < 0.5 else 2

    def number(value: float | None, places: int = digits) -> str:
        return "-" if value is None else f"{value:.{places}f}"

    counts = [
        *(number(row.mean_tokens, 1), number(row.tflops), number(row.tflops_run)),
        *(number(row.tflops_counted), number(row.tflops_selection, digits + 1)),
        number(None if row.kv_bytes is None else row.kv_bytes / 1e6, 1),
    ]
    if row.ttft_ms is None or row.end_to_end_ms is None or row.faster is None:
        return [row.method, asked, *counts, NOT_MEASURED]

    def middle(figures: dict[str, float] | None, places: int = 1, scale: float = 1.0) -> str:
        if figures is None:
            return "-"
        low, median, high = (scale * figures[k] for k in ("low", "median", "high"))
        return f"{median:.{places}f} ({low:.{places}f}-{high:.{places}f})"

    more = [str(n) for n in new_tokens if n > 1]
    return [
        row.method,
        asked,
        *counts,
        middle(row.ttft_ms),
        middle(row.faster["1"], 2),
        *(middle(row.end_to_end_ms[n], 2, 1e-3) for n in more),
        middle(row.faster[more[-1]], 2) if more else "-",
        middle(row.decode_ms, 2),
        middle(row.selection_ms, 2),
        "-" if row.of_rest is None else f"{row.of_rest['median']:.1%}",
        number(None if row.peak_bytes is None else row.peak_bytes / 1e9, 2),
        number(None if row.peak_rise is None else row.peak_rise / 1e6, 0),
        number(row.energy_j, 1),
    ]


def text_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; a row that ends early is a remark up to the right edge."""
    most = max((len(row) for row in rows), default=0)
    filled = list(names[:most]) if most > 3 else list(names)
    widths = [len(name) for name in filled]
    for row in rows:
        cells_of = row if len(row) == len(filled) else row[:-1]
        for i, cell in enumerate(cells_of):
            widths[i] = max(widths[i], len(cell))
    lines = []
    for row in [filled, ["-" * width for width in widths], *rows]:
        short = len(row) != len(filled)
        parts = [
            cell if short and i == len(row) - 1
            else f"{cell:<{widths[i]}}" if i == 0 else f"{cell:>{widths[i]}}"
            for i, cell in enumerate(row)
        ]  # fmt: skip
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)
