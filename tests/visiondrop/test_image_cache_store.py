"""The store of kept prompt beginnings: what is built once, what goes first, what is refused."""

from __future__ import annotations

import pytest
import torch

from tests.visiondrop.models import PATCHES, generate, logits, pixels, prompt, tiny
from tests.visiondrop.test_image_cache import CLOSE, DROP, HEADS, ask, build, fresh
from visiondrop import ImageCache, Uniform, VisionDrop
from visiondrop.methods.fastv import FastV
from visiondrop.tower_cache import TowerCache


def test_the_same_beginning_is_built_once() -> None:
    model, passes = tiny(), []
    cache = ImageCache(model, DROP)
    handle = model.model.language_model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        one, two = build(cache)
        assert build(cache, HEADS[:1]) == [one]
        again = cache.build_all([{"input_ids": HEADS[0], "pixel_values": pixels(1)}] * 3)
        assert again == [one] * 3
    finally:
        handle.remove()
    assert len(passes) == 1, "both at once, then none"
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.evictions, stats.entries) == (4, 2, 0, 2)
    assert stats.hit_rate == 4 / 6 and stats.held_bytes == one.kv_bytes + two.kv_bytes
    assert one.kv_bytes == one.sample.kv_bytes, "as the ledger has it"


def test_other_pixels_ids_or_methods_are_other_entries() -> None:
    model = tiny()
    cache, images = ImageCache(model, DROP), pixels(2)
    one = cache.build(HEADS[0], pixel_values=images[:1])
    assert cache.build(HEADS[0], pixel_values=images[1:]).key != one.key
    assert cache.build([*HEADS[0], 5], pixel_values=images[:1]).key != one.key
    assert ImageCache(model, Uniform(8)).build(HEADS[0], pixel_values=images[:1]).key != one.key
    assert ImageCache(model, DROP).build(HEADS[0], pixel_values=images[:1]).key == one.key
    named = cache.build(HEADS[0], pixel_values=images[:1], names=["a.jpg"])
    assert named.key != one.key
    hit = cache.build(HEADS[0], pixel_values=images[1:], names=["a.jpg"])
    assert hit is named, "a name stands for its pixels"


def test_the_least_recently_used_go_first_and_may_be_in_use() -> None:
    model = tiny()
    size = ImageCache(model, DROP).build(HEADS[0], pixel_values=pixels(1)).kv_bytes
    cache, images = ImageCache(model, DROP, max_bytes=2 * size), pixels(3)
    held = [cache.build(HEADS[0], pixel_values=images[i : i + 1]) for i in range(2)]
    assert cache.get(held[0].key) is held[0]  # now the second was used longest ago
    third = cache.build(HEADS[0], pixel_values=images[2:])
    assert [p.key in cache for p in (*held, third)] == [True, False, True]
    assert cache.stats.evictions == 1 and cache.stats.held_bytes == 2 * size
    out = ask(cache, held[1], [[11, 12]])
    alone = fresh(model, DROP, [HEADS[0] + [11, 12]], images[1:2])
    torch.testing.assert_close(logits(out), logits(alone), **CLOSE)
    cache.drop(third.key)
    assert cache.stats.held_bytes == size
    cache.clear()
    assert cache.stats.entries == cache.stats.held_bytes == 0


def test_without_room_everything_works_and_nothing_is_held() -> None:
    cache = ImageCache(tiny(), DROP, max_bytes=0)
    one, two = build(cache), build(cache)
    assert cache.stats.misses == 4 and cache.stats.entries == 0
    assert torch.equal(one[0].layers[0][0], two[0].layers[0][0])
    with pytest.raises(ValueError, match="max_bytes=-1: give the bytes"):
        ImageCache(tiny(), DROP, max_bytes=-1)


def test_towers_are_shared_between_methods() -> None:
    model, towers = tiny(), TowerCache(2**20)
    for method in (DROP, Uniform(8), None):
        build(ImageCache(model, method, tower_cache=towers))
    assert (towers.misses, towers.hits) == (2, 4)


# ---------------------------------------------------------------------------- the model is left


def test_hooks_are_gone_and_other_generations_do_not_mix() -> None:
    model, cache = tiny(), ImageCache(tiny(), DROP)
    plain = generate(model, [HEADS[0] + [11]], pixels(1))
    before = len(model.model.language_model._forward_pre_hooks)
    with cache.applied() as trace:
        first = build(cache)[0]
        other = generate(model, [HEADS[1] + [12]], pixels(2)[1:])  # the method is on the model
        assert len(trace.samples) == 1, "prefixes have their own record"
        out = ask(cache, first, [[11]])
        assert cache.applied and ask(cache, first, [[11]]).sequences.tolist() == (
            out.sequences.tolist()
        )
    assert len(model.model.language_model._forward_pre_hooks) == before
    alone = fresh(model, DROP, [HEADS[1] + [12]], pixels(2)[1:])
    torch.testing.assert_close(logits(other), logits(alone), **CLOSE)
    again = generate(model, [HEADS[0] + [11]], pixels(1))
    assert torch.equal(logits(plain), logits(again))
    with pytest.raises(RuntimeError, match="went on|go on with it only inside"):
        model(input_ids=torch.tensor([[5]]), past_key_values=out.past_key_values)


def test_an_error_leaves_the_model_and_the_cache_as_they_were() -> None:
    model, cache = tiny(), ImageCache(tiny(), DROP)
    with pytest.raises(ValueError, match="image tokens do not match"):
        cache.build(HEADS[0][:-1], pixel_values=pixels(1))
    assert cache.stats.entries == 0
    with DROP(model), pytest.raises(RuntimeError, match="cannot be entered on top"):
        build(cache)
    assert len(build(cache)) == 2


def test_what_cannot_be_asked_is_refused() -> None:
    cache = ImageCache(tiny(), DROP)
    prefixes = build(cache)
    with pytest.raises(ValueError, match="2 prefixes for 1 questions: give one for all"):
        ask(cache, prefixes, [[11]])
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens makes .* read the whole prompt"):
        ask(cache, prefixes[0], [[11]], prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="use_cache=False, but kept keys"):
        ask(cache, prefixes[0], [[11]], use_cache=False)
    with pytest.raises(ValueError, match="at least one row"):
        ask(cache, prefixes[0], [[11], []])
    with pytest.raises(ValueError, match="2 prompts at once: build each, or all with build_all"):
        cache.build(torch.ones(2, 5), pixel_values=pixels(1))
    with pytest.raises(ValueError, match="stock class: give pixel_values"):
        cache.build(HEADS[0], images=pixels(1))
    with pytest.raises(ValueError, match="no picture to split behind"):
        cache.split([1, 2, 3])
    with pytest.raises(ValueError, match="cannot be cached: it chooses by the text after"):
        ImageCache(tiny(), FastV(2, tokens=9))
    with pytest.raises(ValueError, match="encoder"):
        ImageCache(tiny(), VisionDrop(encoder=(PATCHES + 9, 1)))
    with pytest.raises(TypeError, match="known"):
        ImageCache(torch.nn.Linear(2, 2), DROP)


def test_split_ends_with_the_last_picture() -> None:
    cache = ImageCache(tiny(), DROP)
    whole = prompt(3, 4, 1, pictures=2)
    head, rest = cache.split(torch.tensor([whole]))
    assert head.tolist() + rest.tolist() == whole and len(rest) == 4
    assert cache.split([1, -200, 7])[0].tolist() == [1, -200]
