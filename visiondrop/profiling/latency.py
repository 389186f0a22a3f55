"""Times of a method beside the unpruned model: to the first token, per token, end to end.

Method and unpruned model run in turns, so that a machine that slows down slows both, and ratios are
taken turn by turn. An accelerator is waited for before and after each interval. Time to the first
token is `generate` with one new token: vision tower, choosing, prefill, and the token. Entering and
leaving the method's block is in every interval, as an evaluation does that for each batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from visiondrop.engine import Engine
from visiondrop.methods import Full
from visiondrop.profiling.counting import around_stages
from visiondrop.profiling.energy import energy_meter
from visiondrop.profiling.memory import peak_bytes, reset_peak
from visiondrop.reducer import Reducer

__all__ = ["Spread", "Stopwatch", "Times", "measure", "quartiles", "spread"]


class Stopwatch:
    """Seconds between `start` and `stop`, waiting for an accelerator to finish at both."""

    def __init__(self, device: torch.device, clock: str = "wall"):
        self.now = time.perf_counter if clock == "wall" else time.process_time
        self.wait: Callable[[], Any] = (
            torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
        )

    def start(self) -> None:
        """Wait, and begin."""
        self.wait()
        self.began = self.now()

    def stop(self) -> float:
        """Wait, and give the seconds since `start`."""
        self.wait()
        return self.now() - self.began


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `count` values."""

    median: float
    low: float
    high: float
    count: int


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; with one value that value twice."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def spread(values: Sequence[float], scale: float = 1.0) -> Spread:
    """Of `scale` x the values."""
    scaled = [scale * value for value in values]
    return Spread(statistics.median(scaled), *quartiles(scaled), len(scaled))


@dataclass
class Times:
    """What was measured of a method; milliseconds, bytes, joules.

    Attributes:
        ttft_ms: time to the first token; decode_ms: of each further one, the slope between the
            fewest and the most new tokens, turn by turn; None where only one number was asked for.
        end_to_end_ms: by number of new tokens; faster: by what the unpruned model's time in the
            same turn is a multiple of it.
        selection_ms: all that the method does at its stages, in prefills of its own; of_rest: over
            what is left of them. None for methods without a stage.
        peak_bytes: of a generation with the most new tokens; peak_rise: above what was held before
            it (weights, and on a CPU the program).
        energy_j: of such a generation of the whole batch; None where the driver does not tell.
        recordings, recording_s: what the engine recorded for method and unpruned model together,
            and how long that took, before anything was timed; None without an engine.
    """

    ttft_ms: Spread
    decode_ms: Spread | None
    end_to_end_ms: dict[str, Spread]
    faster: dict[str, Spread]
    selection_ms: Spread | None
    of_rest: Spread | None
    peak_bytes: int | None
    peak_rise: int | None
    energy_j: float | None
    recordings: int | None = None
    recording_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@torch.inference_mode()
def measure(
    model: Any,
    inputs: dict[str, Any],
    method: Reducer | None,
    *,
    new_tokens: Sequence[int] = (1, 16, 128),
    warmup: int = 3,
    repeats: int = 10,
    clock: str = "wall",
    engine: Engine | None = None,
    **options: Any,
) -> Times:
    """Measure a method and, in turns with it, the unpruned model (`Full`).

    Args:
        inputs: of the model's `generate`.
        method: None for the stock model, without the mechanism.
        new_tokens: numbers of new tokens; 1 is added, for the time to the first.
        warmup: turns that are thrown away; repeats: turns that count.
        clock: "wall", or "processor" for the processor time of all threads (CPU).
        engine: of both, method and unpruned model, except for the stock model; recordings are made
            before the first turn.
        options: of `method(model, ...)`: `keys`, `questions`.
    """
    if engine is not None:
        options["engine"] = engine
        for acting in (Full(), method):
            if acting is not None:
                with acting(model, **options):
                    generate(model, inputs, max(new_tokens))
    counts = sorted({1, *new_tokens})
    stopwatch = Stopwatch(model.device, clock)

    def apply(acting: Reducer | None) -> Any:
        return nullcontext() if acting is None else acting(model, **options)

    def timed(acting: Reducer | None, count: int) -> float:
        stopwatch.start()
        with apply(acting):
            generate(model, inputs, count)
        return stopwatch.stop()

    own: dict[int, list[float]] = {count: [] for count in counts}
    full: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(warmup + repeats):
        for count in counts:
            # Who comes first alternates: the second one finds warm caches.
            order = ((full, Full()), (own, method))
            for times, acting in order if turn % 2 else order[::-1]:
                seconds = timed(acting, count)
                if turn >= warmup:
                    times[count].append(seconds)
    steps = counts[-1] - counts[0]
    slopes = [(b - a) / steps for a, b in zip(own[counts[0]], own[counts[-1]]) if steps]
    chosen = None if method is None else _selection(model, inputs, method, warmup, repeats,
                                                    clock, options)  # fmt: skip
    with apply(method):
        held = reset_peak(model.device)
        generate(model, inputs, counts[-1])
        peak = peak_bytes(model.device)
        joules = _energy(model, inputs, counts[-1], repeats)
    return Times(
        ttft_ms=spread(own[1], 1e3),
        decode_ms=spread(slopes, 1e3) if slopes else None,
        end_to_end_ms={str(count): spread(own[count], 1e3) for count in counts},
        faster={
            str(count): spread([f / o for f, o in zip(full[count], own[count], strict=True)])
            for count in counts
        },
        selection_ms=None if chosen is None else chosen[0],
        of_rest=None if chosen is None else chosen[1],
        peak_bytes=peak,
        peak_rise=None if peak is None or held is None else peak - held,
        energy_j=joules,
        recordings=None if engine is None else engine.recorded,
        recording_s=None if engine is None else engine.record_seconds,
    )


def generate(model: Any, inputs: dict[str, Any], count: int, **more: Any) -> Any:
    """Exactly `count` new tokens, greedily; never a placeholder, which would ask for a picture.

    Args:
        more: of the model's `generate`.
    """
    return model.generate(
        **inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False,
        suppress_tokens=[model.config.image_token_id], **more,
    )  # fmt: skip


def _selection(
    model: Any, inputs: dict[str, Any], method: Reducer, warmup: int, repeats: int, clock: str,
    options: dict[str, Any],
) -> tuple[Spread, Spread] | None:  # fmt: skip
    """(time at the stages in ms, its share of the rest of the prefill) of prefills of their own:
    waiting for a device at each stage would slow those that are timed whole.
    """
    inner, outer = (Stopwatch(model.device, clock) for _ in range(2))
    spent: list[float] = []
    watched = around_stages(method, inner.start, lambda _: spent.append(inner.stop()))
    chosen, shares = [], []
    with watched(model, **options):
        for turn in range(warmup + repeats):
            spent.clear()
            outer.start()
            model(**inputs, use_cache=True, logits_to_keep=1)
            whole = outer.stop()
            if turn >= warmup and spent:
                chosen.append(sum(spent))
                shares.append(sum(spent) / (whole - sum(spent)))
    return (spread(chosen, 1e3), spread(shares)) if chosen else None


def _energy(model: Any, inputs: dict[str, Any], count: int, repeats: int) -> float | None:
    meter = energy_meter(model.device)
    if meter is None:
        return None
    torch.cuda.synchronize()
    before = meter()
    for _ in range(repeats):
        generate(model, inputs, count)
    torch.cuda.synchronize()
    return (meter() - before) / repeats
