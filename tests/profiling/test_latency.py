"""Times on a clock that the tests turn; memory and energy that are known. Nothing is timed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from visiondrop import Full
from visiondrop.profiling import energy, latency, memory
from visiondrop.profiling.latency import Stopwatch, measure, spread


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds, self.pace = 0.0, 1.0

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds * self.pace


class Model:
    """Takes 8 s of prefill and 2 s a token, under `Method` 2 s and 1 s."""

    device = torch.device("cpu")

    def __init__(self, clock: Clock):
        self.clock, self.method, self.log = clock, None, []

    def generate(self, max_new_tokens: int, min_new_tokens: int, **kwargs: Any) -> None:
        assert max_new_tokens == min_new_tokens and kwargs["suppress_tokens"] == [99]
        assert kwargs["do_sample"] is False and kwargs["input_ids"] == "ids"
        fast = isinstance(self.method, Method)
        self.log.append((fast, max_new_tokens))
        prefill, step = (2.0, 1.0) if fast else (8.0, 2.0)
        self.clock.pass_by(prefill + step * (max_new_tokens - 1))
        if len(self.log) == 12:
            self.clock.pace = 10.0  # before the third turn that counts

    def __call__(self, **kwargs: Any) -> None:
        assert kwargs["logits_to_keep"] == 1
        self.clock.pass_by(4.0)
        for stage in ("encoder_stage", "llm_stage", "llm_stage"):
            getattr(self.method, stage)(None)

    class config:
        image_token_id = 99


class Method(Full):
    """Chooses for half a second at each stage."""

    clock: Clock

    def encoder_stage(self, view: Any) -> None:
        self.clock.pass_by(0.5)

    llm_stage = encoder_stage  # type: ignore[assignment]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    clock = Clock()
    Method.clock = clock
    made = Model(clock)

    @contextmanager
    def apply(self: Any, model: Model, **options: Any) -> Any:
        assert options == {"keys": ["a"]}
        model.method = self
        yield
        model.method = None

    monkeypatch.setattr(Full, "__call__", apply)
    monkeypatch.setattr(latency.time, "perf_counter", clock)
    return made


def test_figures_are_those_of_the_clock(model: Model) -> None:
    times = measure(
        model, {"input_ids": "ids"}, Method(), new_tokens=[5], warmup=1, repeats=3, keys=["a"]
    )
    # The machine gets ten times slower before the third turn that counts: ratios stay.
    assert times.faster["1"].median == 4.0
    assert times.faster["5"] == latency.Spread(16 / 6, 16 / 6, 16 / 6, 3)
    assert times.ttft_ms == times.end_to_end_ms["1"]
    assert times.ttft_ms == latency.Spread(2000.0, 2000.0, 11000.0, 3)
    assert times.decode_ms is not None and times.decode_ms.median == 1000.0
    assert times.selection_ms is not None and times.of_rest is not None
    assert times.selection_ms.median == pytest.approx(1.5 * 10 * 1e3)
    assert times.of_rest.median == pytest.approx(1.5 / 4)
    assert times.energy_j is None


def test_entering_a_method_is_in_its_times(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def apply(self: Any, model: Model, **options: Any) -> Any:
        model.clock.pass_by(0.5)
        model.method = self
        yield
        model.method = None
        model.clock.pass_by(0.25)

    monkeypatch.setattr(Full, "__call__", apply)
    times = measure(model, {"input_ids": "ids"}, Method(), new_tokens=[1], warmup=0, repeats=1)
    assert times.ttft_ms.median == 2750.0 and times.faster["1"].median == 8.75 / 2.75


def test_turns_alternate(model: Model) -> None:
    measure(model, {"input_ids": "ids"}, Method(), new_tokens=[1], warmup=0, repeats=4, keys=["a"])
    assert [fast for fast, _ in model.log[:8]] == [True, False, False, True] * 2
    model.log.clear()
    measure(model, {"input_ids": "ids"}, None, new_tokens=[1], warmup=0, repeats=1, keys=["a"])
    assert [fast for fast, _ in model.log] == [False] * 3, "stock, full, and stock for its memory"


def test_one_number_of_tokens_has_no_slope(model: Model) -> None:
    times = measure(model, {"input_ids": "ids"}, None, new_tokens=[1], repeats=2, keys=["a"])
    assert times.decode_ms is None and times.selection_ms is None
    assert list(times.end_to_end_ms) == ["1"]


def test_spread_of_known_values() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0], 2.0) == latency.Spread(6.0, 4.0, 8.0, 5)
    assert spread([7.0]) == latency.Spread(7.0, 7.0, 7.0, 1)


def test_a_device_is_waited_for_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was enqueued before belongs to before, and what is enqueued is waited for."""
    clock, queue = Clock(), [3.0]

    def synchronize() -> None:
        while queue:
            clock.pass_by(queue.pop())

    monkeypatch.setattr(latency.time, "perf_counter", clock)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    stopwatch = Stopwatch(torch.device("cuda"))
    stopwatch.start()
    queue.append(5.0)
    assert stopwatch.stop() == 5.0


def test_peak_holds_what_was_freed_again() -> None:
    device = torch.device("cpu")
    held = memory.reset_peak(device)
    if held is None:
        pytest.skip("the kernel does not tell")
    size = 64 * 2**20
    block = torch.ones(size, dtype=torch.uint8)
    del block
    peak = memory.peak_bytes(device)
    assert peak is not None and size * 0.9 < peak - held < size * 1.5
    again = memory.reset_peak(device)
    peak = memory.peak_bytes(device)
    assert again is not None and peak is not None and peak - again < size / 4
    free = memory.free_bytes(device)
    assert free is None or free > 0


class Nvml:
    """Stands in for the driver's library: a card that has used 5 J, then 12 J, then is lost."""

    def __init__(self, fails: str = ""):
        self.fails, self.told = fails, [5_000, 5_000, 12_000]
        self.uuid = b""

    def nvmlInit_v2(self) -> int:
        return int(self.fails == "init")

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        self.uuid = uuid
        return int(self.fails == "handle")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, out: Any) -> int:
        if self.fails == "energy" or not self.told:
            return 3
        out._obj.value = self.told.pop(0)
        return 0


def test_energy_is_what_the_driver_counts() -> None:
    library = Nvml()
    meter = energy.meter_of(library, "GPU-abc")
    assert meter is not None and library.uuid == b"GPU-abc"
    assert meter() == 5.0 and meter() == 12.0
    with pytest.raises(RuntimeError, match="no more .NVML: 3."):
        meter()


@pytest.mark.parametrize("fails", ["init", "handle", "energy"])
def test_no_energy_where_the_driver_does_not_tell(fails: str) -> None:
    assert energy.meter_of(Nvml(fails), "GPU-abc") is None
    assert energy.energy_meter(torch.device("cpu")) is None
