"""Methods with a KV cache that holds its entries in few bits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, QuantizedCache
from transformers.cache_utils import Cache, DynamicLayer

from tests.visiondrop.models import LAYERS, batch, generate, logits, pixels, prompt, tiny
from tests.visiondrop.presses import key_norm, press
from tests.visiondrop.quantised import pair
from visiondrop import Full, Uniform, VisionDrop
from visiondrop.engine import Engine

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
STAGES = {2: (10, 3), 4: (7, 2), 6: (4, 1)}
METHODS = {
    "full": Full(),
    "visiondrop": VisionDrop(encoder=(14, 4), llm=STAGES),
    "original": VisionDrop(encoder=(14, 4), llm=STAGES, positions="original"),
    "uniform": Uniform(9),
}
ROW = prompt(5, 6, seed=1)


class CoarseLayer(DynamicLayer):
    """Each token's vector is held as integers with one scale, also the newest; `keys` and `values`
    stay empty and the length is counted apart, as in transformers' quantised layers.
    """

    def __init__(self, bits: int):
        super().__init__()
        self.largest = 2 ** (bits - 1) - 1
        self.held: list[tuple[Tensor, Tensor]] = []
        self.cumulative_length = 0

    def coarse(self, states: Tensor) -> tuple[Tensor, Tensor]:
        scale = states.abs().amax(-1, keepdim=True) / self.largest
        return (states / scale).round().to(torch.int16), scale

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        new = key_states, value_states
        self.cumulative_length += key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(*new)
            self.held = [self.coarse(states) for states in new]
            return new
        before = [q * scale for q, scale in self.held]
        self.held = [
            tuple(torch.cat(pair, 2) for pair in zip(old, self.coarse(states), strict=True))
            for old, states in zip(self.held, new, strict=True)
        ]
        return tuple(torch.cat(pair, 2) for pair in zip(before, new, strict=True))

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.held = [(q[beam_idx], scale[beam_idx]) for q, scale in self.held]


def coarse_cache(bits: int) -> Cache:
    return Cache(layers=[CoarseLayer(bits) for _ in range(LAYERS)])


def packaged(backend: str) -> QuantizedCache:
    """transformers' own cache, or a skip with the reason."""
    options: dict[str, Any] = {"nbits": 4, "q_group_size": 8, "residual_length": 4}
    if backend == "fp8":
        try:
            return QuantizedCache("fp8", tiny().config)
        except (TypeError, ValueError):
            pytest.skip("this transformers has no fp8 cache")
    if backend == "quanto":
        pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    else:
        pytest.importorskip("hqq", reason="hqq is not installed")
        options |= {"nbits": 8, "axis_key": 1, "axis_value": 1}
    return QuantizedCache(backend, tiny().config, **options)


@pytest.mark.parametrize("name", METHODS)
def test_quantised_layers_answer_from_rounded_entries(name):
    """As if a plain cache's entries had been rounded by hand after every step."""
    model, method, tokens = tiny(kv_heads=2), METHODS[name], [7, 8, 9]
    caches: list[Any] = [coarse_cache(6), DynamicCache(config=model.config)]
    out: list[list[Tensor]] = [[], []]
    for cache, seen in zip(caches, out, strict=True):
        by_hand = isinstance(cache, DynamicCache)
        given = dict(past_key_values=cache, logits_to_keep=1)
        with torch.no_grad(), method(model):
            seen.append(model(**batch([ROW]), pixel_values=pixels(1, 3), **given).logits)
            for token in tokens:
                if by_hand:
                    for layer in cache.layers:
                        for part in ("keys", "values"):
                            q, scale = CoarseLayer(6).coarse(getattr(layer, part))
                            setattr(layer, part, q * scale)
                seen.append(model(input_ids=torch.tensor([[token]]), **given).logits)
        if not by_hand:
            assert {type(layer) for layer in cache.layers} == {CoarseLayer}
    assert torch.equal(out[0][0], out[1][0])  # the prompt's own attention sees what it computed
    torch.testing.assert_close(torch.cat(out[0]), torch.cat(out[1]), **CLOSE)
    lengths = [[layer.get_seq_length() for layer in cache.layers] for cache in caches]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("name", METHODS)
def test_with_many_bits_it_is_the_plain_cache(name):
    """Padded batches and beams, which reorder the rows."""
    model, method = tiny(), METHODS[name]
    rows = [ROW, prompt(2, 9, seed=2)]
    for options in ({}, {"num_beams": 3}):
        out = []
        for cache in (coarse_cache(16), None):
            with method(model) as trace:
                out.append(generate(model, rows, pixels(2, 3), past_key_values=cache, **options))
        assert torch.equal(out[0].sequences, out[1].sequences)
        if not options:
            torch.testing.assert_close(logits(out[0]), logits(out[1]), atol=1e-2, rtol=1e-2)
        held = [layer.get_seq_length() for layer in out[0].past_key_values.layers]
        longest = [max(s.lengths[i] for s in trace.samples) for i in range(LAYERS)]
        assert held == [n + 4 for n in longest]


def test_weights_cache_and_dropping_at_once():
    """8-bit weights, a quantised cache, half of each second layer's entries dropped: as a plain
    cache of rounded entries on the model with dequantised weights.
    """
    models = pair("int8", kv_heads=2)
    out = []
    for model, cache in zip(
        models, (coarse_cache(6), DynamicCache(config=tiny().config)), strict=True
    ):
        given = dict(past_key_values=cache, logits_to_keep=1)
        with torch.no_grad(), METHODS["visiondrop"](model):
            model(**batch([ROW]), pixel_values=pixels(1, 3), **given)
            for layer in cache.layers[::2]:
                n = layer.get_seq_length() // 2
                if isinstance(layer, CoarseLayer):
                    layer.held = [(q[:, :, -n:], scale[:, :, -n:]) for q, scale in layer.held]
                    layer.cumulative_length = n
                else:
                    layer.keys, layer.values = layer.keys[:, :, -n:], layer.values[:, :, -n:]
            for layer in cache.layers if isinstance(cache, DynamicCache) else []:
                both = (CoarseLayer(6).coarse(t) for t in (layer.keys, layer.values))
                layer.keys, layer.values = (q * scale for q, scale in both)
            out.append(model(input_ids=torch.tensor([[7, 8]]), **given).logits)
            held = [layer.get_seq_length() for layer in cache.layers]
            assert [held[i] < held[i + 1] for i in range(0, LAYERS, 2)] == [True] * 4
    torch.testing.assert_close(out[0], out[1], **CLOSE)


@pytest.mark.parametrize("kind", ["int8 weights", "packed weights", "cache", "press"])
def test_with_an_engine(kind):
    """Recorded layers compute the same; hooks of a press are seen, and nothing is recorded then."""
    weights = kind.partition(" ")[0]
    model = pair(weights)[0] if weights in ("int8", "packed") else tiny()
    out = []
    for engine in (None, Engine("replay")):
        cache = coarse_cache(8) if kind == "cache" else None
        halved = press(model, key_norm, lambda layer: 0.5) if kind == "press" else nullcontext()
        with METHODS["visiondrop"](model, engine=engine) as trace, halved:
            out.append(generate(model, [ROW], pixels(1, 3), past_key_values=cache))
    torch.testing.assert_close(logits(out[1]), logits(out[0]), **CLOSE)
    held = [[one.get_seq_length() for one in each.past_key_values.layers] for each in out]
    assert held[0] == held[1]
    assert ("prefill:plain" if kind == "press" else "prefill:graph") in trace.paths


@pytest.mark.parametrize(("backend", "near"), [("fp8", 1.0), ("hqq", 1.0), ("quanto", 6.0)])
def test_quantised_caches_of_transformers(backend, near):
    model = tiny()
    packaged(backend)
    for name in ("full", "visiondrop"):
        cache = packaged(backend)
        kinds = [type(layer) for layer in cache.layers]
        with METHODS[name](model) as trace:
            out = generate(model, [ROW], pixels(1, 3), past_key_values=cache)
            plain = generate(model, [ROW], pixels(1, 3))
        assert out.past_key_values is cache and isinstance(cache, QuantizedCache)
        assert [type(layer) for layer in cache.layers] == kinds
        held = [layer.get_seq_length() for layer in cache.layers]
        assert held == [n + 4 for n in trace.samples[0].lengths]
        assert torch.equal(out.logits[0], plain.logits[0])
        assert not torch.equal(out.logits[1], plain.logits[1])
        first = out.sequences[0, len(ROW)] == plain.sequences[0, len(ROW)]
        assert first and (out.logits[1] - plain.logits[1]).abs().max() < near
    options = {"backend": backend}
    if backend != "fp8":
        options |= {"nbits": 4, "q_group_size": 8}
        options |= {"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}
    with METHODS["visiondrop"](model):
        asked = dict(cache_implementation="quantized", cache_config=options)
        out = generate(model, [ROW, prompt(2, 9)], pixels(2, 3), **asked)
    assert type(out.past_key_values).__name__ == "PrunedQuantizedCache"
