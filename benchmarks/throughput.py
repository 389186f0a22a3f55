"""Samples per second against batch size, with and without VisionDrop, from one run.

    python -m benchmarks.throughput                             # the bundled model
    python -m benchmarks.throughput --model-path liuhaotian/llava-v1.5-7b --data DIR \\
        --batch-sizes 1 2 4 8 16 32 64 --questions 192 --dtype float16 --clock wall

The same questions of TextVQA are answered with every method at every batch size, greedily, as the
evaluation does it: unequal prompts padded on the left, each picture encoded once.  Preparing
pictures is not in the times, as processes beside the model do it.  One repeat is a pass over all
cases in an order drawn anew, and ratios are taken within a repeat: what else the machine does then
falls on all of them alike.  Figures of two runs do not belong into one ratio.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.overhead import Stopwatch, quartiles
from benchmarks.reporting import add_measuring_flags, open_model, prepare, report
from benchmarks.setting import machine
from llava.eval.answering import LoadedModel, generate, run_tower_cache
from llava.eval.benchmarks import get_benchmark
from llava.eval.planning import geometry_of_config, make_method
from llava.eval.preparing import Prepared
from llava.eval.samples import Sample, batches_of
from llava.eval.settings import RunSettings
from visiondrop import Reducer

HEAD = ("method", "tokens", "batch", "samples/s", "quartiles", "ratio to batch 1", "quartiles")


@dataclass
class Case:
    """One method at one batch size.

    Attributes:
        rate: samples per second, median over repeats, with its quartiles.
        ratio: of the rate to that of batch 1 in the same repeat, likewise.
        same_texts: answers that are those of batch 1.
    """

    method: str
    tokens: float
    batch: int
    rate: float = 0.0
    rate_quartiles: tuple[float, float] = (0.0, 0.0)
    ratio: float = 0.0
    ratio_quartiles: tuple[float, float] = (0.0, 0.0)
    same_texts: int = 0


@torch.inference_mode()
def answer(
    loaded: LoadedModel,
    method: Reducer,
    prepared: list[Prepared],
    samples: list[Sample],
    batch_size: int,
    settings: RunSettings,
    stopwatch: Stopwatch,
) -> tuple[float, list[str], float]:
    """Seconds for all samples, their texts, and the mean of visual tokens over decoder layers."""
    batches = batches_of(len(samples), batch_size)
    towers = run_tower_cache(loaded.model.device, samples, batches)
    texts: list[str] = []
    with method(loaded.model, tower_cache=towers) as trace:
        stopwatch.start()
        for batch in batches:
            own = slice(batch.start, batch.stop)
            texts += generate(loaded, prepared[own], samples[own], settings, trace)[0]
        seconds = stopwatch.stop()
        return seconds, texts, trace.mean_tokens


def measure(
    loaded: LoadedModel,
    methods: list[Reducer],
    prepared: list[Prepared],
    samples: list[Sample],
    batch_sizes: list[int],
    settings: RunSettings,
    repeats: int,
    clock: str,
) -> list[Case]:
    """Every method at every batch size, repeats interleaved; batch 1 among them."""
    stopwatch = Stopwatch(loaded.model.device, clock)
    keys = [(m, b) for m in range(len(methods)) for b in batch_sizes]
    rates: dict[tuple[int, int], list[float]] = {key: [] for key in keys}
    texts: dict[tuple[int, int], list[str]] = {}
    tokens: dict[int, float] = {}
    for method in methods:  # a first batch of each, not timed
        largest = max(batch_sizes)
        warm = prepared[:largest], samples[:largest]
        answer(loaded, method, *warm, largest, settings, stopwatch)
    dice = random.Random(0)
    for _ in range(repeats):
        for m, b in dice.sample(keys, len(keys)):
            seconds, texts[m, b], tokens[m] = answer(
                loaded, methods[m], prepared, samples, b, settings, stopwatch
            )
            rates[m, b].append(len(samples) / seconds)
    cases = []
    for m, b in keys:
        ratios = [rate / one for rate, one in zip(rates[m, b], rates[m, 1], strict=True)]
        cases.append(
            Case(
                methods[m].name,
                tokens[m],
                b,
                statistics.median(rates[m, b]),
                quartiles(rates[m, b]),
                statistics.median(ratios),
                quartiles(ratios),
                sum(a == one for a, one in zip(texts[m, b], texts[m, 1], strict=True)),
            )
        )
    return cases


def rows_of(cases: list[Case]) -> list[list[str]]:
    """The table's rows."""

    def pair(low_high: tuple[float, float]) -> str:
        return f"{low_high[0]:.2f} to {low_high[1]:.2f}"

    return [
        [
            case.method,
            f"{case.tokens:.1f}",
            str(case.batch),
            f"{case.rate:.2f}",
            pair(case.rate_quartiles),
            f"{case.ratio:.2f}",
            pair(case.ratio_quartiles),
        ]
        for case in cases
    ]


def describe(content: dict[str, Any]) -> str:
    """One paragraph that the figures stand with."""
    here, n = content["machine"], content["questions"]
    differ = [case for case in content["cases"] if case["same_texts"] != n]
    same = (
        f"All texts are those of batch 1 ({n} questions)."
        if not differ
        else "Texts that are those of batch 1: "
        + ", ".join(f"{c['method']} batch {c['batch']}: {c['same_texts']} of {n}" for c in differ)
        + "."
    )
    load = "" if content["load"] is None else f", {content['load']:.1f} processes ready to run"
    return (
        f"{content['model']}, the first {n} questions of {content['data']}, "
        f"{here['dtype']}, {here['attention']}, {here['device']}, {here['threads']} thread(s), "
        f"{content['clock']} time{load}; torch {here['torch']}, transformers "
        f"{here['transformers']}. Median and quartiles of {content['repeats']} interleaved "
        f"repeats of one run; preparing pictures is not in the times. {same}"
    )


def load_average() -> float | None:
    """Processes that were ready to run on this machine, mean over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=get_benchmark("textvqa").default_data)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24, 32])
    parser.add_argument("--methods", nargs="+", default=["full", "visiondrop"])
    parser.add_argument("--questions", type=int, default=96)
    add_measuring_flags(parser, "throughput.json")
    args = parser.parse_args(argv)
    args.batch_sizes = sorted({1, *args.batch_sizes})
    if args.batch_sizes[0] < 1 or args.questions < args.batch_sizes[-1]:
        parser.error(
            f"--batch-sizes {args.batch_sizes}: need 1 to --questions ({args.questions}) each"
        )
    return args


def main(argv: list[str] | None = None) -> list[Case]:
    """Measure, print, write."""
    args = parse(argv)
    loaded = open_model(args)
    benchmark = get_benchmark("textvqa")
    files = benchmark.files(args.data)
    samples = benchmark.read(files)[: args.questions]
    settings = RunSettings(loaded.name, None, "", {}, max_new_tokens=args.max_new_tokens)
    prepared = prepare(loaded, benchmark.pictures(files), samples, settings)
    geometry = geometry_of_config(loaded.model.config)
    methods = [make_method(n, None if n == "full" else args.tokens, geometry) for n in args.methods]
    cases = measure(
        loaded, methods, prepared, samples, args.batch_sizes, settings, args.repeats, args.clock
    )
    content = {
        "model": loaded.name,
        "data": str(args.data),
        "questions": len(samples),
        "repeats": args.repeats,
        "clock": args.clock,
        "load": load_average(),
        "machine": machine(loaded.model),
        "cases": [asdict(case) for case in cases],
    }
    rows = rows_of(cases)
    report(
        "benchmarks.throughput", argv, HEAD, rows, describe(content), content, args.json,
        args.markdown,
    )  # fmt: skip
    return cases


if __name__ == "__main__":
    main()
