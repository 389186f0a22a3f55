"""What an engine saves of the time to the first token, what it costs, and when it has paid for it.

    python -m benchmarks.engine                                       # the bundled model
    python -m benchmarks.engine --model llava-1.5-7b --dtype float16 --device cuda

A prompt is prefilled and its next token chosen: without an engine, with compiled layers and, on a
GPU, with recordings and with recordings of compiled layers. All times come from one run, in turns
in an order drawn anew; ratios are taken within a turn. Making is what the first prefill of a length
took beyond the others'; set TORCHINDUCTOR_FORCE_DISABLE_CACHES=1, or what was compiled before is
taken from the disk. Lengths are padded to buckets' ends: what that wastes, and how many there
are, is counted over the prompts of the bundled TextVQA questions.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.setting import machine
from llava.eval.answering import LoadedModel
from llava.eval.benchmarks import get_benchmark
from llava.eval.files import write_atomically
from llava.eval.loading import ModelChoice, load_model
from llava.eval.planning import geometry_of_config, ledger_of, make_method
from llava.eval.preparing import build_prompt
from llava.eval.run_benchmark import POCKET
from llava.eval.settings import RunSettings
from llava.mm_utils import tokenizer_image_token
from visiondrop import Reducer
from visiondrop.engine import Engine
from visiondrop.engine.buckets import WASTE, bucket
from visiondrop.profiling.inputs import Setting, setting_of
from visiondrop.profiling.latency import Spread, Stopwatch, spread
from visiondrop.profiling.presets import PRESETS, random_model

HEAD = ("method", "engine", "ms", "ratio", "making, s", "paid after")
PADDING = ("method", "prompts", "padding", "lengths", "recordings")


@dataclass
class Case:
    """One method with one engine.

    Attributes:
        ms: to the first token; ratio: to no engine in the same turn.
        making: seconds that the first prefill took beyond the median; recording: part of it.
        paid_after: prefills of this length after which that is saved; None where nothing is.
        paths: which ways the last prefill took.
    """

    method: str
    engine: str
    ms: Spread
    ratio: Spread
    making: float
    recording: float
    paid_after: float | None
    paths: dict[str, int]


def engines(device: torch.device, backend: str) -> dict[str, Engine | None]:
    """Those that can run on a device."""
    compiled = {"compile": True, "backend": backend}
    out = {"none": None, "compiled": Engine("off", **compiled)}
    if device.type == "cuda":
        out |= {"recorded": Engine("cuda"), "both": Engine("cuda", **compiled)}
    return out


@torch.inference_mode()
def first_token(
    model: Any, method: Reducer, engine: Engine | None, setting: Setting, stopwatch: Stopwatch
) -> tuple[float, dict[str, int]]:
    """Seconds of a prefill, and the ways it took."""
    inputs = setting.inputs(model)
    with method(model, engine=engine, **setting.options()) as trace:
        stopwatch.start()
        model(**inputs, logits_to_keep=1).logits.argmax(-1)
        return stopwatch.stop(), dict(trace.paths)


def measure(
    model: Any, methods: list[Reducer], setting: Setting, repeats: int, backend: str
) -> list[Case]:
    """Every method with every engine, in turns."""
    stopwatch, kinds = Stopwatch(model.device), engines(model.device, backend)
    first, recording, paths = {}, {}, {}
    keys = [(m, name) for m in range(len(methods)) for name in kinds]

    def run(m: int, name: str) -> tuple[float, dict[str, int]]:
        return first_token(model, methods[m], kinds[name], setting, stopwatch)

    times: dict[tuple[int, str], list[float]] = {key: [] for key in keys}
    run(0, "none")  # not timed
    for key in keys:
        before = getattr(kinds[key[1]], "record_seconds", 0.0)
        first[key] = run(*key)[0]
        recording[key] = getattr(kinds[key[1]], "record_seconds", 0.0) - before
    for turn in range(repeats):
        for key in random.Random(turn).sample(keys, len(keys)):
            seconds, paths[key] = run(*key)
            times[key].append(seconds)
    cases = []
    for m, name in keys:
        own, plain = times[m, name], times[m, "none"]
        ms, ratio = spread(own, 1e3), spread([a / b for a, b in zip(own, plain, strict=True)])
        making = 0.0 if name == "none" else max(0.0, first[m, name] - ms.median / 1e3)
        saved = spread(plain).median - ms.median / 1e3
        spent = making, recording[m, name], making / saved if saved > 0 else None
        cases.append(Case(methods[m].name, name, ms, ratio, *spent, paths[m, name]))
    return cases


def text_lengths(pocket: LoadedModel) -> list[int]:
    """Tokens of the bundled TextVQA questions' prompts that are not visual."""
    benchmark = get_benchmark("textvqa")
    samples = benchmark.read(benchmark.files(benchmark.default_data))
    mode = RunSettings(pocket.name, None, "", {}).conv_mode
    prompts = [build_prompt(sample.prompt, mode) for sample in samples]
    return [len(tokenizer_image_token(text, pocket.tokenizer)) - 1 for text in prompts]


def padding_of(method: Reducer, geometry: Any, texts: list[int]) -> dict[str, Any]:
    """What buckets add to prompts with so many text tokens: the share of padding, meaned over
    decoder layers, the number of lengths, and of blocks of layers with a length.
    """
    ledger = ledger_of(method, geometry)
    rows = [[text + tokens for tokens in ledger] for text in texts]
    ends = [[bucket(length, WASTE) for length in row] for row in rows]
    firsts = {i for i, tokens in enumerate(ledger) if not i or tokens != ledger[i - 1]}
    recordings = {(i, row[i]) for row in ends for i in firsts}
    share = sum(map(sum, ends)) / sum(map(sum, rows)) - 1
    found = method.name, len(texts), share, len({end for _, end in recordings}), len(recordings)
    return dict(zip(PADDING, found, strict=True))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pocket", choices=["pocket", *PRESETS])
    parser.add_argument("--methods", nargs="+", default=["full", "visiondrop"])
    for name, default in {"layers": None, "tokens": 64, "repeats": 15, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, text in {"dtype": "float32", "device": "cpu", "backend": "inductor"}.items():
        parser.add_argument(f"--{name}", default=text)
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/engine.json"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    pocket = load_model(ModelChoice(POCKET, dtype=args.dtype, device=args.device))
    model = pocket.model
    if args.model != "pocket":
        config = PRESETS[args.model].config(args.layers)
        model = random_model(config, getattr(torch, args.dtype), args.device)
    geometry, setting = geometry_of_config(model.config), setting_of(model.config)
    methods = [make_method(n, None if n == "full" else args.tokens, geometry) for n in args.methods]
    cases = measure(model, methods, setting, args.repeats, args.backend)
    texts = text_lengths(pocket)
    paddings = [padding_of(method, geometry, texts) for method in methods]
    content: dict[str, Any] = {
        "model": args.model, "layers": geometry.num_layers, "text_tokens": setting.text_tokens,
        "patches": setting.patches, "repeats": args.repeats, "backend": args.backend,
        "waste": WASTE, "machine": machine(model), "cases": [asdict(case) for case in cases],
        "padding": paddings,
    }  # fmt: skip
    here = content["machine"]
    caption = (
        f"{args.model}, {geometry.num_layers} decoder layers, {setting.patches} visual and "
        f"{setting.text_tokens} other tokens, {here['dtype']}, {here['device']}, "
        f"{here['threads']} thread(s); torch {here['torch']}, transformers {here['transformers']}. "
        f"Median (quartiles) of {args.repeats} interleaved repeats of one run."
    )
    timed = [
        [c.method, c.engine, f"{c.ms.median:.1f} ({c.ms.low:.1f} to {c.ms.high:.1f})",
         f"{c.ratio.median:.2f} ({c.ratio.low:.2f} to {c.ratio.high:.2f})", f"{c.making:.1f}",
         "never" if c.paid_after is None else f"{c.paid_after:.0f}"]
        for c in cases
    ]  # fmt: skip
    padded = [[f"{p['padding']:.1%}" if k == "padding" else str(p[k]) for k in p] for p in paddings]
    for head, rows, text in ((HEAD, timed, caption), (PADDING, padded, "Prompts of TextVQA.")):
        table = Table(*head, caption=text)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    write_atomically(args.json, json.dumps(content, indent=1) + "\n")
    return content


if __name__ == "__main__":
    main()
