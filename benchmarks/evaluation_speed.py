"""Questions per second of an evaluation, from the plain way to all that makes it fast, in one run.

    python -m benchmarks.evaluation_speed --clock processor         # the bundled model and GQA set
    python -m benchmarks.evaluation_speed --model-path liuhaotian/llava-v1.5-7b --data DIR \\
        --dtype float16 --questions 980 --batch-size 32

The same questions, several on each picture, are answered in turns

- by the unpruned model one by one, the tower run for each question (the plain way);
- in batches; with VisionDrop; with both;
- then with the vision tower once a picture, and with the image cache too, which is what
  `llava.eval` does by itself where a benchmark asks two or more questions a picture.

One repeat is a pass over all ways in an order drawn anew; ratios are taken within a repeat.
Preparing pictures is not in the times. Texts are compared with those of the same method, one by
one.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.image_cache import answer, choose
from benchmarks.overhead import Stopwatch, quartiles
from benchmarks.reporting import add_measuring_flags, open_model, prepare, report
from benchmarks.setting import machine
from benchmarks.throughput import load_average
from llava.eval.answering import LoadedModel
from llava.eval.benchmarks import get_benchmark
from llava.eval.planning import geometry_of_config, make_method
from llava.eval.preparing import Prepared
from llava.eval.samples import Sample
from llava.eval.settings import RunSettings
from visiondrop import Reducer

SHARED = {"apart": "nothing", "off": "tower", "cache": "image cache"}
HEAD = (
    "method", "batch", "shared by a picture's questions", "questions/s", "quartiles",
    "over the plain way", "quartiles", "texts as one by one",
)  # fmt: skip


@dataclass
class Case:
    """One way to answer all questions.

    Attributes:
        way: as `benchmarks.image_cache` has it: apart, off or cache.
        rate: questions per second, median over repeats, with its quartiles.
        ratio: of the rate to that of the plain way in the same repeat, likewise.
        same_texts: answers that are those of the same method one by one.
    """

    method: str
    batch: int
    way: str
    rate: float = 0.0
    rate_quartiles: tuple[float, float] = (0.0, 0.0)
    ratio: float = 0.0
    ratio_quartiles: tuple[float, float] = (0.0, 0.0)
    same_texts: int = 0


def ways(method: str, batch: int) -> list[Case]:
    """The plain way first."""
    return [
        Case("full", 1, "apart"),
        Case("full", batch, "apart"),
        Case(method, 1, "apart"),
        Case(method, batch, "apart"),
        Case(method, batch, "off"),
        Case(method, batch, "cache"),
        Case("full", batch, "cache"),
    ]


def measure(
    loaded: LoadedModel,
    methods: dict[str, Reducer],
    cases: list[Case],
    prepared: list[Prepared],
    samples: list[Sample],
    settings: RunSettings,
    repeats: int,
    clock: str,
) -> None:
    """Fill in the cases; the first one is what the others are compared with."""
    stopwatch = Stopwatch(loaded.model.device, clock)
    rates: list[list[float]] = [[] for _ in cases]
    texts: list[list[str]] = [[] for _ in cases]

    def run(case: Case, count: int) -> tuple[float, list[str]]:
        own = replace(settings, batch_size=case.batch)
        method = methods[case.method]
        return answer(loaded, method, prepared[:count], samples[:count], case.way, own, stopwatch)[
            :2
        ]

    for case in cases:  # a first batch of each, not timed
        run(case, min(case.batch, len(samples)))
    dice = random.Random(0)
    for _ in range(repeats):
        for i in dice.sample(range(len(cases)), len(cases)):
            seconds, texts[i] = run(cases[i], len(samples))
            rates[i].append(len(samples) / seconds)
    one_by_one = {c.method: t for c, t in zip(cases, texts, strict=True) if c.batch == 1}
    for case, own, said in zip(cases, rates, texts, strict=True):
        ratios = [rate / plain for rate, plain in zip(own, rates[0], strict=True)]
        case.rate, case.rate_quartiles = statistics.median(own), quartiles(own)
        case.ratio, case.ratio_quartiles = statistics.median(ratios), quartiles(ratios)
        case.same_texts = sum(a == b for a, b in zip(said, one_by_one[case.method], strict=True))


def cells(case: Case, questions: int) -> list[str]:
    """A row of the table."""
    return [
        case.method,
        str(case.batch),
        SHARED[case.way],
        f"{case.rate:.2f}",
        "{:.2f} to {:.2f}".format(*case.rate_quartiles),
        f"{case.ratio:.2f}",
        "{:.2f} to {:.2f}".format(*case.ratio_quartiles),
        f"{case.same_texts} of {questions}",
    ]


def describe(content: dict[str, Any]) -> str:
    """One paragraph that the figures stand with."""
    here = content["machine"]
    load = "" if content["load"] is None else f", {content['load']:.1f} processes ready to run"
    return (
        f"{content['model']}, {content['questions']} questions of {content['data']} on "
        f"{content['pictures']} pictures, {content['tokens']} visual tokens with "
        f"{content['method']}; {here['dtype']}, {here['attention']}, {here['device']}, "
        f"{here['threads']} thread(s), {content['clock']} time{load}; torch {here['torch']}, "
        f"transformers {here['transformers']}. Median and quartiles of {content['repeats']} "
        "interleaved repeats of one run; preparing pictures is not in the times. The plain way is "
        "the first row; the evaluation goes the way of the last row of its method by itself."
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmark", default="gqa", help="whose questions are asked")
    parser.add_argument("--data", help="its folder; the bundled one by default")
    parser.add_argument("--method", default="visiondrop")
    parser.add_argument("--questions", type=int, default=98)
    parser.add_argument("--each", type=int, default=7, help="questions a picture")
    parser.add_argument("--batch-size", type=int, default=49)
    add_measuring_flags(parser, "evaluation.json")
    args = parser.parse_args(argv)
    if args.each < 1 or args.questions < 1 or args.questions % args.each:
        parser.error(f"--questions {args.questions} must be a multiple of --each {args.each}")
    if args.batch_size < 2:
        parser.error(f"--batch-size {args.batch_size}: at least 2 are needed")
    return args


def main(argv: list[str] | None = None) -> list[Case]:
    """Measure, print, write."""
    args = parse(argv)
    loaded = open_model(args)
    benchmark = get_benchmark(args.benchmark)
    files = benchmark.files(args.data or benchmark.default_data)
    samples = choose(benchmark.read(files), args.questions, args.each)
    settings = RunSettings(loaded.name, None, "", {}, max_new_tokens=args.max_new_tokens)
    prepared = prepare(loaded, benchmark.pictures(files), samples, settings)
    geometry = geometry_of_config(loaded.model.config)
    methods = {
        "full": make_method("full", None, geometry),
        args.method: make_method(args.method, args.tokens, geometry),
    }
    cases = ways(args.method, args.batch_size)
    measure(loaded, methods, cases, prepared, samples, settings, args.repeats, args.clock)
    content = {
        "model": loaded.name,
        "data": benchmark.title,
        "questions": len(samples),
        "pictures": len(Counter(sample.image for sample in samples)),
        "method": args.method,
        "tokens": args.tokens,
        "repeats": args.repeats,
        "clock": args.clock,
        "load": load_average(),
        "machine": machine(loaded.model),
        "cases": [asdict(case) for case in cases],
    }
    rows = [cells(case, len(samples)) for case in cases]
    report(
        "benchmarks.evaluation_speed", argv, HEAD, rows, describe(content), content, args.json,
        args.markdown,
    )  # fmt: skip
    return cases


if __name__ == "__main__":
    main()
