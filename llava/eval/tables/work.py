"""Processes that answer: each keeps the model loaded from cell to cell, and the pictures' tower
outputs from method to method within a benchmark."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from llava.eval.answering import LoadedModel
from llava.eval.planning import PlannedRun
from llava.eval.running import Job, answer_part
from llava.eval.tables.columns import Column, Request, plan

Todo = Sequence[Sequence[int]]
"""Of each run of a cell, the batches that are open."""

PILOT = 24  # questions that are answered to tell how long all take
_BATCHES = 2  # of them, where batches are smaller


@dataclass
class _Held:
    """What a process keeps between cells."""

    loaded: LoadedModel | None = None
    column: Column | None = None

    def job(self, request: Request) -> tuple[Job, Column]:
        """The column's job with the model that is loaded.  A new column has a new tower cache, as
        pictures of two benchmarks may have one name."""
        if self.column is None or self.column.request != request:
            self.release()
            self.column = plan(request)
        job = self.column.job
        assert job is not None, f"{request.benchmark} was planned before: {self.column.reason}"
        if self.loaded is not None:
            job._loaded = self.loaded
        return job, self.column

    def keep(self, job: Job) -> None:
        self.loaded = job._loaded or self.loaded

    def release(self) -> None:
        """Let go of the column, not of the model."""
        self.column = None


_held = _Held()


def answer(request: Request, cell: str, part: str, todo: Todo) -> None:
    """Answer this process's part of the batches ``todo`` of a cell's runs."""
    job, column = _held.job(request)
    try:
        answer_part(job, column.cells[cell], part, todo)
    finally:
        _held.keep(job)


def pilot(request: Request, cells: Sequence[str]) -> dict[str, float]:
    """Cell -> seconds for an answer, from the first questions of the column; nothing is kept."""
    job, column = _held.job(request)
    count = max(job.args.batch_size, min(PILOT, _BATCHES * job.args.batch_size))
    seconds = {}
    with TemporaryDirectory() as folder:
        small = replace(job, samples=job.samples[:count], out=Path(folder))
        for cell in cells:
            run = column.cells[cell][0]
            seconds[cell] = _time(small, run)
        _held.keep(small)
    return seconds


def _time(job: Job, run: PlannedRun) -> float:
    with job.store(run) as store:
        job.answer(run, store)
        return store.seconds / len(job.samples)


def _begin(parent: int, device: str, threads: int) -> None:
    """Set a worker process up: its GPU or its share of the cores; it ends with its parent."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    else:
        torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """Worker processes, one a part; part i of every cell goes to process i.

    With ``processes`` 0 the work is done in this process, when it is handed over.
    """

    def __init__(self, processes: int) -> None:
        self.count = max(processes, 1)
        self._pools: list[ProcessPoolExecutor] = []
        cores = len(os.sched_getaffinity(0))
        for i in range(processes):
            threads = max(1, cores // processes)
            begin = (os.getpid(), device_of(i), threads)
            self._pools.append(
                ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=begin)
            )

    def hand_over(self, request: Request, cell: str, todo: Todo) -> list[Future[None]]:
        """Have these batches of a cell's runs answered; one promise a part."""
        if not self._pools:
            return [_done(request, cell, todo)]
        parts = [f"{i}of{self.count}" for i in range(self.count)]
        return [
            pool.submit(answer, request, cell, part, todo) for pool, part in zip(self._pools, parts)
        ]

    def time(self, request: Request, cells: Sequence[str]) -> dict[str, float]:
        """See `pilot`."""
        if not self._pools:
            return pilot(request, cells)
        return self._pools[0].submit(pilot, request, cells).result()

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        _held.release()
        _held.loaded = None


def _done(request: Request, cell: str, todo: Todo) -> Future[None]:
    future: Future[None] = Future()
    try:
        answer(request, cell, "0of1", todo)
        future.set_result(None)
    except Exception as error:
        future.set_exception(error)
    return future


def device_of(worker: int) -> str:
    """The GPU of a worker, by CUDA's name for it; "" where there is none."""
    if not torch.cuda.is_available():
        return ""
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    names = visible or [str(d) for d in range(torch.cuda.device_count())]
    return names[worker % len(names)]
