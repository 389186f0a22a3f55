"""A picture with many questions is encoded once, and nothing changes by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.visiondrop.models import generate, logits, pixels, prompt, tiny
from visiondrop import Random, Reducer, TowerCache, VisionDrop
from visiondrop.adapters.base import TowerOutput

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


def test_outputs_do_not_depend_on_what_is_held() -> None:
    """With `alone` the tower sees the same company for a picture, whatever came before it: a run
    that goes on in the middle gets the bits of a whole one."""
    model, images = tiny(), dict(zip("abcde", pixels(5), strict=True))
    batches = ["aab", "bcd", "dde", "eba"]
    alone = frozenset(n for n in "abcde" if sum(n in batch for batch in batches) > 1)
    assert alone == frozenset("abde")

    def outputs(wanted: list[str], cache: TowerCache) -> tuple[list[torch.Tensor], list[int]]:
        found = []
        with counted(model) as seen, VisionDrop()(model, tower_cache=cache) as trace:
            for batch in wanted:
                trace.set_pictures(list(batch))
                stack = torch.stack([images[name] for name in batch])
                found.append(torch.cat(model.get_image_features(stack).pooler_output))
        return found, seen

    whole, seen = outputs(batches, TowerCache(1 << 20, alone, hold_all=False))
    assert sum(seen) == 5, "every picture once"
    for kept in (0, 1 << 20):
        for start in range(1, 4):
            later, _ = outputs(batches[start:], TowerCache(kept, alone, hold_all=False))
            for got, expected in zip(later, whole[start:], strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=0)
    shared = TowerCache(1 << 20, alone)
    outputs(batches, shared)
    again, seen = outputs(batches, shared)
    assert seen == [] and shared.misses == 5
    for got, expected in zip(again, whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_pictures_that_pass_together_pass_together_again() -> None:
    """Where the store let one of them go."""
    model, images = tiny(), pixels(3)
    probe = TowerCache(1 << 20)
    with VisionDrop()(model, tower_cache=probe) as trace:
        trace.set_pictures(["a"])
        model.get_image_features(images[:1])
    cache = TowerCache(2 * probe.held_bytes, alone=frozenset())
    with counted(model) as seen, VisionDrop()(model, tower_cache=cache) as trace:
        trace.set_pictures(["a", "b", "c"])
        for _ in range(2):
            model.get_image_features(images)
    assert seen == [3, 3]


def test_tiles_of_a_picture_that_comes_again_pass_together() -> None:
    seen: list[list[float]] = []

    def run(pixels: torch.Tensor) -> TowerOutput:
        seen.append(pixels[:, 0, 0, 0].tolist())
        rows = pixels.flatten(1)[:, None]
        return TowerOutput(rows, rows[None].transpose(0, 1), rows[None].transpose(0, 1), 1.0)

    cache = TowerCache(1 << 20, alone=frozenset("b"), hold_all=False)
    for names in (["a/0", "b/0", "b/1", "c/0"], ["b/0", "b/1", "d/0"]):
        owners = [name[0] for name in names]
        tiles = torch.tensor([float(ord(owner)) for owner in owners]).view(-1, 1, 1, 1)
        out = cache.encode(names, tiles, run, owners)
        assert out.features.flatten().tolist() == tiles.flatten().tolist()
    assert seen == [[97.0, 99.0], [98.0, 98.0], [100.0]]
