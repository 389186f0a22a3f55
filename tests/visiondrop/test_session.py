"""One model, several users: turns in order, methods that do not mix, readers who go away."""

from __future__ import annotations

import contextvars
import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tests.visiondrop.models import IMAGE, batch, pixels, prompt, tiny
from visiondrop import Random, Reducer, Session, VisionDrop
from visiondrop.methods.fastv import FastV
from visiondrop.session import Stopped

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
    from visiondrop import Full

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


def test_users_with_different_methods_get_the_answers_they_get_alone() -> None:
    cases = [(method, seed) for seed in range(4) for method in METHODS]
    expected = [alone(method, seed) for method, seed in cases]
    assert len({str(answer) for answer in expected}) > len(cases) // 2, "methods must matter here"
    session = Session(tiny())
    start, most = threading.Barrier(len(METHODS)), []

    def user(which: int) -> list[Any]:
        start.wait(WAIT)
        out = []
        for method, seed in cases[which :: len(METHODS)]:
            answer = session.generate(method, **question(seed))
            most.append(session.waiting)
            ledger = answer.trace.samples[0].tokens_per_layer
            out.append((answer.output[0].tolist(), ledger))
            assert len(answer.trace.samples) == 1 and answer.seconds > 0 and answer.waited >= 0
        return out

    with ThreadPoolExecutor(len(METHODS)) as pool:
        answers = list(pool.map(user, range(len(METHODS))))
    for which, own in enumerate(answers):
        assert own == expected[which :: len(METHODS)]
    assert max(most) >= 2, "they asked at the same time"
    assert not session.busy and alone(None, 0) == expected[0]


def test_without_a_session_the_second_user_is_refused() -> None:
    """What the session is for."""
    method = VisionDrop(encoder=(5, 1), llm={})
    with Session(tiny()).use(method), pytest.raises(RuntimeError, match="runs 'visiondrop' alread"):
        with method(tiny()):
            pass


def test_turns_come_in_the_order_of_asking() -> None:
    session, order = Session(tiny()), []

    def ask(name: int) -> None:
        with session.use():
            order.append(name)

    with session.use():
        threads = []
        for name in range(6):
            threads.append(in_thread(functools.partial(ask, name)))
            until(lambda n=name: session.waiting == n + 1)
    for thread in threads:
        thread.join(WAIT)
    assert order == list(range(6))


def test_who_asks_again_and_again_does_not_keep_another_out() -> None:
    session, order, other = Session(tiny()), [], []

    def once() -> None:
        with session.hold():
            order.append("other")

    for turn in range(6):
        with session.hold():
            order.append(turn)
            if turn == 2:
                other.append(in_thread(once))
                until(lambda: session.waiting == 1)
    other[0].join(WAIT)
    assert order == [0, 1, 2, "other", 3, 4, 5]


def test_after_an_error_the_model_is_free_and_plain() -> None:
    session, before = Session(tiny()), alone(None, 1)
    with pytest.raises(ZeroDivisionError):
        with session.use(METHODS[1]):
            raise ZeroDivisionError
    with pytest.raises(ValueError, match="37"):  # more than the 36 patches
        session.generate(VisionDrop(encoder=(37, 1), llm={}), **question(1))
    with pytest.raises(ValueError):
        session.generate(METHODS[1], **question(1, max_new_tokens=-1))
    assert not session.busy and alone(None, 1) == before


def test_a_second_turn_inside_the_first_is_refused_and_the_first_goes_on() -> None:
    session = Session(tiny())
    with session.use(METHODS[1]) as trace:
        with pytest.raises(RuntimeError, match="inside a"), session.use(METHODS[2]):
            pass
        stream = session.stream(Words(), functools.partial(tiny().generate, **question(2)))
        with pytest.raises(RuntimeError, match="inside a"):
            list(stream)
        assert session.waiting == 0
        out = tiny().generate(**question(2))
    assert (out[0].tolist(), trace.samples[0].tokens_per_layer) == alone(METHODS[1], 2)
    with session.use(METHODS[2]):  # the same caller, later
        pass


def test_another_model_may_be_asked_inside() -> None:
    other = Session(tiny(seed=5))
    with Session(tiny()).hold(), other.hold() as model:
        assert model is tiny(seed=5)


def test_a_block_may_begin_and_end_in_different_threads() -> None:
    """As servers do that run each step of a generator in a thread of a pool, in a copy of their
    context: the threads are not taken for the holder, and the model is free in the end.
    """
    session, expected = Session(tiny()), alone(METHODS[1], 3)[0]

    def steps() -> Iterator[Any]:
        with session.use(METHODS[1]) as trace:
            yield trace
            yield tiny().generate(**question(3))[0].tolist()

    with ThreadPoolExecutor(1) as pool:

        def step(*args: Any) -> Any:
            return pool.submit(contextvars.copy_context().run, *args).result(WAIT)

        generator = steps()
        trace = step(next, generator)
        with pytest.raises(TimeoutError):  # the same thread, for another user: it waits
            step(lambda: session.hold(timeout=0.01).__enter__())
        assert in_other(lambda: next(generator)) == expected
        assert session.busy
        in_other(generator.close)
        assert not session.busy and trace.samples
        with step(lambda: session.hold(timeout=0.01)):
            pass


def in_other(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(WAIT)


def test_waiting_can_time_out_or_be_called_off() -> None:
    session, stop, errors = Session(tiny()), threading.Event(), []

    def wait() -> None:
        try:
            with session.hold(stop=stop):
                pass
        except Stopped as error:
            errors.append(error)

    with session.hold():
        with pytest.raises(TimeoutError, match=r"not free within 0.02 s, 1 are before"):
            in_other(functools.partial(session.generate, None, timeout=0.02, **question(0)))
        assert session.waiting == 0
        thread = in_thread(wait)
        until(lambda: session.waiting == 1)
        stop.set()
        thread.join(WAIT)
        assert len(errors) == 1 and session.waiting == 0


def test_seeded_samples_do_not_depend_on_who_asked_between() -> None:
    session = Session(tiny())
    drawn = functools.partial(question, do_sample=True, temperature=1.5, max_new_tokens=8)
    one = session.generate(METHODS[2], seed=3, **drawn(0)).output.tolist()
    assert session.generate(METHODS[2], seed=4, **drawn(0)).output.tolist() != one
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        ask = lambda i: session.generate(METHODS[2 * (i % 2)], seed=3, **drawn(i % 2))  # noqa: E731
        answers = [a.output.tolist() for a in pool.map(ask, range(8))]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert answers[1::2] == [answers[1]] * 4
    assert session.generate(METHODS[2], seed=3, **drawn(0)).output.tolist() == one


# -------------------------------------------------------------------------------- streams


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
