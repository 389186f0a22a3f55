"""What may go wrong in the GPU script: a cell that fails, an engine that does not record, a clock
that leaves something out, a machine with little installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import efficiency, turns
from benchmarks.gpu.cells import Bench
from benchmarks.gpu.turns import NotRecorded, Variant, against_full, prove, take_turns
from visiondrop.engine import Engine, attached
from visiondrop.profiling.latency import generate

ROOT = Path(__file__).resolve().parents[2]
ARGS = ["--dry-run", "--commit", "0123"]


def bench(anyres: bool = True) -> Bench:
    config = efficiency.tiny(anyres)
    return Bench(config, 40 if anyres else 12, "cpu", torch.float32, "replay", 1, 0, 4, smaller=8)


def test_a_failed_cell_stops_no_other_and_is_tried_again_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "gpu.json", []
    start = [*ARGS, "--json", str(path), "--only"]
    three = "choosing:llava-1.5-7b,kernel,choosing:llava-next-7b"
    with monkeypatch.context() as patch:

        def fails(bench: Bench) -> Any:
            raise torch.OutOfMemoryError("no room for 1 GB")

        patch.setitem(efficiency.CELLS, "choosing", fails)
        assert efficiency.main([*start, "choosing:llava-1.5-7b,kernel"]) == 1
    content = json.loads(path.read_text())
    assert set(content["cells"]) == {"kernel"} == set(content["seconds"])
    assert content["errors"] == {
        "choosing:llava-1.5-7b": {"error": "OutOfMemoryError: no room for 1 GB"}
    }
    measure = efficiency.cell_of

    def noted(name: str, *rest: Any) -> Any:
        order.append(name)
        return measure(name, *rest)

    monkeypatch.setattr(efficiency, "cell_of", noted)
    assert efficiency.main([*start, three]) == 0
    assert order == ["choosing:llava-next-7b", "choosing:llava-1.5-7b"]
    content = json.loads(path.read_text())
    assert set(content["cells"]) == set(three.split(",")) and not content["errors"]


def test_who_stops_it_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(bench: Bench) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(efficiency.CELLS, "choosing", stopped)
    with pytest.raises(KeyboardInterrupt):
        efficiency.main(
            [*ARGS, "--json", str(tmp_path / "a.json"), "--only", "choosing:llava-1.5-7b"]
        )


@pytest.mark.parametrize("cell", ["first_token", "prefill", "choosing", "compiled", "decode"])
def test_an_engine_that_does_not_record_fails_the_cell(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotaged: what would run from recordings runs layer by layer."""
    step = "decode" if cell == "decode" else "prefill"
    made = {"prefill": "prefill_blocks", "decode": "decode_step"}[step]
    monkeypatch.setattr(attached, made, lambda *_: None)
    with pytest.raises(NotRecorded, match=rf"graphs: no {step}:graph, {step}:plain \d times"):
        efficiency.CELLS[cell](bench(anyres=False))


def test_memory_is_of_recordings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "decode_step", lambda *_: None)
    with pytest.raises(NotRecorded, match="full\\+graphs: no decode:graph, decode:plain 1 times"):
        bench(anyres=False).memory()


def test_one_plain_pass_is_enough_to_fail() -> None:
    variants = [Variant("a", None), Variant("a+graphs", None, Engine("replay"))]
    good = {"prefill:graph": 4, "decode:graph": 3, "tower:plain": 1}
    prove(variants, {"a": {}, "a+graphs": good}, ("prefill", "decode"))
    for bad in ({"decode:plain": 1}, {"prefill:plain": 1}, {"decode:graph": 0}):
        with pytest.raises(NotRecorded, match="a\\+graphs"):
            prove(variants, {"a": {}, "a+graphs": {**good, **bad}}, ("prefill", "decode"))


@pytest.mark.parametrize("engine", [None, "replay"])
@pytest.mark.parametrize("name", ["full", "visiondrop"])
def test_decoding_goes_on_where_the_prefill_ended(name: str, engine: Any) -> None:
    """The tokens of one generation, though the cell makes it in two."""
    own, count = bench(), 5
    inputs = own.setting.inputs(own.model, 2)
    method = own.method(name)
    with torch.inference_mode():
        with method(own.model, **own.setting.options(2)):
            whole = generate(own.model, inputs, count)
        variant = Variant(name, method, engine and Engine(engine))
        begun = own.begun(variant, inputs, 2)
        with variant.applied(own.model, {}) as trace:
            parts = own.go_on(begun, count - 1)
    assert torch.equal(whole, parts) and len(set(parts[0, -count:].tolist())) > 1
    assert trace.paths["decode:graph"] == (count - 1 if engine else 0)
    assert not trace.samples and not trace.paths["decode:plain"]


def test_entering_and_leaving_are_timed_and_preparing_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    @contextmanager
    def method(model: Any, engine: Any, **options: Any) -> Any:
        assert options == {"keys": ["a"]}
        passes(2.0)
        yield None
        passes(3.0)

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    variants = [Variant("full", method), Variant("stock", None)]  # type: ignore[arg-type]
    model: Any = type("Model", (), {"device": torch.device("cpu")})
    done = take_turns(
        model, variants, passes, options={"keys": ["a"]}, warmup=1, repeats=2,
        prepare=lambda v: passes(50.0) or 10.0,
    )  # fmt: skip
    assert done.seconds == {"full": [15.0, 15.0], "stock": [10.0, 10.0]}
    assert against_full(done)["yardstick"] == "stock"
    assert against_full(done)["faster"]["full"]["median"] == pytest.approx(10 / 15)


BARE = """
import sys
for name in ("rich", "pytest", "pytest_timeout", "scipy", "accelerate", "pandas", "matplotlib"):
    sys.modules[name] = None
from benchmarks.gpu import aims, efficiency
status = efficiency.main(
    ["--dry-run", "--json", sys.argv[1] + "/gpu_efficiency.json", "--only", "choosing:llava-1.5-7b"]
)
import visiondrop.profile
sys.exit(status or aims.main(["--results", sys.argv[1]]))
"""


def test_little_has_to_be_installed(tmp_path: Path) -> None:
    """torch, transformers, numpy and pillow."""
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| choosing over the rest of the prefill, LLaVA-1.5-7B | GPU | at most 2.00% |" in (
        done.stdout
    )


STUB = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
  *pytest*-q*) exit "${TESTS:-0}" ;;
  *"-c import pytest"*) exit "${NO_PYTEST:-0}" ;;
  *"-c import benchmarks"*) exit "${NO_RICH:-0}" ;;
  *gpu.efficiency*) exit "${CELLS:-0}" ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., tuple[int, str, list[str]]]:
    """benchmarks/gpu/run.sh with a Python that notes how it is called: status, output, calls."""
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(**env: str) -> tuple[int, str, list[str]]:
        calls.write_text("")
        given = {"PYTHON": str(stub), "OUT": str(tmp_path / "out"), "CALLS": str(calls), **env}
        done = subprocess.run(
            ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh")],
            env={**os.environ, **given}, capture_output=True, text=True,
        )  # fmt: skip
        lines = [line for line in calls.read_text().splitlines() if line.startswith("-m ")]
        return done.returncode, done.stdout + done.stderr, lines

    return run


def parts(calls: list[str]) -> list[str]:
    return [call.split()[1].rpartition(".")[2] for call in calls]


def test_the_script_does_each_part_once_for_a_commit(script: Any) -> None:
    ends = ["profile", "profile", "aims"]
    status, _, calls = script(COMMIT="a")
    assert status == 0 and parts(calls) == ["pytest", "efficiency", "evaluation_speed", *ends]
    assert "--commit a" in calls[1]
    seconds = int(calls[1].split("--seconds ")[1].split()[0])
    assert 300 < seconds <= 380, "time for the evaluation is set aside"
    status, said, calls = script(COMMIT="a")
    assert status == 0 and parts(calls) == ["efficiency", *ends]
    assert int(calls[0].split("--seconds ")[1].split()[0]) > 400
    assert "tests: passed at this commit before" in said
    assert parts(script(COMMIT="b")[2])[0] == "pytest"


def test_the_script_says_what_it_left_out(script: Any) -> None:
    status, said, calls = script(COMMIT="a", TESTS="1", CELLS="124")
    assert status == 1 and "tests: failed with status 1" in said
    assert "cells: stopped as the time was over; left for the next call" in said
    assert parts(calls)[:3] == ["pytest", "efficiency", "evaluation_speed"]
    status, said, calls = script(COMMIT="b", NO_PYTEST="1", NO_RICH="1", SECONDS_IN_ALL="50")
    assert status == 0 and parts(calls) == ["efficiency", "aims"]
    assert "has no pytest; not run" in said and "evaluation: not run" in said
    assert said.count("left for the next call of the same command") == 2
    assert script(COMMIT="a", CELLS="1")[0] == 1
    status, said, _ = script(COMMIT="c", TESTS="124")
    assert status == 1 and "tests: failed" in said, "a test that hangs is none that goes on"
