"""How one thing is timed with several methods: in turns, with proof of which way was taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from visiondrop import Reducer
from visiondrop.engine import Engine
from visiondrop.profiling.latency import spread

__all__ = [
    "DeviceClock", "NotRecorded", "Turns", "Variant", "against_full", "prove", "recording_cost",
    "take_turns",
]  # fmt: skip

UNPRUNED = ("stock", "full")
"""Methods that drop nothing; the fastest of their variants is what others are compared with."""


class NotRecorded(RuntimeError):
    """A variant with an engine did not run from recordings, so its times are not what they say."""


@dataclass(frozen=True)
class Variant:
    """A method, with an engine or without; None for the model with nothing of ours."""

    label: str
    method: Reducer | None
    engine: Engine | None = None

    def applied(self, model: Any, options: dict[str, Any]) -> Any:
        """The context in which the model runs so; gives the trace, None for the stock model."""
        if self.method is None:
            return nullcontext()
        return self.method(model, engine=self.engine, **options)


@dataclass
class Turns:
    """By label: seconds of the turns that count, and `trace.paths` of the last one."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    paths: dict[str, dict[str, int]] = field(default_factory=dict)


def take_turns(
    model: Any,
    variants: Sequence[Variant],
    run: Callable[[Any], Any],
    *,
    options: dict[str, Any],
    warmup: int,
    repeats: int,
    prepare: Callable[[Variant], Any] = lambda _: None,
) -> Turns:
    """Time `run` in each variant, in turns whose order is turned by one each time.

    The device is waited for at both ends of an interval. Entering and leaving the method is in it:
    an evaluation does that for every batch.

    Args:
        run: gets what `prepare` gave.
        options: of `method(model, ...)`: `keys`, `questions`.
        warmup: turns that are thrown away; repeats: turns that count.
        prepare: called before each interval, outside of it.
    """
    out = Turns({variant.label: [] for variant in variants})
    for turn in range(warmup + repeats):
        at = turn % len(variants)
        for variant in [*variants[at:], *variants[:at]]:
            given = prepare(variant)
            wait(model.device)
            began = time.perf_counter()
            with variant.applied(model, options) as trace:
                run(given)
            wait(model.device)
            seconds = time.perf_counter() - began
            given = None  # a KV cache, perhaps: not beside the next one
            if turn >= warmup:
                out.seconds[variant.label].append(seconds)
            out.paths[variant.label] = {} if trace is None else dict(trace.paths)
    return out


def prove(
    variants: Sequence[Variant], paths: dict[str, dict[str, int]], steps: Sequence[str]
) -> None:
    """Raise `NotRecorded` where a variant with an engine lacks "STEP:graph" for one of `steps`
    ("prefill", "decode"), or where any of the two ran layer by layer.
    """
    for variant in variants:
        if variant.engine is None:
            continue
        taken = paths[variant.label]
        lacking = [f"no {step}:graph" for step in steps if not taken.get(f"{step}:graph")]
        plain = [
            f"{way} {taken[way]} times" for way in ("prefill:plain", "decode:plain") if
            taken.get(way)
        ]  # fmt: skip
        if lacking or plain:
            raise NotRecorded(
                f"{variant.label}: {', '.join(lacking + plain)} in the last turn: these would not "
                "be figures of recordings"
            )


def wait(device: torch.device) -> None:
    """Until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def against_full(turns: Turns) -> dict[str, Any]:
    """Milliseconds of each variant, how many times faster than the fastest unpruned variant it is
    turn by turn, and the ways taken.
    """
    ms = {label: vars(spread(times, 1e3)) for label, times in turns.seconds.items()}
    unpruned = [label for label in ms if label.partition("+")[0] in UNPRUNED]
    full = min(unpruned, key=lambda label: ms[label]["median"])
    yardstick = turns.seconds[full]
    faster = {
        label: vars(spread([f / own for f, own in zip(yardstick, times, strict=True)]))
        for label, times in turns.seconds.items()
    }
    return {"ms": ms, "yardstick": full, "faster": faster, "paths": turns.paths}


def recording_cost(variants: Sequence[Variant]) -> dict[str, Any]:
    """What making the recordings took; over the time saved a sample it says when that is earned."""
    return {
        variant.label: {
            "recordings": variant.engine.recorded, "seconds": variant.engine.record_seconds
        }
        for variant in variants
        if variant.engine is not None
    }  # fmt: skip


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
