"""Where the time of choosing tokens goes, part by part, from one run.

    python -m benchmarks.choosing --clock processor                    # the bundled model
    python -m benchmarks.choosing --geometry llava-1.5-7b --dtype bfloat16

"Choosing" is all that VisionDrop does at its stages: scoring, selecting, merging, with the
projections to queries and keys that it needs. "Packing" is what the mechanism does because of a
stage inside the LLM: the view of the picture, the new rows, mask and positions of the next block.
Each part is timed by a clock around the function that does it, whose own cost (about a
microsecond) is in it.

Below stands what the layers after the stages would save at most if they took over the stages'
queries and keys of the visual tokens that stay, and what picking those would cost: norm and both
projections of so many rows, against two gathers and two joins, each with cold caches.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.overhead import POCKET
from benchmarks.reporting import report
from benchmarks.setting import GEOMETRIES, machine, prompt, random_model
from visiondrop import VisionDrop, decoder, merging
from visiondrop.adapters import geometry_of
from visiondrop.adapters.base import Adapter
from visiondrop.methods import visiondrop
from visiondrop.profiling.latency import Stopwatch, quartiles

PARTS = {
    "encoder stage": (visiondrop.VisionDrop, "encoder_stage"),
    "LLM stages": (visiondrop.VisionDrop, "llm_stage"),
    "queries and keys": (Adapter, "attention_inputs"),
    "column sums": (visiondrop, "column_mean"),
    "top tokens": (visiondrop, "top_tokens"),
    "reduce": (visiondrop, "reduce_tokens"),
    "most similar reference": (merging, "assign"),
    "folding": (merging, "fold"),
    "stage with view and rows": (decoder, "run_stage"),
    "all of a stage inside": (decoder.Mechanism, "reduce"),
}
HEAD = ("part", "ms", "quartiles", "of the prefill's rest")


@contextmanager
def watched(clock: Callable[[], float], spent: dict[str, float]) -> Iterator[None]:
    """Each part's seconds are added to `spent` while this is entered."""

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += clock() - began

        return timed

    with ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            own = getattr(owner, attribute)
            stack.enter_context(mock.patch.object(owner, attribute, around(name, own)))
        yield


@torch.inference_mode()
def measure(
    model: Any, tokens: int, text_tokens: int, warmup: int, repeats: int, clock: str
) -> dict[str, Any]:
    """Seconds of each part in each of `repeats` prefills, and of the whole prefill."""
    geometry = geometry_of(model)
    inputs = prompt(model, text_tokens)
    stopwatch = Stopwatch(model.device, clock)
    method = VisionDrop.from_average(
        tokens,
        num_layers=geometry.num_layers,
        num_patches=geometry.num_patches,
        has_cls=geometry.has_cls,
    )
    spent: dict[str, float] = defaultdict(float)
    turns: list[dict[str, float]] = []
    with watched(stopwatch.now, spent), method(model):
        for turn in range(warmup + repeats):
            spent.clear()
            stopwatch.start()
            model(**inputs, use_cache=True, logits_to_keep=1)
            spent["prefill"] = stopwatch.stop()
            if turn >= warmup:
                turns.append(dict(spent))
    return {"turns": turns, "reuse": reuse(model, method, text_tokens, repeats, stopwatch)}


def reuse(
    model: Any, method: VisionDrop, text_tokens: int, repeats: int, stopwatch: Stopwatch
) -> dict[str, float]:
    """Median seconds, all stages: projections that layers could take over, and picking them."""
    text = model.config.text_config
    width, dtype = text.hidden_size, model.dtype
    layers = model.model.language_model.layers
    saved, cost = [], []
    before = sum(method.encoder or (0, 0))
    for index, (dominant, contextual) in method.llm.items():
        layer = layers[index]
        kept = torch.randn(1, dominant, width, dtype=dtype, device=model.device)
        made = torch.randn(1, before, width, dtype=dtype, device=model.device)
        rest = torch.randn(1, text_tokens + contextual, width, dtype=dtype, device=model.device)
        pick = torch.arange(dominant, device=model.device)

        def project(layer: Any = layer, kept: Any = kept) -> None:
            normed = layer.input_layernorm(kept)
            layer.self_attn.q_proj(normed)
            layer.self_attn.k_proj(normed)

        def join(made: Any = made, pick: Any = pick, rest: Any = rest) -> None:
            for _ in range(2):
                torch.cat([made.index_select(1, pick), rest], 1)

        saved.append(median_of(project, repeats, stopwatch))
        cost.append(median_of(join, repeats, stopwatch))
        before = dominant + contextual
    return {"saved": sum(saved), "cost": sum(cost)}


def median_of(call: Callable[[], None], repeats: int, stopwatch: Stopwatch) -> float:
    """Median seconds of a call; the caches are cold before each, as in a prefill."""
    times = []
    flush = torch.empty(1 << 22)
    for _ in range(repeats):
        flush.fill_(0.0)
        stopwatch.start()
        call()
        times.append(stopwatch.stop())
    return statistics.median(times)


def rows_of(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The table's rows; parts of a part are named behind it."""
    turns = measured["turns"]

    def of(*names: str) -> list[float]:
        """First minus the others, turn by turn."""
        return [t.get(names[0], 0.0) - sum(t.get(n, 0.0) for n in names[1:]) for t in turns]

    chosen = [a + b for a, b in zip(of("encoder stage"), of("LLM stages"), strict=True)]
    packing = of("all of a stage inside", "LLM stages")
    both = [a + b for a, b in zip(chosen, packing, strict=True)]
    prefill = of("prefill")
    parts = {
        "choosing": chosen,
        "- encoder stage": of("encoder stage"),
        "- LLM stages": of("LLM stages"),
        "-- queries and keys of LLM stages": of("queries and keys"),
        "-- column sums of LLM stages": of("column sums"),
        "-- top tokens, all stages": of("top tokens"),
        "-- reduce, all stages": of("reduce"),
        "--- most similar reference": of("most similar reference"),
        "--- folding": of("folding"),
        "packing": packing,
        "- view and new rows": of("stage with view and rows", "LLM stages"),
        "- mask and positions of the block": of(
            "all of a stage inside", "stage with view and rows"
        ),
        "choosing and packing": both,
    }
    rows = []
    for part, seconds in parts.items():
        rest = chosen if not part.startswith(("packing", "choosing and")) else both
        shares = [s / (p - r) for s, p, r in zip(seconds, prefill, rest, strict=True)]
        rows.append(
            {
                "part": part,
                "ms": statistics.median(seconds) * 1e3,
                "quartiles": [q * 1e3 for q in quartiles(seconds)],
                "share": statistics.median(shares),
            }
        )
    return rows


def describe(content: dict[str, Any]) -> str:
    """One paragraph that the figures stand with."""
    here, reused = content["machine"], content["reuse"]
    return (
        f"{content['model']}, VisionDrop {content['tokens']}, one picture and "
        f"{content['text_tokens']} text tokens, prefill of {content['prefill_ms']:.1f} ms; "
        f"{here['dtype']}, {here['attention']}, {here['device']}, {here['threads']} thread(s), "
        f"{content['clock']} time; torch {here['torch']}, transformers {here['transformers']}. "
        f"Median and quartiles of {content['repeats']} prefills of one run; the rest is the "
        "prefill without choosing, in the rows with packing without both. Queries and keys of kept "
        "tokens "
        f"taken over by the layers: {reused['saved'] * 1e3:.2f} ms of norm and projections saved "
        f"at most, {reused['cost'] * 1e3:.2f} ms for picking and joining them."
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--geometry", choices=GEOMETRIES, help="random weights (default: pocket-llava)"
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--text-tokens", type=int, default=66)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/choosing.json"))
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    args = parser.parse_args(argv)
    for name in ("repeats", "text_tokens", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed")
    return args


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure on the CPU, print, write."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    if args.geometry:
        model, described = random_model(args.geometry, dtype, "cpu")
    else:
        model = LlavaForConditionalGeneration.from_pretrained(POCKET, dtype=dtype).eval()
        described = POCKET.name
    measured = measure(model, args.tokens, args.text_tokens, args.warmup, args.repeats, args.clock)
    rows = rows_of(measured)
    content = {
        "model": described,
        "tokens": args.tokens,
        "text_tokens": args.text_tokens,
        "repeats": args.repeats,
        "clock": args.clock,
        "machine": machine(model),
        "prefill_ms": statistics.median(t["prefill"] for t in measured["turns"]) * 1e3,
        "reuse": measured["reuse"],
        "rows": rows,
    }
    cells = [
        [
            row["part"],
            f"{row['ms']:.2f}",
            "{:.2f} to {:.2f}".format(*row["quartiles"]),
            f"{row['share']:.1%}",
        ]
        for row in rows
    ]
    report(
        "benchmarks.choosing", argv, HEAD, cells, describe(content), content, args.json,
        args.markdown,
    )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
