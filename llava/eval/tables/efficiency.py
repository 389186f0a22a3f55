"""The efficiency table: FLOPs and cache of a prefill by formula, beside the paper's figures.

No weights are needed.  Milliseconds come from files of ``python -m visiondrop.profile``, if any are
named (``--measured``); cells of what was not measured say so.
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from llava.eval.errors import EXIT_OK, EvalError
from llava.eval.files import write_atomically
from llava.eval.published import published
from llava.eval.table import markdown
from llava.eval.tables.grid import Grid, Text
from llava.eval.tables.latex import latex
from llava.eval.tables.measured import Measured, read_measured
from llava.eval.tables.presets import PRESETS, Preset
from llava.eval.tables.registry import EFFICIENCY
from llava.eval.tables.spec import FULL
from visiondrop.methods import METHODS, build_method
from visiondrop.profiling.flops import kv_bytes, prefill_flops

TITLE = "Efficiency: FLOPs and KV cache of a prefill"
HEAD = [
    *("method", "asked", "tokens", "TFLOPs", "of full", "KV MB", "TFLOPs, paper's counting"),
    *("published TFLOPs", "ms to first token", "published ms"),
]
NOT_MEASURED = "not yet measured"
METHODS_SHOWN = ("visiondrop", "visionzip", "fastv", "sparsevlm", "pyramiddrop", "random")
FP16_BYTES = 2


@dataclass(frozen=True)
class Count:
    """What is counted of one method at one budget.

    Attributes:
        tokens: asked for; None for the unpruned model.
        mean: of visual tokens over the decoder layers, by plan.
        flops: of the prefill as it runs; like_paper: as the VisionDrop paper counts.
        cache: bytes of keys and values after it, in float16.
        reason: why there is no count.
    """

    method: str
    tokens: int | None
    mean: float | None = None
    flops: float | None = None
    like_paper: float | None = None
    cache: int | None = None
    reason: str = ""


def count(preset: Preset, name: str, tokens: int | None) -> Count:
    """The counts of a method at a true mean."""
    geometry = preset.geometry
    try:
        if name not in METHODS:
            raise EvalError(f"unknown method {name!r}; known are {', '.join(sorted(METHODS))}")
        method = build_method(name, tokens, geometry=geometry)
        method.check(geometry)
        if not method.flops_by_ledger:
            raise ValueError("its cost does not follow from the tokens of each layer")
        ledger = method.ledger(geometry.num_layers, geometry.num_patches, geometry.has_cls)
    except ValueError as error:
        return Count(name, tokens, reason=str(error))

    def total(like_paper: bool) -> float:
        return prefill_flops(
            preset.size, ledger, preset.text, tiles=preset.tiles, like_paper=like_paper
        ).total

    cache = kv_bytes(preset.size, [n + preset.text for n in ledger], FP16_BYTES)
    mean = sum(ledger) / len(ledger)
    return Count(name, tokens, mean, total(False), total(True), cache)


def counts_of(preset: Preset, names: tuple[str, ...], tokens: tuple[int, ...]) -> list[Count]:
    """The unpruned model, then budget by budget."""
    rows = [count(preset, FULL, None)]
    return rows + [count(preset, name, budget) for budget in tokens for name in names]


def row_of(preset: Preset, row: Count, full: Count, measured: Measured) -> list[str]:
    """The cells under ``HEAD``."""
    own = measured.cells.get((preset.name, row.method, row.tokens), NOT_MEASURED)
    asked = "-" if row.tokens is None else str(row.tokens)
    theirs = [_published(preset, row, figure) for figure in ("tflops", "latency_ms")]
    if row.flops is None or row.mean is None or row.like_paper is None or row.cache is None:
        least = row.reason.split("not reachable, ")
        told = least[1].split(" with")[0] if len(least) > 1 else "no formula"
        ms = "-" if own == NOT_MEASURED else own  # a method without a formula can be timed
        return [row.method, asked, told, "-", "-", "-", "-", theirs[0], ms, theirs[1]]
    assert full.flops is not None
    return [
        row.method,
        asked,
        f"{row.mean:.1f}",
        tera(row.flops),
        f"{100 * row.flops / full.flops:.1f} %",
        f"{row.cache / 1e6:.1f}",
        tera(row.like_paper),
        theirs[0],
        own,
        theirs[1],
    ]


def tera(flops: float) -> str:
    """TFLOPs with two decimals, of small models with four."""
    return f"{flops / 1e12:.{2 if flops >= 1e11 * 5 else 4}f}"


def _published(preset: Preset, row: Count, figure: str) -> str:
    tokens = preset.patches if row.tokens is None else row.tokens
    if not preset.published_model:
        return "-"
    found = published(row.method, figure, preset.published_model, tokens)
    return f"{found[0].value:g} [{found[0].source}]" if found else "-"


def note(measured: Measured) -> str:
    """What the figures depend on."""
    times = "to be measured on a GPU (docs/efficiency.md)"
    if measured.machines:
        times = f"time to the first token, median (quartiles), {'; '.join(measured.machines)}"
    texts = "; ".join(
        f"{p.name}: {p.patches} patches in {p.tiles} tile{'s' * (p.tiles > 1)}, {p.text} other "
        "tokens"
        for p in PRESETS
    )
    return (
        f"One picture, one prefill, batch 1, by formula (`visiondrop/profiling/flops.py`). {texts} "
        "(of the two 7B models as the paper's figures imply). TFLOPs: what runs, the tower up to "
        "the layer that is read and the LM head at the last position; the paper's counting takes "
        "the whole tower and all positions. What choosing tokens costs is not in it. KV MB: "
        f"float16. ms: {times}; the published ones are from another machine."
    )


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Write the table; ``rest`` holds flags that it has no use for."""
    if rest:
        raise EvalError(f"{EFFICIENCY} needs no model and takes no {rest[0]}")
    files = [f.strip() for f in (args.measured or "").split(",") if f.strip()]
    measured = read_measured(files)
    asked = tuple(n.strip() for n in (args.methods or ",".join(METHODS_SHOWN)).split(","))
    names = tuple(n for n in (METHODS if "all" in asked else asked) if n != FULL)
    parts, groups, sheet = [f"# {TITLE}\n"], [], io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    columns = ["model", "method", "asked", "mean_tokens", "flops", "flops_like_paper", "kv_bytes"]
    writer.writerow([*columns, "not_counted"])
    for preset in PRESETS:
        budgets = tuple(int(t) for t in args.tokens.split(",")) if args.tokens else preset.tokens
        counts = counts_of(preset, names, tuple(budgets))
        lines = [row_of(preset, row, counts[0], measured) for row in counts]
        parts.append(f"## {preset.name}\n\n{markdown(HEAD, lines)}")
        groups.append((preset.name, [[Text(cell) for cell in line] for line in lines]))
        for row in counts:
            figures = (row.mean, row.flops, row.like_paper, row.cache)
            shown = ["" if figure is None else f"{figure:.8g}" for figure in figures]
            writer.writerow([preset.name, row.method, row.tokens or "", *shown, row.reason])
    command = f"Made by `bash scripts/tables/{EFFICIENCY}.sh`."
    folder = Path(args.results or args.out or f"outputs/tables/{EFFICIENCY}")
    for ending, text in (
        (".md", "\n".join([*parts, f"{note(measured)} {command}\n"])),
        (".tex", latex(Grid(HEAD, groups), f"{TITLE}. {note(measured)}", EFFICIENCY, texts=1)),
        (".csv", sheet.getvalue()),
    ):
        path = folder / f"{EFFICIENCY}{ending}"
        write_atomically(path, text)
        Console().print(f"wrote {path}", highlight=False, soft_wrap=True)
    return EXIT_OK
