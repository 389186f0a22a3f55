"""Memory that the analysis needs beside the weights, on the geometry of a real model.

    python -m benchmarks.analysis_memory --layers 2        # a first look, any machine
    python -m benchmarks.analysis_memory                   # all 32 layers of 7B: 14 GB of weights

A picture of 54 x 54 = 2,916 patches (LLaVA-NeXT has 2,880) goes through a model of random weights,
first alone, then looked at by each part of the analysis. The peak of the process's resident memory
is the kernel's own figure (Linux), set back before each run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
)

from analysis.attention_maps import reader
from analysis.probe import Probe
from analysis.redundancy import SCORES, LayerReader
from analysis.scores import ENCODER_SCORES, LLM_SCORES
from analysis.semantic_walk import Directions, read_scores, read_states
from benchmarks.setting import GEOMETRIES, machine, prompt
from llava.eval.errors import EvalError, run_main
from llava.eval.files import write_atomically
from visiondrop import Full
from visiondrop.profiling.memory import peak_bytes, reset_peak
from visiondrop.profiling.presets import random_model
from visiondrop.reducer import Reducer

GIB = 2**30
PATCH = 14
CPU = torch.device("cpu")


def quick_model(geometry: str, layers: int | None, side: int) -> Any:
    """A LLaVA of a geometry in bfloat16 with random weights, made in seconds."""
    vision_layers, vision_width, depth, width, mlp, heads, vocabulary = GEOMETRIES[geometry]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            num_hidden_layers=vision_layers, hidden_size=vision_width,
            intermediate_size=4 * vision_width, num_attention_heads=max(1, vision_width // 64),
            image_size=side * PATCH, patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            num_hidden_layers=layers or depth, hidden_size=width, intermediate_size=mlp,
            num_attention_heads=heads, vocab_size=vocabulary, max_position_embeddings=4096,
        ),
        image_token_index=vocabulary - 1,
    )  # fmt: skip
    return random_model(config, torch.bfloat16)


def scores_at(layers: tuple[int, ...]) -> Probe:
    """Every score that the analysis reads."""
    return Probe(
        layers,
        lambda view: {name: score(view) for name, score in LLM_SCORES.items()},
        lambda view: {name: score(view) for name, score in ENCODER_SCORES.items()},
    )


def text_and_picture(layers: tuple[int, ...]) -> Probe:
    """What `semantic_misalignment` reads."""
    project = Directions(0)
    return Probe(layers, lambda view: read_scores(view) | read_states(view, project))


def looks(depth: int) -> Iterator[tuple[str, Callable[[], Reducer]]]:
    """What is run: a name, and what makes the method or probe."""
    yield "the model alone", Full
    yield "all scores, every layer", lambda: scores_at(tuple(range(depth)))
    layers = tuple(range(depth))
    yield "text and picture, every layer", lambda: text_and_picture(layers)
    yield "attention maps, every layer", lambda: Probe(layers, reader())
    left = LayerReader({}, {"one": sys.maxsize}, SCORES, 64)
    yield "redundancy, every layer", lambda: Probe(layers, left)


def measure(model: nn.Module, text_tokens: int) -> Iterator[dict[str, Any]]:
    """One row a look."""
    inputs = prompt(model, text_tokens)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    depth = len(model.model.language_model.layers)  # type: ignore[union-attr,arg-type]
    for name, make in looks(depth):
        method = make()
        reset_peak(CPU)
        start = time.perf_counter()
        with torch.inference_mode(), method(model, keys=["one"]):
            model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        yield {
            "what": name,
            "peak_gib": peak_bytes(CPU) / GIB,
            "beside_weights_gib": (peak_bytes(CPU) - weights) / GIB,
            "seconds": time.perf_counter() - start,
        }


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llava-1.5-7b")
    parser.add_argument("--layers", type=int, help="decoder layers (the geometry's)")
    parser.add_argument("--side", type=int, default=54, help="patches along a side")
    parser.add_argument("--text-tokens", type=int, default=113)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args(argv)
    if not Path("/proc/self/clear_refs").exists():
        raise EvalError("the peak of memory is read from /proc, which only Linux has")
    model = quick_model(args.geometry, args.layers, args.side)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / GIB
    rows = []
    table = Table(title=f"{args.geometry}, {args.side**2} patches, bfloat16: {weights:.1f} GiB")
    for head in ("what", "peak, GiB", "beside the weights", "seconds"):
        table.add_column(head, justify="left" if head == "what" else "right")
    for row in measure(model, args.text_tokens):
        rows.append(row)
        print(f"{row['what']}: {row['peak_gib']:.2f} GiB", file=sys.stderr)
        figures = [f"{row[name]:.2f}" for name in ("peak_gib", "beside_weights_gib")]
        table.add_row(row["what"], *figures, f"{row['seconds']:.0f}")
    Console().print(table)
    if args.json:
        facts = {"geometry": args.geometry, "layers": args.layers, "patches": args.side**2}
        content = {**facts, "weights_gib": weights, **machine(model), "rows": rows}
        write_atomically(args.json, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
