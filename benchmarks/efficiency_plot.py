"""Two figures of cost: what is measured beside what FLOPs allow, and cost by number of tokens.

    python -m benchmarks.efficiency_plot                                   # by formula alone
    python -m benchmarks.efficiency_plot --profile outputs/profile/pocket.json --out docs/images \\
        --markdown docs/results/efficiency_pocket.md                       # and a table of ratios

The first needs a file of `python -m visiondrop.profile --json` with times: speed-up of the first
token over the unpruned model, by how many times fewer FLOPs a method runs. On the diagonal all that
FLOPs allow is had; what is missing is choosing, packing, and what does not shrink with tokens. The
second is by formula, for LLaVA-1.5-7B's decoder and tiles of 576 tokens: 576 (one) to 11,520
(twenty, four pictures of LLaVA-NeXT), unpruned and with VisionDrop at one ninth and one eighteenth
of them (64 and 32 of 576).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.plots import COLUMN, PAGE, figure, look_of, save
from llava.eval.errors import EvalError, run_main
from llava.eval.files import write_atomically
from visiondrop import VisionDrop
from visiondrop.profiling import LLAVA_15_7B, kv_bytes, prefill_flops

TILE, TILES = 576, tuple(range(1, 21))
SHARES = {"full": 1, "VisionDrop, 1/9": 9, "VisionDrop, 1/18": 18}
FP16_BYTES = 2
CURVES, SPEEDUP = "efficiency_tokens", "efficiency_speedup"


@dataclass(frozen=True)
class Point:
    """A prefill of LLaVA-1.5-7B: visual tokens of the unpruned model, and what it costs.

    Attributes:
        flops: of the prefill as it runs; tower: the vision tower's part of them.
        cache: bytes of keys and values after it in float16.
    """

    tokens: int
    mean: float
    flops: float
    tower: float
    cache: int


def curve(share: int, text_tokens: int = 66) -> list[Point]:
    """From 576 to 11,520 visual tokens, of which the mean over the decoder layers is 1 / `share`.

    Newlines of any-resolution pictures are left out.
    """
    layers, points = LLAVA_15_7B.num_layers, []
    for tiles in TILES:
        tokens = tiles * TILE
        ledger = [tokens] * layers
        if share > 1:
            made = VisionDrop.from_average(tokens / share, num_layers=layers, num_patches=tokens)
            ledger = made.ledger(layers, tokens)
        flops = prefill_flops(LLAVA_15_7B, ledger, text_tokens, tiles=tiles)
        cache = kv_bytes(LLAVA_15_7B, [n + text_tokens for n in ledger], FP16_BYTES)
        mean = sum(ledger) / layers
        points.append(Point(tokens, mean, flops.total, flops.tower, cache))
    return points


def draw_curves(out: Path) -> list[Path]:
    """FLOPs, KV cache, and how many times fewer FLOPs, by number of visual tokens."""
    curves = {name: curve(share) for name, share in SHARES.items()}
    names = [name for name in curves if name != "full"]
    x = [point.tokens for point in curves["full"]]
    with figure(1, 3, figsize=(PAGE, 2.35)) as (drawn, (left, middle, right)):
        for name, points in curves.items():
            look = look_of(name, names)
            style: dict[str, Any] = dict(
                color=look.color, marker=look.marker or "o", linestyle=look.dash, label=name,
                markevery=[0, 4, 9, 14, 19],
            )  # fmt: skip
            left.plot(x, [point.flops / 1e12 for point in points], **style)
            middle.plot(x, [point.cache / 1e9 for point in points], **style)
            if name != "full":
                ratio = [f.flops / p.flops for f, p in zip(curves["full"], points, strict=True)]
                right.plot(x, ratio, **style)
        tower = [point.tower / 1e12 for point in curves["full"]]
        left.plot(x, tower, color="0.6", linestyle=(0, (4, 2)), linewidth=1, label="vision tower")
        left.set(ylabel="TFLOPs of a prefill", yscale="log")
        middle.set(ylabel="KV cache, GB", yscale="log")
        right.set(ylabel="times fewer FLOPs", ylim=(0, None))
        for axis in (left, middle, right):
            axis.set(xlabel="visual tokens", xlim=(0, x[-1] * 1.03))
            axis.set_xticks([576, 2880, 5760, 8640, 11520])
            axis.tick_params(axis="x", rotation=35)
            axis.grid(axis="y", linewidth=0.4, color="0.88")
            axis.set_axisbelow(True)
        handles, labels = left.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=4)
        return save(drawn, out / CURVES)


@dataclass(frozen=True)
class Measured:
    """One row of a profile: times fewer FLOPs, times faster with quartiles."""

    method: str
    tokens: float
    bound: float
    faster: tuple[float, float, float]


def read_profile(path: Path) -> tuple[list[Measured], dict[str, Any]]:
    """The reduced rows of a profile with times, and what they were measured on.

    Raises `EvalError` where there are none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {(row["method"], row["tokens"]): row for row in content["rows"] if row["ttft_ms"]}
        full = rows["full", None]["tflops_run"]
        facts = {**content["settings"], **content["versions"], **content["machine"]}
    except OSError as error:
        raise EvalError(f"--profile {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise EvalError(
            f"--profile {path}: no profile with times of the method full; make one with python -m "
            "visiondrop.profile --method full,visiondrop --json FILE"
        ) from None
    found = [
        Measured(
            row["method"],
            row["tokens"],
            full / row["tflops_run"],
            tuple(row["faster"]["1"][name] for name in ("low", "median", "high")),  # type: ignore[arg-type]
        )
        for row in rows.values()
        if row["tokens"] and row["tflops_run"]
    ]
    if not found:
        raise EvalError(f"--profile {path}: no row of a method with a budget and a FLOPs formula")
    return found, facts


def draw_speedup(rows: Sequence[Measured], facts: dict[str, Any], out: Path) -> list[Path]:
    """Speed-up of the first token over the FLOPs bound."""
    names = list(dict.fromkeys(row.method for row in rows))
    others = [name for name in names if name not in ("visiondrop", "random", "uniform")]
    budgets = sorted({row.tokens for row in rows}, reverse=True)
    most = 1.08 * max(*(row.bound for row in rows), *(row.faster[2] for row in rows))
    with figure(figsize=(COLUMN, 3.3)) as (drawn, axis):
        axis.plot([1, most], [1, most], color="0.5", linewidth=0.9, linestyle=(0, (4, 2)))
        axis.annotate(
            "all that FLOPs allow", (most * 0.62, most * 0.62), rotation=45, fontsize=6.5,
            ha="center", va="bottom", rotation_mode="anchor", xytext=(-3, 3),
            textcoords="offset points", color="0.35",
        )  # fmt: skip
        axis.axhline(1, color="0.5", linewidth=0.6)
        for name in names:
            look = look_of(name, others)
            own = [row for row in rows if row.method == name]
            low, middle, high = zip(*(row.faster for row in own), strict=True)
            error = [
                [m - a for m, a in zip(middle, low, strict=True)],
                [b - m for m, b in zip(middle, high, strict=True)],
            ]
            axis.errorbar(
                [row.bound for row in own], middle, yerr=error, color=look.color,
                marker=look.marker or "o", linestyle="none", elinewidth=0.8, label=name,
                markerfacecolor="white" if name in ("random", "uniform") else look.color,
            )  # fmt: skip
        what = "processor time" if facts["clock"] == "processor" else "time"
        axis.set(
            xlabel="times fewer FLOPs", ylabel=f"times faster to the first token\n({what})",
            xlim=(1, most), ylim=(min(0.9, *(row.faster[0] for row in rows)), most),
        )  # fmt: skip
        shown = " and ".join(f"{tokens:g}" for tokens in budgets)
        axis.set_title(f"{facts['model']}, {shown} tokens", loc="left")
        drawn.legend(loc="outside lower center", ncols=3, handletextpad=0.2, columnspacing=0.9)
        return save(drawn, out / SPEEDUP)


HEAD = (
    "method", "tokens", "times fewer FLOPs", "times faster, first token", "end to end",
    "choosing over the rest of the prefill", "KV cache of full",
)  # fmt: skip


def ratios(path: Path) -> str:
    """The ratios of a profile as a Markdown table, with what they were measured on."""
    _, facts = read_profile(path)
    rows = [row for row in json.loads(path.read_text())["rows"] if row["ttft_ms"]]
    full = next(row for row in rows if row["method"] == "full")
    last = str(max(facts["new_tokens"]))

    def middle(figures: dict[str, float] | None, scale: float = 1.0, unit: str = "") -> str:
        if figures is None:
            return "-"
        low, median, high = (scale * figures[name] for name in ("low", "median", "high"))
        places = 1 if unit else 2
        return f"{median:.{places}f} ({low:.{places}f} to {high:.{places}f}){unit}"

    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)]]
    for row in rows:
        run, cache = row["tflops_run"], row["kv_bytes"]
        lines.append([
            row["method"],
            "-" if row["tokens"] is None else f"{row['tokens']:g}",
            "-" if run is None else f"{full['tflops_run'] / run:.2f}",
            middle(row["faster"]["1"]),
            middle(row["faster"][last]),
            middle(row["of_rest"], 100, " %"),
            "-" if cache is None else f"{100 * cache / full['kv_bytes']:.0f} %",
        ])  # fmt: skip
    clock = "processor time" if facts["clock"] == "processor" else "time"
    shown = ("model", "weights", "dtype", "attention", "batch", "device", "threads", "torch")
    what = ", ".join(f"{name} {facts[name]}" for name in shown if name != "device")
    return "\n".join([f"| {' | '.join(line)} |" for line in lines]) + (
        f"\n\nOver the unpruned model in the same turn, {clock}; end to end: {last} new tokens. "
        f"Median (quartiles) of {facts['repeats']} turns. One picture of {facts['visual_tokens']} "
        f"visual tokens, {facts['text_tokens']} other tokens. {what}, transformers "
        f"{facts['transformers']}, {json.loads(path.read_text())['machine']['device']}. Made by "
        f"`python -m benchmarks.efficiency_plot --profile {path} --markdown FILE`.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.efficiency_plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", type=Path, help="file of python -m visiondrop.profile")
    parser.add_argument("--out", type=Path, default=Path("outputs/profile"), help="folder")
    parser.add_argument("--markdown", type=Path, help="write the profile's ratios as a table")
    args = parser.parse_args(argv)
    if args.markdown and not args.profile:
        raise EvalError(f"--markdown {args.markdown}: ratios are of a profile; give --profile FILE")
    measured = read_profile(args.profile) if args.profile else None
    paths = draw_curves(args.out)
    if measured is not None:
        paths += draw_speedup(*measured, args.out)
    if args.markdown:
        write_atomically(args.markdown, ratios(args.profile))
        paths.append(args.markdown)
    for path in paths:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
