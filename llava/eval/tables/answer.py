"""A table answered cell by cell: what is there is kept, what fails is told, the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llava.eval.errors import EvalError
from llava.eval.planning import PlannedRun, Refusal
from llava.eval.result import read_result
from llava.eval.running import ANSWERS, RESULT, Job, run_all
from llava.eval.tables.board import Board
from llava.eval.tables.columns import Column
from llava.eval.tables.estimate import Open, Rates, describe, show_time, total_seconds
from llava.eval.tables.work import Workers

POLL = 1.0  # seconds between looks at how far a cell is
SAY_EVERY = 120.0  # seconds between lines where the output is no terminal


@dataclass
class Step:
    """Cells of one benchmark that are answered together.

    Attributes:
        work: (column, cell) in the order of answering; a benchmark's blank pictures are a column of
            their own.
    """

    name: str
    work: list[tuple[Column, str]] = field(default_factory=list)


def steps_of(columns: Sequence[Column], first: Sequence[str]) -> list[Step]:
    """Two waves over the benchmarks: the methods of ``first``, then the others."""
    waves: list[dict[str, Step]] = [{}, {}]
    for column in columns:
        for cell, runs in column.cells.items():
            early = column.request.blank or runs[0].name in first or cell in column.variants
            wave = waves[0 if early else 1]
            name = column.request.benchmark
            wave.setdefault(name, Step(name)).work.append((column, cell))
    return [step for wave in waves for step in wave.values()]


def look(columns: Sequence[Column], overwrite: bool = False) -> dict[tuple[int, str], Open]:
    """(id of a column, cell) -> what it lacks.

    Opens every answers file: a foreign one is refused before anything is computed."""
    out = {}
    for column in columns:
        job = column.job
        if job is None:
            continue
        job.args.overwrite = overwrite
        for cell, runs in column.cells.items():
            missing, todo = 0, []
            for run in runs:
                with job.store(run) as store:
                    missing += sum(len(store.batches[k]) for k in store.todo)
                    todo.append(tuple(store.todo))
            tokens = sum(runs[0].ledger) / len(runs[0].ledger)
            out[id(column), cell] = Open(missing, tokens, tuple(todo))
        job.args.overwrite = False
    return out


def measure(
    columns: Sequence[Column], open_cells: dict[tuple[int, str], Open], workers: Workers
) -> Rates | None:
    """Seconds for an answer: of the cells that are there, or else of a first few questions."""
    results = []
    for column in columns:
        if column.job is not None:
            out = column.job.out
            found = [read_result(out / cell / RESULT) for cell in column.cells]
            results += [result for result in found if result is not None]
    rates = Rates.from_results(results)
    if len({round(tokens) for tokens, _ in rates.points}) > 1:
        return rates
    for column in columns:
        mine = {cell: open_cells[id(column), cell] for cell in column.cells}
        if column.request.blank or not any(cell.answers for cell in mine.values()):
            continue
        by_tokens = sorted(mine, key=lambda cell: mine[cell].tokens)
        try:
            seconds = workers.time(column.request, sorted({by_tokens[0], by_tokens[-1]}))
        except BrokenProcessPool as error:
            raise EvalError(
                f"a process ended while answering a first few questions ({error}); is there "
                "memory for the model in every process? NPROC sets their number"
            ) from None
        except Exception:  # the cell itself will tell when its turn comes
            continue
        return Rates(tuple((mine[cell].tokens, s) for cell, s in seconds.items()))
    return None


@dataclass
class Answering:
    """The work on a table.

    Attributes:
        on_column: called with a benchmark's name when one of its steps is done.
    """

    columns: Sequence[Column]
    board: Board
    workers: Workers
    console: Console
    on_column: Callable[[str], None]

    def run(self, first: Sequence[str], overwrite: bool = False) -> None:
        """Answer all that is open."""
        open_cells = look(self.columns, overwrite)
        steps = steps_of(self.columns, first)
        total = sum(
            len(runs) * len(column.job.samples)
            for column in self.columns
            if column.job is not None
            for runs in column.cells.values()
        )
        left = list(open_cells.values())
        rates = (
            measure(self.columns, open_cells, self.workers)
            if any(cell.answers for cell in left)
            else None
        )
        self.console.print(
            f"estimate   {describe(left, total, rates, self.workers.count)}",
            highlight=False,
            soft_wrap=True,
        )
        rates = rates or Rates(((1.0, 1.0),))
        clock = _Clock(total_seconds(left, rates, self.workers.count), self.console)
        with clock.progress:
            for step in steps:
                for column, cell, tasks in self._hand_over(step, open_cells):
                    missing = open_cells[id(column), cell]
                    seconds = total_seconds([missing], rates, self.workers.count)
                    self._wait(column, cell, tasks, missing.answers, seconds, clock)
                    self._finish(column, cell, tasks)
                    clock.done(seconds)
                self.on_column(step.name)
                clock.say(f"{step.name} done")

    def _hand_over(
        self, step: Step, open_cells: dict[tuple[int, str], Open]
    ) -> Iterator[tuple[Column, str, list[Future[None]]]]:
        """The cells with their tasks; a next cell is handed over before one is waited for."""
        ahead: list[tuple[Column, str, list[Future[None]]]] = []
        for column, cell in step.work:
            tasks = []
            missing = open_cells[id(column), cell]
            if missing.answers:
                tasks = self.workers.hand_over(column.request, cell, missing.todo)
            ahead.append((column, cell, tasks))
            if len(ahead) > 2:
                yield ahead.pop(0)
        yield from ahead

    def _wait(
        self,
        column: Column,
        cell: str,
        tasks: Sequence[Future[None]],
        missing: int,
        seconds: float,
        clock: _Clock,
    ) -> None:
        assert column.job is not None
        runs = column.cells[cell]
        at_start = count_lines(column.job, runs)
        name = f"{column.request.benchmark}{' blank' if column.request.blank else ''}/{cell}"
        while not all(task.done() for task in tasks):
            share = min(1.0, (count_lines(column.job, runs) - at_start) / max(missing, 1))
            clock.at(share * seconds, name)
            time.sleep(POLL)

    def _finish(self, column: Column, cell: str, tasks: Sequence[Future[None]]) -> None:
        """Bring a cell's parts together and score it, or note why there is nothing to score."""
        job, answered = column.job, self.board.column(column.request.benchmark)
        assert job is not None
        runs = column.cells[cell]
        try:
            for task in tasks:
                task.result()
            results = run_all(job, runs, refused=answered.refused)
        except BrokenProcessPool as error:
            raise EvalError(
                f"a process that answered {answered.name}/{cell} ended ({error}); what was "
                "answered is kept, run the same command again to go on"
            ) from None
        except Exception as error:  # one cell's fault ends no table
            text = str(error) or type(error).__name__
            answered.failed.append(Refusal(cell, runs[0].budget and runs[0].tokens, text))
            self.console.print(f"not run: {answered.name}/{cell}: {text}", soft_wrap=True)
            return
        for result in results:
            answered.add(column, result)


def count_lines(job: Job, runs: Sequence[PlannedRun]) -> int:
    """About how many answers of some runs lie in their partial files: for the progress bar."""
    lines = 0
    for run in runs:
        for file in Path(run.folder(job.out)).glob(f"{ANSWERS}.partial*"):
            if not file.name.endswith(".lock"):
                try:
                    lines += max(0, file.read_bytes().count(b"\n") - 1)
                except OSError:
                    continue  # it was brought together with others meanwhile
    return lines * job.args.batch_size


class _Clock:
    """Progress in predicted seconds, so that cheap cells and dear ones count for what they are."""

    def __init__(self, total: float, console: Console) -> None:
        self.console = console
        self.total, self.sure = max(total, 1e-9), 0.0
        self.begun = self.said = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=600,
        )
        self.task = self.progress.add_task("", total=self.total)

    def at(self, beyond: float, name: str) -> None:
        done = self.sure + beyond
        self.progress.update(self.task, completed=done, description=name)
        if not self.console.is_terminal and time.monotonic() - self.said > SAY_EVERY:
            self.say(name, done)

    def done(self, seconds: float) -> None:
        self.sure += seconds
        self.progress.update(self.task, completed=self.sure)

    def say(self, what: str, done: float | None = None) -> None:
        """A line, for a log."""
        done = self.sure if done is None else done
        self.said = time.monotonic()
        elapsed = self.said - self.begun
        left = (self.total - done) * elapsed / done if done > 0 else self.total
        self.console.print(
            f"{100 * min(1.0, done / self.total):3.0f} %  {show_time(elapsed)} gone, about "
            f"{show_time(max(left, 0.0))} left: {what}",
            highlight=False,
            soft_wrap=True,
        )
