"""A prefill in recorded blocks is the prefill layer by layer: logits, kept tokens, cache."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.visiondrop import models, next_models
from tests.visiondrop.engines import Held, assert_same, cached, spoil
from tests.visiondrop.matrix import METHODS, SETTINGS, fits
from tests.visiondrop.test_no_waiting import PICTURES, READERS
from visiondrop import Full, VisionDrop
from visiondrop.adapters import geometry_of
from visiondrop.engine import Engine, EngineError
from visiondrop.engine import engine as engine_module
from visiondrop.engine.buckets import bucket
from visiondrop.methods.fastv import FastV

FAMILIES: dict[str, dict[str, Any]] = {
    "clip-llama": {},
    "clip-mistral-gqa": {"decoder": "mistral", "kv_heads": 2},
    "siglip-qwen2": {"tower": "siglip", "decoder": "qwen2", "kv_heads": 1},
    "clip-next": {},
}
ACCEPTED = [name for name, method in METHODS.items() if not method.extensions()]
REFUSED = [name for name in METHODS if name not in ACCEPTED]
THREE = VisionDrop(encoder=(30, 6), llm={2: (20, 4), 5: (9, 2)})


def tiled(name: str) -> bool:
    """Whether a method reduces any-resolution pictures."""
    try:
        METHODS[name].check(geometry_of(next_models.tiny_next()))
    except ValueError:
        return False
    return True


def cells() -> list[Any]:
    """Each method on two families, alone on one and in a ragged batch on another; each family
    meets both.
    """
    families = list(FAMILIES)
    out = []
    for i, name in enumerate(ACCEPTED):
        usable = [f for f in families if fits(name, f) and (f != "clip-next" or tiled(name))]
        for batch, shift in ((1, 0), (2, 1 + i // 4)):
            out.append((name, usable[(i + shift) % len(usable)], batch))
    return out


def given_to(name: str, family: str, batch: int, seed: int = 0) -> tuple[Any, dict[str, Any], int]:
    """A model, its inputs, and their number of pictures."""
    pictures = 2 if "single" in SETTINGS[name].exempt else 1
    if family == "clip-next":
        sizes = [next_models.SIZES[i % 2] for i in range(batch * pictures)]
        rows = [
            next_models.prompt(3 + seed + 4 * i, 5, i, sizes[i * pictures : (i + 1) * pictures])
            for i in range(batch)
        ]
        seeds = [seed + i for i in range(len(sizes))]
        inputs = next_models.inputs(sizes, seeds)
        return next_models.tiny_next(), models.batch(rows) | inputs, len(sizes)
    rows = [models.prompt(3 + seed + 4 * i, 5, i, pictures) for i in range(batch)]
    count = batch * pictures
    inputs = {**models.batch(rows), "pixel_values": models.pixels(count, seed)}
    return models.tiny(**FAMILIES[family]), inputs, count


def prefill(method: Any, model: Any, inputs: Any, count: int, engine: Engine | None) -> Any:
    names = [str(i) for i in range(count)]
    with method(model, keys=names, questions=names, engine=engine) as trace, torch.no_grad():
        return model(**inputs, logits_to_keep=1), trace


@pytest.mark.parametrize(("name", "family", "batch"), cells())
def test_as_layer_by_layer(name: str, family: str, batch: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(engine_module, "record", Held)
    engine = Engine("replay", waste=0.3)
    model, inputs, count = given_to(name, family, batch, seed=2)
    plain = prefill(METHODS[name], model, inputs, count, None)
    stages = set(METHODS[name].llm_layers())
    looked = {layer - 1 for layer in stages if METHODS[name].looks_back}
    blocks = len({0} | stages | looked)
    longer = given_to(name, family, batch, seed=3)[1:]
    prefill(METHODS[name], model, *longer, engine)
    spoil(engine)
    fast = prefill(METHODS[name], model, inputs, count, engine)
    assert fast[1].paths["prefill:graph"] == blocks and not fast[1].paths["prefill:plain"]
    assert_same(plain, fast, 2e-5)


@pytest.mark.parametrize(("method", "batch"), [(THREE, 1), (FastV(2, tokens=9), 2)])
def test_a_second_length_in_a_bucket_records_nothing(method: Any, batch: int) -> None:
    engine = Engine("replay", waste=0.9)
    model, longer, count = given_to("full", "clip-llama", batch, seed=4)
    shorter = given_to("full", "clip-llama", batch, seed=3)[1]
    first = prefill(method, model, longer, count, engine)
    assert_same(prefill(method, model, longer, count, None), first)
    kept, made = [t.clone() for t in cached(first[0].past_key_values)], engine.recorded
    spoil(engine)
    second = prefill(method, model, shorter, count, engine)
    assert (
        engine.recorded == made == sum(second[1].paths[f"{n}:graph"] for n in ("prefill", "tower"))
    )
    assert_same(prefill(method, model, shorter, count, None), second)
    # The cache of the first sample is its own.
    for before, now in zip(kept, cached(first[0].past_key_values), strict=True):
        assert torch.equal(before, now)
    # The full model is one block; both methods begin with layers of their own.
    prefill(Full(), model, longer, count, engine)
    assert engine.recorded == made + 1


@pytest.mark.parametrize("name", ["visiondrop", "fastv", "prumerge+-trained"])
def test_nothing_is_read_back(name: str) -> None:
    """On the meta device, where no value can be; the second pass runs recordings alone."""
    assert name in PICTURES and name not in READERS
    model = copy.deepcopy(models.tiny(kv_heads=2)).to("meta")
    rows = [models.prompt(5, 7, seed=1), models.prompt(2, 3, seed=2)]
    inputs = {**models.batch(rows), "pixel_values": models.pixels(2).to("meta")}
    engine = Engine("replay")
    prefill(METHODS[name], model, inputs, 2, engine)
    made = engine.recorded
    out, trace = prefill(METHODS[name], model, inputs, 2, engine)
    assert out.logits.device.type == "meta" and engine.recorded == made
    assert trace.paths["prefill:graph"] == made - 1 and trace.paths["tower:graph"] == 1


def test_lengths_share_memory_for_keys_and_values(monkeypatch: Any) -> None:
    """Or else each would hold as much as a KV cache."""
    monkeypatch.setattr(engine_module, "record", Held)
    engine = Engine("replay")
    for seed in (20, 4, 9, 0):
        model, inputs, count = given_to("full", "clip-llama", 1, seed=seed)
        for method in (Full(), THREE):
            prefill(method, model, inputs, count, engine)
    blocks = [r for key, r in engine._recordings.items() if key[0] == "prefill"]
    assert len(blocks) > 9
    assert len({r.inputs[-1].untyped_storage().data_ptr() for r in blocks}) == 1
    config = model.config.text_config
    per_token = 2 * models.LAYERS * config.hidden_size
    held = sum(t.numel() for t in engine._scratch.values())
    assert held == per_token * engine.bucket(inputs["input_ids"].shape[1] + 20)


def test_generation_goes_on_from_a_recorded_prefill(monkeypatch: Any) -> None:
    monkeypatch.setattr(engine_module, "record", Held)
    model, engine = models.tiny(), Engine("replay")
    rows, images = [models.prompt(3, 6, 1), models.prompt(5, 9, 2)], models.pixels(2)
    outs = {}
    for cache, chosen in itertools.product((True, False), (None, engine)):
        with THREE(model, engine=chosen) as trace:
            out = models.generate(model, rows, images, max_new_tokens=5, use_cache=cache)
        outs[cache, chosen is None] = out
        passes = 1 if cache else 5  # without a cache each token is a prefill of its own
        assert trace.paths["prefill:graph"] == (0 if chosen is None else 3 * passes)
    for cache in (True, False):
        one, other = outs[cache, True], outs[cache, False]
        assert torch.equal(one.sequences, other.sequences)
        torch.testing.assert_close(models.logits(one), models.logits(other), atol=1e-4, rtol=1e-4)


def plain_calls() -> dict[str, Any]:
    """What no recording holds: (context, model's changes, arguments of its forward)."""
    return {
        "hidden states": {"output_hidden_states": True},
        "gradients": {"grad": True},
        "autocast": {"autocast": True},
        "eager": {"attention": "eager"},
        "hook": {"hook": True},
    }


@pytest.mark.parametrize("what", plain_calls())
def test_what_no_recording_holds_runs_plain(what: str) -> None:
    asked = plain_calls()[what]
    model = models.tiny(attention=asked.get("attention", "sdpa"))
    inputs = {**models.batch([models.prompt(3, 6, 1)]), "pixel_values": models.pixels(1)}
    hidden = {k: v for k, v in asked.items() if k == "output_hidden_states"}
    calls: list[Any] = []
    handle = None
    if "hook" in asked:
        layer = model.model.language_model.layers[3]
        handle = layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    outs = []
    for engine in (None, Engine("replay")):
        with (
            THREE(model, engine=engine) as trace,
            torch.set_grad_enabled("grad" in asked),
            torch.autocast("cpu", torch.bfloat16, enabled="autocast" in asked),
        ):
            outs.append(model(**inputs, logits_to_keep=1, **hidden))
    if handle is not None:
        handle.remove()
        assert len(calls) == 2
    assert trace.paths["prefill:plain"] == 1 and not trace.paths["prefill:graph"]
    assert torch.equal(outs[0].logits, outs[1].logits)
    assert outs[1].logits.requires_grad == ("grad" in asked)
    if hidden:
        assert len(outs[1].hidden_states) == len(outs[0].hidden_states) == models.LAYERS + 1


def test_hidden_states_asked_for_once_do_not_stop_recordings(monkeypatch: Any) -> None:
    """transformers leaves its hooks on the layers."""
    monkeypatch.setattr(engine_module, "record", Held)
    model = copy.deepcopy(models.tiny())
    inputs = {**models.batch([models.prompt(3, 6, 1)]), "pixel_values": models.pixels(1)}
    with torch.no_grad():
        model(**inputs, output_hidden_states=True)
    assert any(layer._forward_hooks for layer in model.model.language_model.layers)
    _, trace = prefill(Full(), model, inputs, 1, Engine("replay"))
    assert trace.paths["prefill:graph"] == 1


class Stopped(VisionDrop):
    """Somebody presses Ctrl-C in the second stage."""

    def llm_stage(self, view: Any) -> Any:
        if view.layer == 5:
            raise KeyboardInterrupt
        return super().llm_stage(view)


def test_layers_are_back_after_ctrl_c(monkeypatch: Any) -> None:
    """PyTorch runs no hooks behind what is no `Exception`."""
    monkeypatch.setattr(engine_module, "record", Held)
    model, inputs, count = given_to("full", "clip-llama", 1)
    decoder, engine = model.model.language_model, Engine("replay")
    stock = decoder.layers
    with pytest.raises(KeyboardInterrupt):
        with Stopped(llm={2: (20, 4), 5: (9, 2)})(model, engine=engine), torch.no_grad():
            model(**inputs, logits_to_keep=1)
    assert decoder.layers is stock and engine.serving is None
    assert_same(*(prefill(THREE, model, inputs, count, e) for e in (None, engine)))


def test_one_model_at_a_time(monkeypatch: Any) -> None:
    """What an engine holds are the layers of one model."""
    monkeypatch.setattr(engine_module, "record", Held)
    model, inputs, count = given_to("full", "clip-llama", 1)
    other, engine = copy.deepcopy(model), Engine("replay")
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
    with THREE(model, engine=engine):
        with pytest.raises(EngineError, match="at work on another model"):
            with THREE(other, engine=engine):
                pass
    for one in (model, other, model):
        assert_same(*(prefill(THREE, one, inputs, count, e) for e in (None, engine)))
    assert engine.held_bytes > 0
    engine.clear()
    assert engine.held_bytes == 0


def test_adapters_that_can_be_switched_are_refused() -> None:
    model = copy.deepcopy(models.tiny())
    layer = model.model.language_model.layers[1].mlp
    switched = type("Switched", (torch.nn.Linear,), {"disable_adapters": property(lambda _: True)})
    layer.up_proj = switched(*layer.up_proj.weight.shape[::-1], bias=False)
    with pytest.raises(EngineError, match="adapters .Switched.* merge them"):
        with Full()(model, engine=Engine("replay")):
            pass


def hooks(model: Any) -> int:
    return sum(len(p._forward_pre_hooks) + len(p._forward_hooks) for p in model.modules())


class Failing(VisionDrop):
    """Its second stage raises."""

    def llm_stage(self, view: Any) -> Any:
        if view.layer == 5:
            raise RuntimeError("no second stage")
        return super().llm_stage(view)


def test_layers_are_back_after_an_exception(monkeypatch: Any) -> None:
    monkeypatch.setattr(engine_module, "record", Held)
    model, inputs, count = given_to("full", "clip-llama", 1)
    decoder, engine = model.model.language_model, Engine("replay")
    stock, before = decoder.layers, hooks(model)
    with Failing(llm={2: (20, 4), 5: (9, 2)})(model, engine=engine), torch.no_grad():
        with pytest.raises(RuntimeError, match="no second stage"):
            model(**inputs, logits_to_keep=1)
        assert decoder.layers is stock
    assert hooks(model) == before
    assert engine.recorded == 1 + 2  # the tower, and the blocks before that stage
    assert_same(*(prefill(THREE, model, inputs, count, e) for e in (None, engine)))


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_change_layers_are_refused(name: str) -> None:
    model = models.tiny()
    before = hooks(model)
    with pytest.raises(EngineError, match="changes layers from inside"):
        with METHODS[name](model, engine=Engine("replay")):
            pass
    assert hooks(model) == before


def test_positions_of_several_planes_are_refused() -> None:
    from tests.visiondrop.qwen_models import tiny_qwen

    with pytest.raises(EngineError, match="M-RoPE"):
        with Full()(tiny_qwen(), engine=Engine("replay")):
            pass


@given(st.integers(1, 20000), st.floats(0.005, 0.9))
def test_buckets_waste_little(length: int, waste: float) -> None:
    end = bucket(length, waste)
    assert 0 <= end - length < waste * length
    assert bucket(length + 1, waste) >= end
    assert bucket(end, waste) >= end


@pytest.mark.parametrize("waste", [0.02, 0.05, 0.2])
def test_buckets_are_few(waste: float) -> None:
    for low in (64, 500, 3000):
        ends = {bucket(n, waste) for n in range(low, 2 * low)}
        assert len(ends) <= 2 / waste + 2
