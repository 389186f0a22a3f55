"""Users of one tiny model, for tests of sessions and streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.visiondrop.models import IMAGE, batch, pixels, prompt, tiny
from visiondrop import Full, Random, Reducer, VisionDrop
from visiondrop.methods.fastv import FastV

WAIT = 30
"""Seconds after which a test gives up; nothing here takes one."""

METHODS: list[Reducer | None] = [
    None,
    VisionDrop(encoder=(14, 4), llm={2: (10, 3), 4: (6, 0)}),
    VisionDrop(encoder=(5, 1), llm={}),
    FastV(2, ratio=0.5),
    Random(7),
]


class Words:
    """A tokenizer whose words are the ids."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(f"{int(i)} " for i in ids)


def question(seed: int, **kwargs: Any) -> dict[str, Any]:
    """Arguments of `generate`; every seed asks about another picture."""
    arguments = {**batch([prompt(3, 4, seed)]), "pixel_values": pixels(1, seed)}
    return {
        **arguments,
        "max_new_tokens": 6,
        "do_sample": False,
        "suppress_tokens": [IMAGE],
    } | kwargs


def alone(method: Reducer | None, seed: int, **kwargs: Any) -> tuple[list[int], list[int]]:
    """The answer and the ledger without a session."""
    with (method or Full())(tiny()) as trace:
        out = tiny().generate(**question(seed, **kwargs))
    return out[0].tolist(), trace.samples[0].tokens_per_layer


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def in_other(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(WAIT)
