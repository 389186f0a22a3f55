"""Answers piece by piece, for readers who are slow or go away."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tests.visiondrop.models import batch, pixels, tiny
from tests.visiondrop.users import METHODS, WAIT, Words, alone, in_other, question, until
from visiondrop import Session, VisionDrop


class Gate(LogitsProcessor):
    """Lets one token more through at each `open`."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.passed = 0

    def open(self, count: int = 1) -> None:
        self.permits.release(count)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        assert self.permits.acquire(timeout=WAIT), "nobody opened the gate"
        self.passed += 1
        return scores


def gated(gate: Gate, seed: int, tokens: int) -> Callable[..., Any]:
    arguments = question(seed, max_new_tokens=tokens, min_new_tokens=tokens)
    return functools.partial(
        tiny().generate, **arguments, logits_processor=LogitsProcessorList([gate])
    )


def test_a_stream_gives_the_answer_piece_by_piece() -> None:
    session, gate = Session(tiny()), Gate()
    expected, ledger = alone(METHODS[1], 4, min_new_tokens=6)
    with session.stream(Words(), gated(gate, 4, 6), METHODS[1]) as stream:
        gate.open(3)
        pieces = [next(stream), next(stream)]  # before the answer is complete
        assert gate.passed < 6 and session.busy
        gate.open(3)
        pieces += list(stream)
    ids = [int(word) for word in "".join(pieces).split()]
    assert ids == expected[-6:] and stream.tokens == 6
    assert stream.result[0].tolist() == expected
    assert stream.trace is not None and stream.trace.samples[0].tokens_per_layer == ledger
    assert 0 < stream.first_token < stream.seconds and stream.waited >= 0
    assert list(stream) == [] and not session.busy


def test_llava_calls_stream_the_answer_alone() -> None:
    """LLaVA's own `generate` shows a streamer an empty prompt."""
    from llava.model.llava_model import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration(tiny().config).eval()
    model.load_state_dict(tiny().state_dict())
    model.generation_config.pad_token_id = 0
    ids = torch.tensor([[1, 5, 6, -200, 7, 8]])
    arguments = dict(images=pixels(1, 9), max_new_tokens=5, do_sample=False)
    expected = model.generate(ids, **arguments)[0].tolist()
    session = Session(model)
    with session.stream(Words(), functools.partial(model.generate, ids, **arguments)) as stream:
        assert [int(word) for word in "".join(stream).split()] == expected
    assert 1 <= stream.tokens <= 5


def test_a_reader_who_does_not_read_keeps_nobody_waiting() -> None:
    session = Session(tiny())
    stream = session.stream(Words(), functools.partial(tiny().generate, **question(5)), METHODS[1])
    until(lambda: stream.seconds is not None)
    assert session.generate(None, timeout=WAIT, **question(5)).output[0].tolist()
    assert "".join(stream).split() == [str(i) for i in alone(METHODS[1], 5)[0][-stream.tokens :]]


@pytest.mark.parametrize("how", ["dropped", "closed", "error"])
def test_a_reader_who_goes_away_ends_the_answer(how: str) -> None:
    session, gate = Session(tiny()), Gate()
    streams = [session.stream(Words(), gated(gate, 6, 400), METHODS[1])]
    gate.open(2)
    next(streams[0])
    until(lambda: gate.passed == 2)
    if how == "dropped":
        streams.clear()
        gc.collect()
    elif how == "error":
        threading.Timer(0.05, gate.open, [400]).start()
        with pytest.raises(KeyboardInterrupt), streams[0]:
            raise KeyboardInterrupt
    else:
        threading.Timer(0.05, gate.open, [400]).start()
        streams[0].close()
        assert not session.busy
    gate.open(400)
    until(lambda: not session.busy)
    assert gate.passed < 400, "it did not go on to the end"
    assert (
        session.generate(None, timeout=WAIT, **question(6)).output[0].tolist() == alone(None, 6)[0]
    )


def test_a_stream_that_waits_leaves_the_queue_when_closed() -> None:
    session = Session(tiny())
    with session.hold():
        call = functools.partial(tiny().generate, **question(7))
        stream = in_other(lambda: session.stream(Words(), call))
        until(lambda: session.waiting == 1)
        assert stream.waited is None and stream.seconds is None
        stream.close()
        assert session.waiting == 0 and list(stream) == []


def test_what_a_call_raises_the_reader_raises() -> None:
    session = Session(tiny())

    def fails(**_: Any) -> None:
        raise ZeroDivisionError("in the call")

    for call, error in (
        (fails, ZeroDivisionError),
        (
            functools.partial(tiny().generate, **batch([[1, 2], [1, 3]]), max_new_tokens=2),
            ValueError,
        ),
    ):
        with pytest.raises(error):
            list(session.stream(Words(), call))
        assert not session.busy
    with pytest.raises(ValueError, match="37"):
        list(session.stream(Words(), fails, VisionDrop(encoder=(37, 1), llm={})))
    assert not session.busy


def test_a_call_may_apply_its_method_itself() -> None:
    session = Session(tiny())

    def call(**hooks: Any) -> Any:
        with METHODS[1](tiny()) as trace:  # type: ignore[misc]
            return tiny().generate(**question(8), **hooks), trace

    with session.stream(Words(), call, hold_only=True) as stream:
        words = "".join(stream).split()
    out, trace = stream.result
    assert (out[0].tolist(), trace.samples[0].tokens_per_layer) == alone(METHODS[1], 8)
    assert stream.trace is None and words == [str(i) for i in out[0, -len(words) :].tolist()]
