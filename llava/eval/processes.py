"""Several processes that answer one benchmark: who they are, how they are started, what each does.

``torchrun`` starts them, on one node or many, and accelerate makes them a group; nothing but which
batches are open goes between them, so that answers travel by files alone.  A command that is not
part of a group and wants several processes (NPROC, several GPUs) starts such a group itself.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from llava.eval.errors import EvalError

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: some finish hours before the last."""
GO_ON = "what was answered is kept; run the same command again to go on"


@dataclass(frozen=True)
class Group:
    """This process among those of a run; alone by default.

    Attributes:
        local_rank: its number on its node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def part(self) -> str:
        """Its name among those that share an answers file."""
        return f"{self.rank}of{self.size}"

    def device(self, asked: str) -> str:
        """The device of this process: each on a node has a GPU of its own, as far as they go."""
        if self.size == 1 or asked not in ("auto", "cuda") or not torch.cuda.is_available():
            return asked
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def broadcast(self, value: Any) -> Any:
        """What process 0 has, in all of them."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with _lost():
            return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            from accelerate import PartialState

            with _lost():
                PartialState().wait_for_everyone()


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise EvalError(f"another process of this run has stopped ({reason}); {GO_ON}") from None


def current_group() -> Group:
    """The group that torchrun (or accelerate launch) put this process into."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Group()
    from accelerate import PartialState

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(os.sched_getaffinity(0)) // local)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    # No tensor of a GPU is ever exchanged: the group is one of CPUs, also where GPUs answer, and
    # several processes may share a GPU.
    with _lost():
        state = PartialState(cpu=True, timeout=PATIENCE)
    return Group(state.process_index, state.num_processes, state.local_process_index)


def share(batches: Sequence[int], rank: int, size: int) -> list[int]:
    """The batches of process ``rank``: a row of neighbours, as they may share a picture; no two
    processes' numbers differ by more than one."""
    return list(batches[rank * len(batches) // size : (rank + 1) * len(batches) // size])


def launch(module: str, argv: Sequence[str], processes: int) -> None:
    """Run ``python -m module argv`` in so many processes on this node, as torchrun does.

    Raises EvalError when one of them stops with an error; the others are then stopped as well."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as logs, _as_they_were(), _threads(processes):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", module, *argv)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            how = (
                f"killed by {failure.signal_name()}"
                if failure.exitcode < 0
                else f"exit status {failure.exitcode}, its message is above"
            )
            raise EvalError(f"process {rank} of {processes} stopped ({how}); {GO_ON}") from None
        except SignalException as stopped:
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise EvalError(f"stopped by {stopped.sigval.name}; {GO_ON}") from None


@contextmanager
def _as_they_were() -> Iterator[None]:
    """Puts back the signal handlers that the launcher sets for itself."""
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {name: signal.getsignal(name) for name in names}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for name, handler in before.items():
                signal.signal(name, handler)


@contextmanager
def _threads(processes: int) -> Iterator[None]:
    """Processes share the cores, unless somebody said how many threads each has."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
