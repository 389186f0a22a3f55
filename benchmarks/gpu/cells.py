"""What is measured on a GPU: one function a cell, each gives plain numbers for JSON.

| cell | variants | how |
|---|---|---|
| first_token | stock; full and methods, plain and with graphs | in turns |
| prefill, compiled | full and methods, plain and with graphs | in turns |
| decode | full, visiondrop, random, plain and with graphs | each in a block of its own |
| memory | full, visiondrop, random, plain and with graphs | one after the other, no times |
| choosing | visiondrop, plain and with graphs | its own share, beside no other method |

Ratios are taken turn by turn over the fastest unpruned variant. A variant with graphs that did not
run from recordings makes its cell fail.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.turns import (
    DeviceClock,
    Turns,
    Variant,
    against_full,
    prove,
    recording_cost,
    take_turns,
)
from visiondrop import Reducer
from visiondrop.adapters import geometry_of
from visiondrop.engine import Engine
from visiondrop.methods import METHODS, Full
from visiondrop.profiling.cost import as_run
from visiondrop.profiling.counting import around_stages, count_prefill
from visiondrop.profiling.inputs import Setting, setting_of
from visiondrop.profiling.latency import generate, spread
from visiondrop.profiling.memory import peak_bytes, reset_peak
from visiondrop.profiling.presets import random_model

__all__ = ["Bench", "free"]


@dataclass
class Bench:
    """One model and the budget that it is measured at.

    Attributes:
        graphs: the engine's kind, "cuda"; "replay" for a dry run without a GPU.
        repeats, warmup: turns that count, and turns before them.
        new_tokens: of the decoding cell, the prefill's included.
        smaller: batches are divided by it, for a dry run.
    """

    config: Any
    tokens: int
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    graphs: Any = "cuda"
    repeats: int = 10
    warmup: int = 3
    new_tokens: int = 128
    smaller: int = 1

    @functools.cached_property
    def model(self) -> Any:
        """With random weights, made when it is first needed."""
        return random_model(self.config, self.dtype, self.device)

    @functools.cached_property
    def setting(self) -> Setting:
        """One picture within the paper's prompt."""
        return setting_of(self.config)

    def method(self, name: str) -> Reducer:
        """At the budget."""
        geometry = geometry_of(self.config)
        if name == "full":
            return Full()
        return METHODS[name].from_average(
            self.tokens, num_layers=geometry.num_layers, num_patches=geometry.num_patches,
            has_cls=geometry.has_cls,
        )  # fmt: skip

    def variants(self, names: Sequence[str], compile: bool = False) -> list[Variant]:
        """Each method plain and recorded; "stock", the model with nothing of ours, alone. A dry
        run leaves the methods beside VisionDrop out.
        """
        out = []
        for name in names:
            if self.smaller > 1 and name not in ("stock", "full", "visiondrop"):
                continue
            if name == "stock":
                out.append(Variant(name, None))
                continue
            method = self.method(name)
            out.append(Variant(name, method))
            # The stand-in of a dry run cannot record what was compiled.
            engine = Engine(self.graphs, compile=compile and self.graphs == "cuda")
            out.append(Variant(f"{name}+{'compiled ' if compile else ''}graphs", method, engine))
        return out

    def turns(self, variants: Sequence[Variant], batch: int, run: Any) -> Turns:
        """Of prefills, proved to be recorded ones."""
        done = take_turns(
            self.model, variants, run, options=self.setting.options(batch),
            warmup=self.warmup, repeats=self.repeats,
        )  # fmt: skip
        prove(variants, done.paths, ("prefill",))
        return done

    # ------------------------------------------------------------------ cells

    @torch.inference_mode()
    def first_token(self, batch: int = 1) -> dict[str, Any]:
        """Time to the first token: tower, choosing, prefill, the token."""
        others = ("random", "uniform", "visionzip", "fastv")
        variants = self.variants(("stock", "full", "visiondrop", *others))
        inputs = self.setting.inputs(self.model, batch)
        done = self.turns(variants, batch, lambda _: generate(self.model, inputs, 1))
        return {"batch": batch, **against_full(done), "recording": recording_cost(variants)}

    @torch.inference_mode()
    def compiled(self) -> dict[str, Any]:
        """The same of layers that torch.compile has compiled before they are recorded."""
        variants = self.variants(("full", "visiondrop"), compile=True)
        inputs = self.setting.inputs(self.model, 1)
        done = self.turns(variants, 1, lambda _: generate(self.model, inputs, 1))
        return {"batch": 1, **against_full(done), "recording": recording_cost(variants)}

    @torch.inference_mode()
    def prefill(self, batch: int = 8) -> dict[str, Any]:
        """Tower and prefill of a batch, beside what FLOPs allow."""
        batch = max(1, batch // self.smaller)
        variants = self.variants(("full", "visiondrop", "random", "uniform"))
        inputs = self.setting.inputs(self.model, batch)

        def forward(_: Any) -> None:
            self.model(**inputs, use_cache=True, logits_to_keep=1)

        found = against_full(self.turns(variants, batch, forward))
        flops = {v.label: self.flops(v.method) for v in variants if v.engine is None}
        for label, figures in found["faster"].items():
            bound = flops["full"] / flops[label.partition("+")[0]]
            figures["flops_bound"], figures["of_bound"] = bound, figures["median"] / bound
        return {"batch": batch, "tflops": {k: f / 1e12 for k, f in flops.items()}, **found}

    def flops(self, method: Reducer | None) -> float:
        """Of a prefill of one prompt, by the formula on what a run recorded of itself."""
        inputs, options = self.setting.inputs(self.model), self.setting.options()
        return float(
            as_run(self.setting, count_prefill(self.model, inputs, method, **options)).total
        )

    @torch.inference_mode()
    def choosing(self) -> dict[str, Any]:
        """Share of scoring, selection and merging over the rest of a prefill, without and with
        graphs, by the device's own clock: nothing waits between the stages.
        """
        out: dict[str, Any] = {}
        inputs, options = self.setting.inputs(self.model), self.setting.options()
        clock = DeviceClock(torch.device(self.device))
        for variant in self.variants(("visiondrop",)):
            marks: list[Any] = []

            def ended(began: Any, marks: list[Any] = marks) -> None:
                marks.append((began, clock.mark()))

            assert variant.method is not None
            watched = around_stages(variant.method, clock.mark, ended)
            shares, spent = [], []
            with watched(self.model, engine=variant.engine, **options) as trace:
                for turn in range(self.warmup + self.repeats):
                    marks.clear()
                    began = clock.mark()
                    self.model(**inputs, use_cache=True, logits_to_keep=1)
                    whole = clock.between(began, clock.mark())
                    own = sum(clock.between(*pair) for pair in marks)
                    if turn >= self.warmup:
                        spent.append(own)
                        shares.append(own / (whole - own))
            paths = dict(trace.paths)
            prove([variant], {variant.label: paths}, ("prefill",))
            out[variant.label] = {
                "of_rest": vars(spread(shares)), "ms": vars(spread(spent, 1e3)), "paths": paths
            }  # fmt: skip
        return out

    @torch.inference_mode()
    def decode(self, batch: int = 16) -> dict[str, Any]:
        """Tokens per second after the first one, over the whole batch.

        The prefill is made without an engine, before the clock starts; in the interval the engine
        takes the KV cache over and all further tokens are generated. Turns of one variant stand
        together, and its engine is emptied behind them: a full cache is 25 GB here (batch 16,
        2,993 tokens, 7B), and its engine holds one more.
        """
        batch, few = max(1, batch // self.smaller), min(3, self.repeats)
        inputs, more = self.setting.inputs(self.model, batch), self.new_tokens - 1
        done, costs = Turns(), {}

        def prepare(variant: Variant) -> Any:
            return self.begun(variant, inputs, batch)

        for variant in self.variants(("full", "visiondrop", "random")):
            one = take_turns(
                self.model, [variant], lambda begun: self.go_on(begun, more), options={},
                warmup=1, repeats=few, prepare=prepare,
            )  # fmt: skip
            prove([variant], one.paths, ("decode",))
            done.seconds |= one.seconds
            done.paths |= one.paths
            costs |= recording_cost([variant])
            free(variant)
        found = against_full(done)
        rate = {k: batch * more / (ms["median"] / 1e3) for k, ms in found["ms"].items()}
        return {"batch": batch, "new_tokens": more, "tokens_per_second": rate,
                "order": "blocks", **found, "recording": costs}  # fmt: skip

    def begun(self, variant: Variant, inputs: dict[str, Any], batch: int) -> Any:
        """Sequences with one new token, and their KV cache, made without an engine."""
        plain = Variant(variant.label, variant.method)
        with plain.applied(self.model, self.setting.options(batch)):
            return generate(self.model, inputs, 1, return_dict_in_generate=True)

    def go_on(self, begun: Any, more: int) -> Any:
        """The sequences with so many tokens more, from the cache."""
        ids = begun.sequences
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return generate(self.model, given, more, past_key_values=begun.past_key_values)

    @torch.inference_mode()
    def memory(self, batch: int = 8) -> dict[str, Any]:
        """Peak above the weights of a prefill and one step: activations, KV cache and, with graphs,
        what the engine keeps from sample to sample, each over full of the same kind.
        """
        batch = max(1, batch // self.smaller)
        inputs, options = self.setting.inputs(self.model, batch), self.setting.options(batch)
        rise: dict[str, float] = {}
        for variant in self.variants(("full", "visiondrop", "random")):
            # Libraries take their workspaces in the first run; they are no method's.
            with Variant("", variant.method).applied(self.model, options):
                generate(self.model, inputs, 2)
            held = reset_peak(self.model.device)
            with variant.applied(self.model, options):
                generate(self.model, inputs, 2)
            reset_peak(self.model.device)
            with variant.applied(self.model, options) as trace:
                generate(self.model, inputs, 2)
            peak = peak_bytes(self.model.device)
            prove([variant], {variant.label: dict(trace.paths)}, ("prefill", "decode"))
            if held is not None and peak is not None:
                rise[variant.label] = float(peak + graph_bytes(self.model.device) - held)
            free(variant)
        full = {"": rise.get("full", 0.0), "graphs": rise.get("full+graphs", 0.0)}
        ratios = {
            label: own / full[label.partition("+")[2]]
            for label, own in rise.items()
            if full[label.partition("+")[2]] > 0
        }
        return {"batch": batch, "bytes": rise, "of_full": ratios}


def graph_bytes(device: torch.device) -> int:
    """Memory of CUDA graphs that PyTorch does not count as allocated: what a capture allocated and
    freed again stays theirs, and replays write to it.
    """
    if device.type != "cuda":
        return 0
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)
    )


def free(variant: Variant | None = None) -> None:
    """Let go of a variant's recordings, and of memory that nothing uses."""
    if variant is not None and variant.engine is not None:
        variant.engine.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
