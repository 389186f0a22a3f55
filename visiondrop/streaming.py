"""An answer piece by piece, made in a thread of its own that ends when nobody reads any more."""

from __future__ import annotations

import contextvars
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from visiondrop.trace import Trace

__all__ = ["Stream"]


@dataclass
class _Job:
    """What the thread and the reader share. The thread knows the reader by nothing else, so that a
    reader that was dropped can be noticed.
    """

    pieces: SimpleQueue[str | None] = field(default_factory=SimpleQueue)
    stop: threading.Event = field(default_factory=threading.Event)
    asked: float = field(default_factory=time.perf_counter)
    began: float | None = None
    first: float | None = None
    ended: float | None = None
    tokens: int = 0
    trace: Trace | None = None
    result: Any = None
    error: BaseException | None = None


class _Pieces(TextStreamer):
    """Finished words go into the job's queue."""

    def __init__(self, tokenizer: Any, job: _Job):
        super().__init__(tokenizer, skip_special_tokens=True)
        self.job = job

    def put(self, value: Tensor) -> None:
        if value.dim() > 1:
            if value.shape[0] > 1:
                raise ValueError(f"{value.shape[0]} prompts at once cannot be streamed; give one")
            return  # the prompt
        if self.job.first is None:
            self.job.first = time.perf_counter()
        self.job.tokens += value.numel()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.job.pieces.put(text)


class _CalledOff(StoppingCriteria):
    def __init__(self, stop: threading.Event):
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        stopped = self.stop.is_set()
        return torch.full((input_ids.shape[0],), stopped, device=input_ids.device)


def _run(work: Callable[..., Any], tokenizer: Any, job: _Job) -> None:
    def began(trace: Trace | None) -> None:
        job.began, job.trace = time.perf_counter(), trace

    try:
        job.result = work(
            stop=job.stop,
            began=began,
            streamer=_Pieces(tokenizer, job),
            stopping_criteria=StoppingCriteriaList([_CalledOff(job.stop)]),
        )
    except BaseException as error:  # the reader raises it
        job.error = error
    finally:
        job.ended = time.perf_counter()
        job.pieces.put(None)


class Stream(Iterator[str]):
    """Iterate over the pieces; what the call raised is raised there. Made by `Session.stream`.

    The answer ends at the next token after `close()`, at the end of a `with stream:` block, or when
    the stream is garbage. One that still waits for its turn then leaves the queue.
    """

    def __init__(self, tokenizer: Any, work: Callable[..., Any]):
        self._job = _Job()
        self._over = False
        # In the caller's context, where the session sees who has its model.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(_run, work, tokenizer, self._job), daemon=True
        )
        self._gone = weakref.finalize(self, self._job.stop.set)
        self._thread.start()

    def __next__(self) -> str:
        piece = None if self._over else self._job.pieces.get()
        if piece is not None:
            return piece
        self._over = True
        if self._job.error is not None and not self._job.stop.is_set():
            raise self._job.error
        raise StopIteration

    def close(self) -> None:
        """End the answer, and wait until the model is free of it."""
        self._job.stop.set()
        self._thread.join()
        self._over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def trace(self) -> Trace | None:
        """What the method did; None before its turn, or where the call applies one itself."""
        return self._job.trace

    @property
    def result(self) -> Any:
        """What the call returned; None before its end."""
        return self._job.result

    @property
    def tokens(self) -> int:
        """New tokens so far, special ones included."""
        return self._job.tokens

    @property
    def waited(self) -> float | None:
        """Seconds in the queue; None before the turn."""
        return None if self._job.began is None else self._job.began - self._job.asked

    @property
    def first_token(self) -> float | None:
        """Seconds from the turn to the first new token: the prefill; None before it."""
        job = self._job
        return None if job.first is None or job.began is None else job.first - job.began

    @property
    def seconds(self) -> float | None:
        """Seconds from the turn to the end; None before it."""
        job = self._job
        return None if job.ended is None or job.began is None else job.ended - job.began
