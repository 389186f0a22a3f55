"""What is measured on a GPU: one function a cell, each gives plain numbers for JSON.

Within a cell all variants take turns, the order turned by one each time; the device is waited for
at both ends of every interval; ratios are taken turn by turn, over the faster of the unpruned
model's two variants (layers launched one by one, and as CUDA graphs).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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

__all__ = ["Bench", "Variant"]


@dataclass(frozen=True)
class Variant:
    """A method, with an engine or without."""

    label: str
    method: Reducer
    engine: Engine | None = None


@dataclass
class Bench:
    """One model and the budget that it is measured at.

    Attributes:
        graphs: the engine's kind, "cuda"; "replay" for a dry run without a GPU.
        repeats, warmup: turns that count, and turns before them.
        new_tokens: of the decoding cell.
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
        """Each method plain and recorded; `full` first."""
        out = []
        for name in names:
            method = self.method(name)
            out.append(Variant(name, method))
            # The stand-in of a dry run cannot record what was compiled.
            engine = Engine(self.graphs, compile=compile and self.graphs == "cuda")
            out.append(Variant(f"{name}+{'compiled ' if compile else ''}graphs", method, engine))
        return out

    # ------------------------------------------------------------------ cells

    @torch.inference_mode()
    def first_token(self, batch: int = 1, names: Sequence[str] = ()) -> dict[str, Any]:
        """Time to the first token: tower, choosing, prefill, the token."""
        everyone = ("full", "visiondrop", "random", "uniform", "visionzip", "fastv")
        names = names or (everyone if self.smaller == 1 else everyone[:3])
        variants, inputs = self.variants(names), self.setting.inputs(self.model, batch)
        seconds = self.turns(variants, batch, lambda v: generate(self.model, inputs, 1))
        return {"batch": batch, **against_full(seconds), **recording_cost(variants)}

    @torch.inference_mode()
    def compiled(self) -> dict[str, Any]:
        """The same of layers that torch.compile has compiled before they are recorded."""
        variants = self.variants(("full", "visiondrop"), compile=True)
        inputs = self.setting.inputs(self.model, 1)
        seconds = self.turns(variants, 1, lambda v: generate(self.model, inputs, 1))
        return {"batch": 1, **against_full(seconds), **recording_cost(variants)}

    @torch.inference_mode()
    def prefill(self, batch: int = 8) -> dict[str, Any]:
        """Tower and prefill of a batch, beside what FLOPs allow."""
        batch = max(1, batch // self.smaller)
        variants = self.variants(("full", "visiondrop", "random", "uniform"))
        inputs = self.setting.inputs(self.model, batch)

        def forward(_: Variant) -> None:
            self.model(**inputs, use_cache=True, logits_to_keep=1)

        found = against_full(self.turns(variants, batch, forward))
        flops = {v.label: self.flops(v.method) for v in variants if v.engine is None}
        for label, figures in found["faster"].items():
            bound = flops["full"] / flops[label.partition("+")[0]]
            figures["flops_bound"], figures["of_bound"] = bound, figures["median"] / bound
        return {"batch": batch, "tflops": {k: f / 1e12 for k, f in flops.items()}, **found}

    def flops(self, method: Reducer) -> float:
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

            watched = around_stages(variant.method, clock.mark, ended)
            shares, spent = [], []
            with watched(self.model, engine=variant.engine, **options):
                for turn in range(self.warmup + self.repeats):
                    marks.clear()
                    began = clock.mark()
                    self.model(**inputs, use_cache=True, logits_to_keep=1)
                    whole = clock.between(began, clock.mark())
                    own = sum(clock.between(*pair) for pair in marks)
                    if turn >= self.warmup:
                        spent.append(own)
                        shares.append(own / (whole - own))
            out[variant.label] = {"of_rest": vars(spread(shares)), "ms": vars(spread(spent, 1e3))}
        return out

    @torch.inference_mode()
    def decode(self, batch: int = 16) -> dict[str, Any]:
        """Tokens per second after the first one, over the whole batch."""
        batch = max(1, batch // self.smaller)
        variants = self.variants(("full", "visiondrop", "random"))
        inputs, last = self.setting.inputs(self.model, batch), self.new_tokens
        few = dict(warmup=1, repeats=min(3, self.repeats))
        first = self.turns(variants, batch, lambda v: generate(self.model, inputs, 1), **few)
        whole = self.turns(variants, batch, lambda v: generate(self.model, inputs, last), **few)
        steps = {
            label: [w - f for w, f in zip(whole[label], first[label], strict=True)]
            for label in whole
        }
        found = against_full(steps)
        rate = {k: batch * (last - 1) / (s["median"] / 1e3) for k, s in found["ms"].items()}
        return {"batch": batch, "new_tokens": last, "tokens_per_second": rate, **found}

    @torch.inference_mode()
    def memory(self, batch: int = 8) -> dict[str, Any]:
        """Peak of activations and KV cache above the weights, a prefill and one step."""
        batch = max(1, batch // self.smaller)
        inputs, options = self.setting.inputs(self.model, batch), self.setting.options(batch)
        rise: dict[str, float] = {}
        for name in ("full", "visiondrop", "random"):
            with self.method(name)(self.model, **options):
                generate(self.model, inputs, 2)
                held = reset_peak(self.model.device)
                generate(self.model, inputs, 2)
                peak = peak_bytes(self.model.device)
            rise[name] = -1.0 if held is None or peak is None else float(peak - held)
        return {
            "batch": batch,
            "bytes": rise,
            "of_full": {k: b / rise["full"] for k, b in rise.items()},
        }

    # ------------------------------------------------------------------ turns

    def turns(
        self,
        variants: list[Variant],
        batch: int,
        run: Callable[[Variant], Any],
        warmup: int | None = None,
        repeats: int | None = None,
    ) -> dict[str, list[float]]:
        """Seconds of every variant in every turn that counts; numbers of turns as the bench has
        them by default.
        """
        warmup = self.warmup if warmup is None else warmup
        repeats = self.repeats if repeats is None else repeats
        options = self.setting.options(batch)
        seconds: dict[str, list[float]] = {variant.label: [] for variant in variants}
        for turn in range(warmup + repeats):
            at = turn % len(variants)
            for variant in variants[at:] + variants[:at]:
                with variant.method(self.model, engine=variant.engine, **options):
                    wait(self.device)
                    began = time.perf_counter()
                    run(variant)
                    wait(self.device)
                    if turn >= warmup:
                        seconds[variant.label].append(time.perf_counter() - began)
        return seconds


def wait(device: str) -> None:
    """Until the device is idle."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def against_full(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Milliseconds of each variant, and how many times faster than the faster `full` it is."""
    ms = {label: vars(spread(times, 1e3)) for label, times in seconds.items()}
    full = min((label for label in ms if label.startswith("full")), key=lambda k: ms[k]["median"])
    faster = {
        label: vars(spread([f / own for f, own in zip(seconds[full], times, strict=True)]))
        for label, times in seconds.items()
    }
    return {"ms": ms, "yardstick": full, "faster": faster}


def recording_cost(variants: list[Variant]) -> dict[str, Any]:
    """What making the recordings took; over the time saved a sample it says when that is earned."""
    cost = {
        v.label: {"recordings": v.engine.recorded, "seconds": v.engine.record_seconds}
        for v in variants
        if v.engine is not None
    }
    return {"recording": cost}


class DeviceClock:
    """Marks on the device's own timeline (CUDA events); on a CPU the host's clock."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"

    def mark(self) -> Any:
        """Now, once the work before it is done."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Seconds; waits for `last`."""
        if not self.cuda:
            return float(last - first)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3
