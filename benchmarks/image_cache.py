"""Questions per second with and without the image cache, from one run.

    python -m benchmarks.image_cache --clock processor          # the bundled model
    python -m benchmarks.image_cache --model-path liuhaotian/llava-v1.5-7b --data DIR \\
        --questions 72 --batch-size 24 --dtype float16

The same number of questions is answered by the batched engine of the evaluation, once with so many
on each picture, and in three ways:

- cache: (system prompt, picture) is run once a picture, its questions go on from the kept KV;
- off: whole prompts; a picture still passes the vision tower once, as the evaluation always has it;
- apart: whole prompts, and the tower runs for each question.

One repeat is a pass over all cells in an order drawn anew, and ratios are taken within a repeat.
Preparing pictures is not in the times. Beside them stand the same ratios in FLOPs of LLaVA-1.5-7B,
by formula and without decoding.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.overhead import Stopwatch, quartiles
from benchmarks.reporting import add_measuring_flags, open_model, prepare, report
from benchmarks.setting import machine
from benchmarks.throughput import load_average
from llava.eval.answering import (
    LoadedModel,
    generate,
    in_several_batches,
    most_held,
    run_tower_cache,
)
from llava.eval.benchmarks import get_benchmark
from llava.eval.errors import EvalError
from llava.eval.planning import geometry_of_config, make_method
from llava.eval.prefixes import SharedPrefixes
from llava.eval.preparing import Prepared
from llava.eval.samples import Sample, batches_of
from llava.eval.settings import RunSettings
from visiondrop import Geometry, Reducer
from visiondrop.profiling import LLAVA_15_7B, prefill_flops

WAYS = ("cache", "off", "apart")
BEFORE, AFTER = 35, 31
"""Text tokens before and after a picture in LLaVA-1.5's prompt of 66 tokens."""
HEAD = (
    "method", "tokens", "questions a picture", "questions/s", "off", "apart",
    "over off", "quartiles", "over apart", "quartiles", "over off, FLOPs of 7B",
)  # fmt: skip


@dataclass
class Case:
    """One method with so many questions a picture.

    Attributes:
        rates: questions per second of each way, median over repeats.
        over_off, over_apart: ratio of the cache's rate to the others' in the same repeat, median
            and quartiles.
        same_texts: answers of the cache that are those of whole prompts.
        new_tokens: mean length of the answers.
        flops_over_off: the ratio in FLOPs of LLaVA-1.5-7B, see `flops_ratio`.
    """

    method: str
    tokens: float
    each: int
    rates: dict[str, float]
    over_off: tuple[float, float, float]
    over_apart: tuple[float, float, float]
    same_texts: int
    new_tokens: float
    flops_over_off: float


def choose(samples: Sequence[Sample], count: int, each: int) -> list[Sample]:
    """`count` questions, `each` of them on one picture, picture by picture.

    Raises EvalError where the data has too few.
    """
    own: dict[str | None, list[Sample]] = defaultdict(list)
    for sample in samples:
        own[sample.image].append(sample)
    enough = [asked[:each] for asked in own.values() if len(asked) >= each]
    if len(enough) * each < count:
        raise EvalError(
            f"{count} questions, {each} a picture, were asked for; the data has {len(enough)} such "
            "pictures: give fewer (--questions), or data with more"
        )
    return [sample for asked in enough[: count // each] for sample in asked]


@torch.inference_mode()
def answer(
    loaded: LoadedModel,
    method: Reducer,
    prepared: list[Prepared],
    samples: list[Sample],
    way: str,
    settings: RunSettings,
    stopwatch: Stopwatch,
) -> tuple[float, list[str], list[int], float]:
    """Seconds for all, texts, new tokens of each, mean of visual tokens over decoder layers."""
    device = loaded.model.device
    if way == "apart":  # to the tower each question has a picture of its own
        samples = [replace(s, image=f"{s.image}#{i}") for i, s in enumerate(samples)]
    batches = batches_of(len(samples), settings.batch_size)
    several = in_several_batches(samples, batches)
    towers = run_tower_cache(device, samples, batches)
    shared = None
    if way == "cache":
        shared = SharedPrefixes(loaded.model, method, several, most_held(device), towers)
    applied = method(loaded.model, tower_cache=towers)
    texts, new = [], []
    with applied if shared is None else shared.cache.applied() as trace:
        stopwatch.start()
        for batch in batches:
            part = slice(batch.start, batch.stop)
            made = generate(loaded, prepared[part], samples[part], settings, trace, shared=shared)
            texts += made[0]
            new += made[1]
        return stopwatch.stop(), texts, new, trace.mean_tokens


def measure(
    loaded: LoadedModel,
    methods: list[Reducer],
    work: dict[int, tuple[list[Prepared], list[Sample]]],
    settings: RunSettings,
    repeats: int,
    clock: str,
) -> list[Case]:
    """Every method with every number of questions a picture, each way, repeats interleaved.

    Args:
        work: questions a picture -> the questions, prepared and as they are.
    """
    stopwatch = Stopwatch(loaded.model.device, clock)
    cells = list(itertools.product(range(len(methods)), work, WAYS))
    rates: dict[tuple[int, int, str], list[float]] = {cell: [] for cell in cells}
    texts: dict[tuple[int, int, str], list[str]] = {}
    tokens: dict[int, float] = {}
    length: dict[tuple[int, int], float] = {}
    size = settings.batch_size
    for method, way in itertools.product(methods, WAYS):  # a first batch of each, not timed
        prepared, samples = next(iter(work.values()))
        answer(loaded, method, prepared[:size], samples[:size], way, settings, stopwatch)
    dice = random.Random(0)
    for _ in range(repeats):
        for m, each, way in dice.sample(cells, len(cells)):
            prepared, samples = work[each]
            seconds, texts[m, each, way], new, tokens[m] = answer(
                loaded, methods[m], prepared, samples, way, settings, stopwatch
            )
            rates[m, each, way].append(len(samples) / seconds)
            length[m, each] = statistics.fmean(new)
    cases = []
    for m, each in itertools.product(range(len(methods)), work):
        own = {way: rates[m, each, way] for way in WAYS}
        over = {
            way: [a / b for a, b in zip(own["cache"], own[way], strict=True)] for way in WAYS[1:]
        }
        pairs = zip(texts[m, each, "cache"], texts[m, each, "off"], strict=True)
        cases.append(
            Case(
                methods[m].name,
                tokens[m],
                each,
                {way: statistics.median(own[way]) for way in WAYS},
                (statistics.median(over["off"]), *quartiles(over["off"])),
                (statistics.median(over["apart"]), *quartiles(over["apart"])),
                sum(a == b for a, b in pairs),
                length[m, each],
                flops_ratio(methods[m].name, tokens[m], each),
            )
        )
    return cases


def flops_ratio(name: str, tokens: float, each: int) -> float:
    """FLOPs of whole prompts (the tower once a picture) over those with the cache, on LLaVA-1.5-7B:
    a method's setting for that mean of tokens, prefill alone. A question that goes on counts as
    what it adds to the square of attention, which is a little more than what is run.
    """
    size = LLAVA_15_7B
    layers, patches = size.num_layers, size.num_patches
    ledger = [patches] * layers
    if name != "full":
        method = make_method(name, round(tokens), geometry_of_7b(layers, patches))
        ledger = method.ledger(layers, patches)
    whole = prefill_flops(size, ledger, BEFORE + AFTER)
    begin = prefill_flops(size, ledger, BEFORE)
    off = whole.tower + each * (whole.total - whole.tower)
    added = whole.decoder - begin.decoder + whole.lm_head
    return off / (begin.total - begin.lm_head + each * added)


def geometry_of_7b(layers: int, patches: int) -> Geometry:
    """What budgets of LLaVA-1.5-7B depend on."""
    side = int(patches**0.5)
    return Geometry(layers, patches, True, (side, side))


def rows_of(cases: list[Case]) -> list[list[str]]:
    """The table's rows."""
    return [
        [
            case.method,
            f"{case.tokens:.1f}",
            str(case.each),
            *(f"{case.rates[way]:.2f}" for way in WAYS),
            f"{case.over_off[0]:.2f}",
            "{:.2f} to {:.2f}".format(*case.over_off[1:]),
            f"{case.over_apart[0]:.2f}",
            "{:.2f} to {:.2f}".format(*case.over_apart[1:]),
            f"{case.flops_over_off:.2f}",
        ]
        for case in cases
    ]


def describe(content: dict[str, Any]) -> str:
    """One paragraph that the figures stand with."""
    here, n = content["machine"], content["questions"]
    same = [case["same_texts"] for case in content["cases"]]
    texts = f"all {n}" if min(same) == n else f"at least {min(same)} of {n}"
    new = [case["new_tokens"] for case in content["cases"]]
    load = "" if content["load"] is None else f", {content['load']:.1f} processes ready to run"
    return (
        f"{content['model']}, {n} questions of {content['data']} in batches of "
        f"{content['batch_size']}, {here['dtype']}, {here['attention']}, {here['device']}, "
        f"{here['threads']} thread(s), {content['clock']} time{load}; torch {here['torch']}, "
        f"transformers {here['transformers']}. Median and quartiles of {content['repeats']} "
        f"interleaved repeats of one run; preparing pictures is not in the times. Answers of "
        f"{min(new):.1f} to {max(new):.1f} tokens on average; {texts} texts of every cell are "
        "those of whole prompts. off: whole prompts, a picture passes the vision tower once; "
        "apart: whole prompts, the tower for each question. FLOPs of 7B: the same ratio over off "
        f"for prefills of LLaVA-1.5-7B with {BEFORE} text tokens before and {AFTER} after the "
        "picture, by formula."
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmark", default="pope", help="whose questions are asked")
    parser.add_argument("--data", help="its folder; the bundled one by default")
    parser.add_argument("--each", type=int, nargs="+", default=[1, 3, 6, 18])
    parser.add_argument("--questions", type=int, default=18, help="of every cell")
    parser.add_argument("--batch-size", type=int, default=18)
    parser.add_argument("--methods", nargs="+", default=["full", "visiondrop"])
    add_measuring_flags(parser, "image_cache.json", repeats=5)
    args = parser.parse_args(argv)
    if min(args.each) < 1 or any(args.questions % each for each in args.each):
        parser.error(f"--questions {args.questions} must be a multiple of each of {args.each}")
    return args


def main(argv: list[str] | None = None) -> list[Case]:
    """Measure, print, write."""
    args = parse(argv)
    loaded = open_model(args)
    benchmark = get_benchmark(args.benchmark)
    files = benchmark.files(args.data or benchmark.default_data)
    everything = benchmark.read(files)
    settings = RunSettings(
        loaded.name, None, "", {}, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens
    )
    work = {}
    for each in args.each:
        samples = choose(everything, args.questions, each)
        work[each] = prepare(loaded, benchmark.pictures(files), samples, settings), samples
    geometry = geometry_of_config(loaded.model.config)
    methods = [make_method(n, None if n == "full" else args.tokens, geometry) for n in args.methods]
    cases = measure(loaded, methods, work, settings, args.repeats, args.clock)
    content = {
        "model": loaded.name,
        "data": benchmark.title,
        "questions": args.questions,
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "clock": args.clock,
        "load": load_average(),
        "machine": machine(loaded.model),
        "cases": [asdict(case) for case in cases],
    }
    rows = rows_of(cases)
    report(
        "benchmarks.image_cache", argv, HEAD, rows, describe(content), content, args.json,
        args.markdown,
    )  # fmt: skip
    return cases


if __name__ == "__main__":
    main()
