"""What choosing tokens costs, against the prefill that is left, and what is saved over a full one.

    python -m benchmarks.overhead                                      # the pocket model
    python -m benchmarks.overhead --geometry llava-1.5-7b --device cuda
    python -m benchmarks.overhead --model path/to/hf-llava --tokens 192 64 --json overhead.json

All times come from one run, in turns (full, 192, 128, ... and again), so that a machine that slows
down slows them all; ratios are what to read. "Choosing" is all that a method does at its stages:
scoring, selecting and merging, with the projections to queries and keys that it needs. Random
weights of a geometry serve as well as trained ones: no time depends on the values. On a GPU a stage
is timed from idle to idle, which makes choosing look dearer than it is. "Full" is the stock model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlavaForConditionalGeneration

from benchmarks.setting import GEOMETRIES, machine, prompt, random_model
from visiondrop import VisionDrop
from visiondrop.adapters import geometry_of
from visiondrop.profiling import prefill_flops
from visiondrop.profiling.latency import Stopwatch, quartiles

POCKET = Path(__file__).resolve().parent.parent / "checkpoints" / "pocket-llava"


class TimedVisionDrop(VisionDrop):
    """VisionDrop that adds up the time spent in its stages."""

    def timed_by(self, stopwatch: Stopwatch) -> TimedVisionDrop:
        self.stopwatch, self.spent, self.stages_run = stopwatch, 0.0, 0
        return self

    def encoder_stage(self, view):
        return self._timed(super().encoder_stage, view)

    def llm_stage(self, view):
        return self._timed(super().llm_stage, view)

    def _timed(self, stage, view):
        self.stopwatch.start()
        out = stage(view)
        self.spent += self.stopwatch.stop()
        self.stages_run += 1
        return out


@dataclass
class Row:
    """One method at one budget. Times are medians over the repeats, in seconds."""

    method: str
    tokens: int
    mean_tokens: float
    prefill: float
    prefill_quartiles: tuple[float, float]
    choosing: float
    choosing_over_rest: float
    choosing_over_rest_quartiles: tuple[float, float]
    speedup: float
    tflops: float
    flops_over_full: float
    stages: int


@torch.inference_mode()
def measure(
    model: Any,
    budgets: list[int],
    *,
    text_tokens: int = 66,
    warmup: int = 2,
    repeats: int = 10,
    clock: str = "wall",
) -> list[Row]:
    """Prefill full and with VisionDrop at each budget, in turns.

    Args:
        model: a Hugging Face LLaVA.
        budgets: average visual tokens.
        text_tokens: all tokens of the prompt that are not the picture.
        warmup: rounds that are thrown away.
        repeats: rounds that count.
        clock: "wall", or "processor" for the processor time of all threads.
    """
    geometry = geometry_of(model)
    inputs = prompt(model, text_tokens)
    inner, outer = (Stopwatch(model.device, clock) for _ in range(2))
    methods: dict[int, TimedVisionDrop | None] = {geometry.num_patches: None}
    for tokens in budgets:
        method = TimedVisionDrop.from_average(
            tokens,
            num_layers=geometry.num_layers,
            num_patches=geometry.num_patches,
            has_cls=geometry.has_cls,
        )
        methods[tokens] = method.timed_by(inner)

    prefill: dict[int, list[float]] = {tokens: [] for tokens in methods}
    choosing: dict[int, list[float]] = {tokens: [] for tokens in methods}
    ledgers = {geometry.num_patches: [geometry.num_patches] * geometry.num_layers}
    for turn in range(warmup + repeats):
        for tokens, method in methods.items():
            with method(model) if method is not None else nullcontext() as trace:
                if method is not None:
                    method.timed_by(inner)
                outer.start()
                model(**inputs, use_cache=True, logits_to_keep=1)
                seconds = outer.stop()
            if method is not None:
                ledgers[tokens] = list(trace.samples[0].tokens_per_layer)
            if turn >= warmup:
                prefill[tokens].append(seconds)
                choosing[tokens].append(method.spent if method is not None else 0.0)

    full = geometry.num_patches
    full_flops = prefill_flops(model, ledgers[full], text_tokens).total
    rows = []
    for tokens, method in methods.items():
        flops = prefill_flops(model, ledgers[tokens], text_tokens).total
        shares = [c / (p - c) for c, p in zip(choosing[tokens], prefill[tokens], strict=True)]
        rows.append(
            Row(
                method="full" if method is None else method.name,
                tokens=tokens,
                mean_tokens=statistics.fmean(ledgers[tokens]),
                prefill=statistics.median(prefill[tokens]),
                prefill_quartiles=quartiles(prefill[tokens]),
                choosing=statistics.median(choosing[tokens]),
                choosing_over_rest=statistics.median(shares),
                choosing_over_rest_quartiles=quartiles(shares),
                speedup=statistics.median(
                    a / b for a, b in zip(prefill[full], prefill[tokens], strict=True)
                ),
                tflops=flops / 1e12,
                flops_over_full=flops / full_flops,
                stages=0 if method is None else method.stages_run,
            )
        )
    return rows


HEAD = (
    "method", "avg tokens", "TFLOPs", "of full", "prefill ms", "quartiles", "faster",
    "choosing ms", "of the rest", "quartiles",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is printed, under ``HEAD``."""
    low, high = row.prefill_quartiles
    share_low, share_high = row.choosing_over_rest_quartiles
    chosen = row.stages > 0
    return (
        row.method,
        f"{row.mean_tokens:.1f}",
        f"{row.tflops:.3g}",
        f"{row.flops_over_full:.1%}",
        f"{row.prefill * 1e3:.1f}",
        f"{low * 1e3:.1f} - {high * 1e3:.1f}",
        f"{row.speedup:.2f} x",
        f"{row.choosing * 1e3:.2f}" if chosen else "-",
        f"{row.choosing_over_rest:.1%}" if chosen else "-",
        f"{share_low:.1%} - {share_high:.1%}" if chosen else "-",
    )


def table(rows: list[Row], title: str) -> Table:
    """The rows as a terminal table."""
    out = Table(title=title)
    for i, head in enumerate(HEAD):
        out.add_column(head, justify="right" if i else "left")
    for row in rows:
        out.add_row(*cells(row))
    return out


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *(cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a Hugging Face LLaVA (default: pocket-llava)")
    parser.add_argument(
        "--geometry", choices=GEOMETRIES, help="random weights of these sizes instead"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[192, 128, 64, 32])
    parser.add_argument("--text-tokens", type=int, default=66)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: processor time, which a busy machine disturbs less (CPU only)",
    )
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args(argv)
    if args.model and args.geometry:
        parser.error("--model and --geometry exclude each other: give one")
    if args.model and not args.model.is_dir():
        parser.error(f"--model {args.model}: no such folder")
    if args.clock == "processor" and args.device != "cpu":
        parser.error(f"--clock processor cannot time {args.device}: use it with --device cpu")
    for name in ("repeats", "text_tokens", *(["threads"] if args.threads is not None else [])):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed")
    return args


def main(argv: list[str] | None = None) -> list[Row]:
    """Measure, print, write."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(
        torch, args.dtype or ("float16" if args.device.startswith("cuda") else "float32")
    )
    path = args.model or (POCKET if POCKET.is_dir() and not args.geometry else None)
    if path is not None:
        model: Any = LlavaForConditionalGeneration.from_pretrained(path, dtype=dtype)
        model, described = model.to(args.device).eval(), path.name
    else:
        model, described = random_model(args.geometry or "pocket", dtype, args.device)
    rows = measure(
        model,
        args.tokens,
        text_tokens=args.text_tokens,
        warmup=args.warmup,
        repeats=args.repeats,
        clock=args.clock,
    )
    where = machine(model)
    title = f"prefill of one picture and {args.text_tokens} text tokens: {described}"
    notes = f"median and quartiles of {args.repeats} rounds, {args.clock} time; " + ", ".join(
        f"{key} {value}" for key, value in where.items()
    )
    if args.markdown:
        print(f"{markdown(rows)}\n\n{title}; {notes}")
    else:
        console = Console(width=None if sys.stdout.isatty() else 130)
        console.print(table(rows, title))
        console.print(notes)
    if args.json:
        content = {
            "model": described,
            "text_tokens": args.text_tokens,
            "repeats": args.repeats,
            "clock": args.clock,
            "machine": where,
            "rows": [asdict(row) for row in rows],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1))
        os.replace(temporary, args.json)
    return rows


if __name__ == "__main__":
    main()
