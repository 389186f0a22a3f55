"""A KV cache that grows in place answers bit for bit as one that concatenates.

The oracle is transformers' own layer: `stock` leaves it in the cache.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tests.visiondrop.matrix import METHODS
from tests.visiondrop.models import LAYERS, batch, generate, logits, pixels, prompt, tiny
from visiondrop import ImageCache, cache
from visiondrop.cache import CacheBlock, make_pruned
from visiondrop.cache_room import LEAST_ROOM, RoomLayer, room_for

ROWS = [prompt(3, 6, 1), prompt(5, 9, 2), prompt(3, 4, 3)]
DROP = METHODS["visiondrop"]  # four blocks


def held_by_stock(keys: Any, values: Any, length: int) -> DynamicLayer:
    layer = DynamicLayer()
    layer.update(keys[:, :, :length], values[:, :, :length])
    return layer


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it to have transformers' own layers from then on."""

    def install() -> None:
        monkeypatch.setattr(cache, "give_room", lambda _: None)
        monkeypatch.setattr(RoomLayer, "holding", held_by_stock)

    return install


def run(name: str, rows: list[list[int]], model: Any = None, **kwargs: Any) -> Any:
    with METHODS[name](model or tiny()) as trace:
        return generate(model or tiny(), rows, pixels(len(rows)), **kwargs), trace


def kinds(out: Any) -> set[type]:
    return {type(layer) for layer in out.past_key_values.layers}


MANY = {"max_new_tokens": 12, "min_new_tokens": 12}


@pytest.mark.parametrize(
    ("name", "rows", "kwargs"),
    [
        ("visiondrop", 1, {"max_new_tokens": 90, "min_new_tokens": 90}),
        ("visiondrop", 3, MANY),
        ("visiondrop-options", 3, MANY),
        ("fastv", 2, {**MANY, "num_beams": 3}),
        ("random", 1, {**MANY, "prompt_lookup_num_tokens": 2}),
        ("full", 2, {**MANY, "num_return_sequences": 2, "do_sample": True}),
        ("vista", 2, MANY),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equal_to_concatenation(
    name: str, rows: int, kwargs: dict[str, Any], attention: str, stock: Any
) -> None:
    model = tiny(kv_heads=2, attention=attention)
    torch.manual_seed(3)
    out, trace = run(name, ROWS[:rows], model, **kwargs)
    assert kinds(out) == {RoomLayer} and trace.paths["cache:grown"] >= LAYERS
    beams = kwargs.get("num_beams", 1) > 1  # reordered at every step
    assert (trace.paths["cache:in_place"] == 0) == beams
    stock()
    torch.manual_seed(3)
    expected, trace = run(name, ROWS[:rows], model, **kwargs)
    assert kinds(expected) == {DynamicLayer} and not trace.paths["cache:grown"]
    assert out.sequences.tolist() == expected.sequences.tolist()
    if "prompt_lookup_num_tokens" not in kwargs:
        assert torch.equal(logits(out), logits(expected))


def test_buffers_stay_and_each_layer_reads_its_own_tokens() -> None:
    steps, width = 7, {}
    model, kv = tiny(), DynamicCache()
    with DROP(model) as trace, torch.no_grad():
        first = {"pixel_values": pixels(1), "logits_to_keep": 1}
        out = model(**batch(ROWS[:1]), past_key_values=kv, use_cache=True, **first)
        sizes = [
            t.untyped_storage().nbytes() for each in kv.layers for t in (each.keys, each.values)
        ]
        assert sum(sizes) == trace.kv_bytes[0], "no room before there is a second step"
        for step in range(steps):
            ids = out.logits[:, -1:].argmax(-1)
            out = model(ids, past_key_values=kv, use_cache=True)
            held = [t for layer in kv.layers for t in (layer.keys, layer.values)]
            if step == 0:
                width = [t.data_ptr() for t in held]
            assert [t.data_ptr() for t in held] == width
            new = (step + 1) * LAYERS * trace.samples[0].bytes_per_token
            assert sum(t.numel() * t.element_size() for t in held) == trace.kv_bytes[0] + new
            assert [each.get_seq_length() for each in kv.layers] == [
                n + step + 1 for n in trace.samples[0].lengths
            ]
    assert len(kv.blocks) == 4
    assert trace.paths["cache:grown"] == LAYERS
    assert trace.paths["cache:in_place"] == (steps - 1) * LAYERS


@pytest.mark.parametrize("name", ["visiondrop", "visiondrop-options"])
def test_second_turn_and_prefix_equal_concatenation(name: str, stock: Any) -> None:
    model, method = tiny(), METHODS[name]

    def talk() -> list[Any]:
        with method(model):
            first = generate(model, ROWS[:1], pixels(1))
            turn = [*first.sequences[0].tolist(), 11, 12, 13]
            second = generate(model, [turn], None, past_key_values=first.past_key_values)
        kept = ImageCache(model, method)
        prefix = kept.build(prompt(3, 0, 1), pixel_values=pixels(1))
        options = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
        asked = kept.generate(prefix, [[11, 12], [13, 14, 15, 16]], do_sample=False, **options)
        return [logits(second), logits(asked), kinds(second), kinds(asked)]

    ours = talk()
    stock()
    theirs = talk()
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert ours[2:] == [{RoomLayer}] * 2 and theirs[2:] == [{DynamicLayer}] * 2


def go_on(model: Any, kv: Any, ids: list[int]) -> list[torch.Tensor]:
    """Logits of each of these tokens, one at a time, as a generator that can be interleaved."""
    for token in ids:
        with torch.no_grad():
            out = model(torch.tensor([[token]]), past_key_values=kv, use_cache=True)
        yield out.logits[0, -1]


@pytest.mark.parametrize("way", ["deepcopy", "copied layers", "given tensors", "one prefix"])
@pytest.mark.parametrize("after", [0, 3])
def test_caches_of_one_origin_do_not_mix(way: str, after: int) -> None:
    """Two that go on from the same tensors, in turns, as each would alone."""
    model, kept = tiny(), ImageCache(tiny(), DROP)
    prefix = kept.build(prompt(3, 0, 1), pixel_values=pixels(1))
    config = model.config.text_config

    def origin() -> Any:
        kv = cache.make_pruned(DynamicCache(config=config))
        joined = join(prefix)
        kv.__dict__.update(joined.__dict__)
        for _ in go_on(model, kv, [5, 6, 7][:after]):
            pass
        return kv

    def join(*prefixes: Any) -> Any:
        from visiondrop.prefix import join_prefixes

        return join_prefixes(prefixes, config)

    def twin(kv: Any) -> Any:
        if way == "one prefix":
            return origin()
        if way == "deepcopy":
            return copy.deepcopy(kv)
        new = copy.copy(kv)
        new.blocks = copy.deepcopy(kv.blocks)
        if way == "copied layers":
            new.layers = [copy.copy(layer) for layer in kv.layers]
        else:
            new.layers = [RoomLayer() for _ in kv.layers]
            for mine, theirs in zip(new.layers, kv.layers, strict=True):
                mine.lazy_initialization(theirs.keys, theirs.values)
                mine.keys, mine.values = theirs.keys, theirs.values
        return new

    texts = [[11, 12, 13, 14], [21, 22, 23, 24]]
    with DROP(model):
        alone = [list(go_on(model, origin(), text)) for text in texts]
        first = origin()
        second = twin(first)
        turns = zip(*(go_on(model, kv, t) for kv, t in zip((first, second), texts)), strict=True)
        for step, pair in enumerate(turns):
            assert torch.equal(pair[0], alone[0][step]) and torch.equal(pair[1], alone[1][step])
    storages = [layer.keys.untyped_storage().data_ptr() for layer in first.layers]
    assert storages != [layer.keys.untyped_storage().data_ptr() for layer in second.layers]
    assert all(t.is_contiguous() for pair in prefix.layers for t in pair)


def states(length: int, rows: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, 2, length, 4, generator=generator) for _ in range(2))


def both() -> list[DynamicLayer]:
    """A stock layer and ours, after a prefill of 5 and two steps."""
    layers = [DynamicLayer(), RoomLayer()]
    for layer in layers:
        for step, length in enumerate((5, 1, 1)):
            layer.update(*states(length, seed=step))
    return layers


CHANGES = {
    "reorder": lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
    "repeat": lambda layer: layer.batch_repeat_interleave(2),
    "select": lambda layer: layer.batch_select_indices(torch.tensor([1])),
    "crop": lambda layer: layer.crop(-2),
    "dropped keys and values": lambda layer: [
        setattr(layer, side, getattr(layer, side)[:, :, [0, 2, 3]]) for side in ("keys", "values")
    ],
    "sliced keys and values": lambda layer: [
        setattr(layer, side, getattr(layer, side)[:, :, :4]) for side in ("keys", "values")
    ],
    "other values": lambda layer: setattr(layer, "values", layer.values * 2),
    "zeroed in place": lambda layer: layer.keys.zero_(),
    "reset": lambda layer: layer.reset(),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_put_in_its_place_is_followed(change: str) -> None:
    layers = both()
    if change == "reset":  # in transformers 5.17 a stock layer holds zeros afterwards
        layers[0] = DynamicLayer()
    for layer in layers:
        CHANGES[change](layer)
        rows = 2 if layer.keys is None else layer.keys.shape[0]
        for seed, length in enumerate((3, 1, LEAST_ROOM, 1)):
            out = layer.update(*states(length, rows, seed + 7))
            assert torch.equal(out[0], layer.keys) and torch.equal(out[1], layer.values)
    stock, ours = layers
    assert stock.get_seq_length() == ours.get_seq_length() == ours.keys.shape[2]
    assert torch.equal(stock.keys, ours.keys) and torch.equal(stock.values, ours.values)


@torch.no_grad()
def test_a_tensor_put_there_is_never_written_to() -> None:
    layer, (keys, values) = RoomLayer(), states(9)
    layer.update(*states(5))
    layer.keys, layer.values = keys[:, :, :4], values[:, :, :4]
    before = keys.clone(), values.clone()
    for seed in range(3):
        layer.update(*states(1, seed=seed))
    assert torch.equal(keys, before[0]) and torch.equal(values, before[1])


def test_gradients_go_through_the_cache() -> None:
    with torch.no_grad():
        layers, grads = both(), []
    for layer in layers:
        key, value = (t.requires_grad_() for t in states(1, seed=9))
        out = layer.update(key, value)
        early = out[0].square().sum()
        later = layer.update(*states(1, seed=10))
        (early + later[1].square().sum()).backward()
        grads.append((key.grad, value.grad))
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1])


def test_inference_mode_and_back() -> None:
    layers = [DynamicLayer(), RoomLayer()]
    for layer in layers:
        with torch.inference_mode():
            for seed in range(3):
                layer.update(*states(2, seed=seed))
        with torch.no_grad():
            for seed in range(3):
                layer.update(*states(1, seed=seed))
    assert torch.equal(layers[0].keys, layers[1].keys)


@torch.no_grad()
def test_what_concatenation_refuses_is_refused() -> None:
    layer = both()[1]
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        layer.update(*states(1, rows=1))


def test_room_grows_with_the_length() -> None:
    assert room_for(10) == LEAST_ROOM and room_for(100 * LEAST_ROOM) > 10 * LEAST_ROOM
    assert room_for(8000) == 1000


def test_other_caches_keep_their_layers() -> None:
    class Own(DynamicLayer):
        pass

    kept = make_pruned(DynamicCache(config=tiny().config.text_config))
    assert {type(layer) for layer in kept.layers} == {RoomLayer} and len(kept.layers) == LAYERS
    lazy = make_pruned(DynamicCache())
    assert lazy.layer_class_to_replicate is RoomLayer
    mixed = DynamicCache()
    mixed.layers = [Own(), DynamicLayer()]
    assert [type(layer) for layer in make_pruned(mixed).layers] == [Own, RoomLayer]
    offloaded = DynamicCache(config=tiny().config.text_config)
    offloaded.offloading = True
    assert {type(layer) for layer in make_pruned(offloaded).layers} == {DynamicLayer}


@pytest.mark.parametrize("padded", [True, False])
def test_a_block_counts_and_masks(padded: bool) -> None:
    """Against masks that are concatenated and counted anew."""
    mask = torch.tensor([[False, False, True, True], [True] * 4]) if padded else None
    expected = torch.ones(2, 4, dtype=torch.bool) if mask is None else mask
    block = CacheBlock(0, mask, expected.sum(1), 4)
    some = torch.tensor([[True, True], [False, True]])
    for step in (1, 1, 3, some, 1, -2, 1, "select", LEAST_ROOM + 9, -70, 2):
        if step == "select":
            index = torch.tensor([1, 0, 0])
            block.select(index)
            expected = expected[index]
        elif isinstance(step, torch.Tensor):
            block.extend(step, 2)
            expected = torch.cat([expected, step], 1)
        elif step < 0:
            block.crop(-step)
            expected = expected[:, :step]
        else:
            block.extend(None, step)
            expected = torch.cat([expected, expected.new_ones(len(expected), step)], 1)
        assert block.length == expected.shape[1]
        assert torch.equal(block.count, expected.sum(1))
        if block.mask is None:
            assert expected.all()
        else:
            assert torch.equal(block.mask, expected)


def test_a_mask_is_not_copied_at_each_step() -> None:
    block = CacheBlock(0, torch.tensor([[False, True], [True, True]]), torch.tensor([1, 2]), 2)
    block.extend(None, 1)
    places = set()
    for _ in range(20):
        block.extend(None, 1)
        places.add(block.mask.data_ptr())
    assert len(places) == 1
