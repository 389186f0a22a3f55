"""kill -9 at any moment: no answer is lost, at most one batch is computed twice, and the same
command ends with the same file.

A real process answers, and stands still at a chosen step, where a real SIGKILL ends it.  Moments
are drawn uniformly over the clock of a measured run, and one from each of its phases; a moment is
taken at the first step from then on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from llava.eval import answering, running
from llava.eval.answers import AnswerStore
from llava.eval.run_benchmark import parser, prepare
from llava.eval.running import Job, answer_part, check_runs, run_all
from tests.eval.conftest import TinyData
from tests.eval.test_run_benchmark import flags

PHASES = ("loading", "answering", "merging", "writing")
CELL = Path("textvqa") / "visiondrop-9"
MOMENTS = 10


class Steps:
    """Counts a run's steps in a log, each with its phase and time; stands still at one of them."""

    def __init__(self, log: Path, stop_at: int | None = None) -> None:
        self.log = log.open("a", buffering=1)
        self.stop_at, self.count, self.phase = stop_at, 0, "loading"

    def note(self, what: str) -> None:
        self.log.write(f"{what} {self.phase} {time.monotonic()}\n")

    def step(self) -> None:
        self.note("step")
        if self.count == self.stop_at:
            self.note("still")
            signal.pause()
        self.count += 1

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        yield
        self.phase = before

    def around(self, call: Callable[..., Any], phase: str | None = None) -> Callable[..., Any]:
        """The call with a step before and one after it."""

        def stepped(*args: Any, **kwargs: Any) -> Any:
            with self.during(phase or self.phase):
                self.step()
                out = call(*args, **kwargs)
                self.step()
            return out

        return stepped

    def patch(self, to: pytest.MonkeyPatch) -> None:
        """Steps around every act of a run that the disk or the clock could notice."""
        to.setattr(running, "load_model", self.around(running.load_model, "loading"))
        generate, append, recover = answering.generate, AnswerStore.append, AnswerStore._recover

        def answer(loaded: Any, prepared: Any, *rest: Any) -> Any:
            self.note(f"started:{prepared[0].index // 3}")
            return generate(loaded, prepared, *rest)

        def halved(stream: Any, data: bytes) -> None:
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                stream.write(half)
                stream.flush()
                self.step()

        def kept(store: AnswerStore, batch: int, *rest: Any) -> None:
            with self.during("answering"):
                append(store, batch, *rest)
            self.note(f"kept:{batch}")

        def merged(store: AnswerStore) -> None:
            with self.during(self.phase if store._is_part else "merging"):
                recover(store)

        to.setattr(answering, "generate", self.around(answer, "answering"))
        to.setattr(AnswerStore, "_write", staticmethod(halved))
        to.setattr(AnswerStore, "append", kept)
        to.setattr(AnswerStore, "_recover", merged)
        to.setattr(Job, "finish", self.around(Job.finish, "writing"))
        for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
            to.setattr(owner, name, self.around(getattr(owner, name)))


def run(args: list[str], log: Path, stop_at: int | None = None) -> None:
    """What `main` does with two processes, one after the other in this one: each answers its share
    into a part of its own, then all is brought together, written and scored."""
    tqdm.set_lock(threading.RLock())  # of its own: killed while it holds the parent's, it keeps it
    with pytest.MonkeyPatch.context() as patch:
        Steps(log, stop_at).patch(patch)
        job, runs, _ = prepare(parser().parse_args(args))
        check_runs(job, runs)
        for part in ("0of2", "1of2"):
            answer_part(job, runs, part)
        run_all(job, runs)


def lines_of(log: Path) -> list[tuple[str, str, float]]:
    words = [line.split() for line in log.read_text().splitlines()]
    return [(what, phase, float(when)) for what, phase, when in words]


def noted(log: Path, what: str) -> list[int]:
    found = [w.partition(":") for w, _, _ in lines_of(log)]
    return [int(number) for name, _, number in found if name == what]


def killed(args: list[str], log: Path, stop_at: int) -> str:
    """Run in a process of its own until a step, kill it there; returns the phase."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(args, log, stop_at))
    process.start()
    deadline = time.monotonic() + 240
    while not (log.exists() and "still" in log.read_text()):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return next(phase for what, phase, _ in lines_of(log) if what == "still")


def draw(steps: list[tuple[str, float]], number: int) -> list[int]:
    """Steps to stop at: one drawn from each phase, the others uniformly over the run's clock."""
    dice = random.Random(0)
    found = [dice.choice([i for i, (p, _) in enumerate(steps) if p == phase]) for phase in PHASES]
    while len(found) < number:
        moment = dice.uniform(steps[0][1], steps[-1][1])
        found.append(next(i for i, (_, when) in enumerate(steps) if when >= moment))
    return found


def test_killed_at_any_moment_the_same_command_goes_on(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    def command(name: str) -> tuple[list[str], Path]:
        out = tmp_path / name
        out.mkdir()
        args = flags(tiny_model, shared_data, out, "--methods", "visiondrop")
        return [*args, "--max-new-tokens", "8"], out

    args, whole = command("whole")
    run(args, whole / "log")
    steps = [(phase, when) for what, phase, when in lines_of(whole / "log") if what == "step"]
    assert {phase for phase, _ in steps} == set(PHASES) and len(steps) > 60
    assert noted(whole / "log", "started") == noted(whole / "log", "kept") == list(range(7))
    expected = (whole / CELL / "answers.jsonl").read_bytes()
    number = MOMENTS if pytestconfig.getoption("--all-cells") else len(PHASES)
    phases = []
    for i, stop_at in enumerate(draw(steps, number)):
        args, out = command(f"killed-{i}")
        phases.append(killed(args, out / "log", stop_at))
        run(args, out / "again")
        assert (out / CELL / "answers.jsonl").read_bytes() == expected
        kept, again = noted(out / "log", "kept"), noted(out / "again", "started")
        assert set(kept).isdisjoint(again), "what was on the disk is not computed again"
        assert len(noted(out / "log", "started")) + len(again) <= 7 + 1
        found = json.loads((out / CELL / "result.json").read_bytes())
        assert found["computed"] == sum(3 if k < 6 else 2 for k in again)
        assert sum(process["computed"] for process in found["processes"]) == found["computed"]
        left = {path.name for path in (out / CELL).iterdir() if path.suffix != ".lock"}
        assert left == {"answers.jsonl", "answers.jsonl.settings.json", "result.json"}
    assert set(phases) == set(PHASES)
