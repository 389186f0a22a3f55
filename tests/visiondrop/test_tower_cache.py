"""A picture with many questions is encoded once, and nothing changes by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.visiondrop.models import generate, logits, pixels, prompt, tiny
from visiondrop import Random, Reducer, TowerCache, VisionDrop

ROWS = [prompt(3, 6, 1), prompt(3, 4, 2), prompt(3, 9, 3)]
METHODS = [VisionDrop(encoder=(14, 4), llm={2: (10, 3)}), Random(9), VisionDrop()]


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """How many pictures the tower encodes in each call."""
    seen: list[int] = []
    embeddings = model.model.vision_tower.embeddings
    handle = embeddings.register_forward_pre_hook(lambda _m, args: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("method", METHODS, ids=["visiondrop", "random", "no-stage"])
def test_shared_pictures_change_nothing(method: Reducer) -> None:
    model, two = tiny(), pixels(2)
    images, keys = two[[0, 0, 1]], ["q1", "q2", "q3"]
    with method(model, keys=keys) as plain:
        expected = generate(model, ROWS, images)
    with counted(model) as seen, method(model, keys=keys) as trace:
        trace.set_pictures(["a", "a", "b"])
        got = generate(model, ROWS, images)
        assert seen == [2]
        generate(model, ROWS, images)
        assert seen == [2, 2]
    torch.testing.assert_close(logits(got), logits(expected), atol=1e-5, rtol=1e-5)
    both = zip(trace.samples, plain.samples, strict=False)
    assert all(a.to_dict() == b.to_dict() for a, b in both)


def test_store_serves_other_batches_and_methods() -> None:
    model, two = tiny(), pixels(2)
    cache = TowerCache(max_bytes=1 << 20)
    with counted(model) as seen:
        for method in METHODS:
            with method(model, keys=["q"], tower_cache=cache) as trace:
                for name, image in (("a", two[:1]), ("b", two[1:]), ("a", two[:1])):
                    trace.set_pictures([name])
                    generate(model, ROWS[:1], image)
    assert seen == [1, 1] and (cache.hits, cache.misses) == (7, 2)


def test_store_forgets_the_least_recently_used() -> None:
    model, three = tiny(), pixels(3)
    method = VisionDrop()
    with method(model, tower_cache=(cache := TowerCache(1 << 20))) as trace:
        trace.set_pictures(["a"])
        generate(model, ROWS[:1], three[:1])
    one = cache.held_bytes
    assert one > 0
    cache = TowerCache(2 * one)
    with counted(model) as seen, method(model, tower_cache=cache) as trace:
        for name in "abacab":
            trace.set_pictures([name])
            generate(model, ROWS[:1], three["abc".index(name)][None])
    assert len(seen) == 4 and cache.held_bytes == 2 * one


def test_names_must_fit() -> None:
    model = tiny()
    with VisionDrop()(model) as trace, pytest.raises(ValueError, match="2 picture names for 1"):
        trace.set_pictures(["a", "b"])
        generate(model, ROWS[:1], pixels(1))
