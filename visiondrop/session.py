"""One model for several users at once: who asks waits for their turn, in the order of asking.

    session = Session(model)
    with session.use(VisionDrop.from_average(64, num_layers=32)) as trace:
        model.generate(...)

A method sets hooks on the model object, so two methods can never be on one model at once. The
session hands the model to one user at a time, with that user's method, and takes the method off
before the next one comes, also after an exception.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visiondrop.methods import Full
from visiondrop.reducer import Reducer
from visiondrop.streaming import Stream
from visiondrop.trace import Trace

__all__ = ["Answer", "Session", "Stopped"]

LOOK_AGAIN = 0.05
"""Seconds after which somebody who waits looks whether they were called off."""


class Stopped(RuntimeError):
    """Who waited was called off before their turn came."""


class _Ticket:
    """A place in the queue."""


_HELD: ContextVar[tuple[_Ticket, ...]] = ContextVar("visiondrop_session_tickets", default=())
"""Tickets taken in this context: a thread, a task, or one call of a server's thread pool. That a
ticket is here says nothing of whether it is still valid."""


@dataclass
class Answer:
    """What one call gave.

    Attributes:
        output: what `generate` returned.
        trace: what the method did.
        waited, seconds: in the queue, and with the model.
    """

    output: Any
    trace: Trace
    waited: float
    seconds: float


class Session:
    """The owner of a model object. Thread-safe; nobody else may run that model meanwhile.

    Args:
        model: a supported transformers model (`visiondrop.adapters`).
    """

    def __init__(self, model: nn.Module):
        self.model: Any = model
        self._turn = threading.Condition()
        self._queue: deque[_Ticket] = deque()  # the first one has the model

    @property
    def busy(self) -> bool:
        """Whether somebody has the model."""
        return bool(self._queue)

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        return max(0, len(self._queue) - 1)

    @contextmanager
    def hold(
        self,
        *,
        timeout: float | None = None,
        stop: threading.Event | None = None,
        seed: int | None = None,
    ) -> Iterator[Any]:
        """The model as it is, for the length of a `with` block; gives it.

        For objects that apply a method themselves (`ImageCache`, `Chat`).

        Args:
            timeout: seconds to wait for the turn at most; None waits as long as it takes.
            stop: calls off the waiting when it is set.
            seed: draws are made from this seed, and torch's generators are afterwards as before, so
                that a sampled answer does not depend on who asked between.

        Raises:
            RuntimeError: whoever calls has the model already: a second turn would wait for the
                first one's end for ever.
            TimeoutError: the turn did not come.
            Stopped: `stop` was set.
        """
        ticket = _Ticket()
        with self._turn:
            if self._queue and self._queue[0] in _HELD.get():
                raise RuntimeError(
                    "the session was asked for its model inside a `with session.use(...)` or "
                    "`session.hold()` block of the same caller, who would wait for ever; use the "
                    "outer block, or compose two methods: `session.use(a + b)`"
                )
            self._queue.append(ticket)
            try:
                self._wait(ticket, timeout, stop)
            except BaseException:
                self._leave(ticket)
                raise
        _HELD.set((*_HELD.get(), ticket))
        try:
            with nullcontext() if seed is None else seeded(seed):
                yield self.model
        finally:
            # Maybe in another context than that of the beginning (a generator that a thread pool
            # runs), where a token could not be reset; the ticket is invalid from now on anyway.
            _HELD.set(tuple(held for held in _HELD.get() if held is not ticket))
            with self._turn:
                self._leave(ticket)

    def _wait(self, ticket: _Ticket, timeout: float | None, stop: threading.Event | None) -> None:
        """Return when the ticket is the first one; `_turn` is held."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            if stop is not None and stop.is_set():
                raise Stopped("called off before the turn came")
            if self._queue[0] is ticket:
                return
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(
                    f"the model was not free within {timeout:g} s, "
                    f"{self._queue.index(ticket)} are before this call; try again, or wait longer"
                )
            pause = LOOK_AGAIN if stop is not None else None
            times = [t for t in (left, pause) if t is not None]
            self._turn.wait(min(times) if times else None)

    def _leave(self, ticket: _Ticket) -> None:
        self._queue.remove(ticket)
        self._turn.notify_all()

    @contextmanager
    def use(
        self,
        method: Reducer | None = None,
        *,
        timeout: float | None = None,
        stop: threading.Event | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Iterator[Trace]:
        """The model with a method on it, for the length of a `with` block; gives the trace.

        Args:
            method: None for none: the trace then tells of all visual tokens.
            timeout, stop, seed: as for `hold`.
            options: of `method(model, ...)`: `questions`, `keys`, `tower_cache`.

        Raises, besides what `hold` raises, what `method(model)` raises: a budget that this model
        cannot meet.
        """
        acting = Full() if method is None else method
        with self.hold(timeout=timeout, stop=stop, seed=seed), acting(self.model, **options) as t:
            yield t

    def generate(
        self,
        method: Reducer | None,
        *args: Any,
        timeout: float | None = None,
        seed: int | None = None,
        questions: list[str] | None = None,
        **kwargs: Any,
    ) -> Answer:
        """`model.generate(*args, **kwargs)` in its turn, under a method; see `use`."""
        asked = time.perf_counter()
        with self.use(method, timeout=timeout, seed=seed, questions=questions) as trace:
            began = time.perf_counter()
            output = self.model.generate(*args, **kwargs)
            ended = time.perf_counter()
        return Answer(output, trace, began - asked, ended - began)

    def stream(
        self,
        tokenizer: Any,
        call: Callable[..., Any],
        method: Reducer | None = None,
        *,
        hold_only: bool = False,
        timeout: float | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Stream:
        """An answer piece by piece, made in a thread of its own, which has the model for just as
        long as it takes: a reader that is slow or gone does not keep others waiting.

            ask = functools.partial(model.generate, **inputs, max_new_tokens=64)
            with session.stream(tokenizer, ask, method) as stream:
                for piece in stream: ...

        Args:
            tokenizer: makes text of ids; special tokens are left out.
            call: is called in its turn with `streamer` and `stopping_criteria`, which it hands to
                `generate`. Bound the new tokens in it: nothing else ends an answer that is read.
            method, timeout, seed, options: as for `use`.
            hold_only: `call` applies a method itself (`LlavaChat.ask`); `method` is then not used.
        """

        def work(stop: threading.Event, began: Callable[[Trace | None], None], **hooks: Any) -> Any:
            limits: dict[str, Any] = {"timeout": timeout, "stop": stop, "seed": seed}
            if hold_only:
                with self.hold(**limits):
                    began(None)
                    return call(**hooks)
            with self.use(method, **limits, **options) as trace:
                began(trace)
                return call(**hooks)

        return Stream(tokenizer, work)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators from a seed, and afterwards as before."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield
