"""One model, several users: turns in order, and methods that do not mix."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.visiondrop.models import tiny
from tests.visiondrop.users import METHODS, WAIT, Words, alone, in_other, in_thread, question, until
from visiondrop import Session, VisionDrop
from visiondrop.session import Stopped


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
