"""The vision tower from a recording: what methods see of it, and that it is theirs to keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.visiondrop import internvl_models, models, next_models, onevision_models, video_models
from tests.visiondrop.engines import assert_same, spoil
from visiondrop import Full, TowerCache, VisionDrop
from visiondrop.adapters import adapter_of
from visiondrop.engine import Engine, attached
from visiondrop.methods.tome import ToMe

STAGED = VisionDrop(encoder=(14, 4), llm={2: (10, 3)})
SIZES = next_models.SIZES[:2]


def llava(count: int = 1, seed: int = 0, **model: Any) -> tuple[Any, dict[str, Any]]:
    rows = [models.prompt(3, 6, i) for i in range(count)]
    return models.tiny(**model), models.batch(rows) | {"pixel_values": models.pixels(count, seed)}


def tiles() -> tuple[Any, dict[str, Any]]:
    rows = [next_models.prompt(3, 4, i, [size]) for i, size in enumerate(SIZES)]
    return next_models.tiny_next(), models.batch(rows) | next_models.inputs(SIZES, [1, 2])


def internvl() -> tuple[Any, dict[str, Any]]:
    rows = [internvl_models.prompt(3, 4, 1, [2]), internvl_models.prompt(2, 4, 2, [1])]
    given = internvl_models.inputs([2, 1], [1, 2])
    return internvl_models.tiny_internvl(), models.batch(rows) | given


def video() -> tuple[Any, dict[str, Any]]:
    rows = [video_models.prompt(3, 4, 1, "pv")]
    return video_models.tiny_video(), models.batch(rows) | video_models.inputs("pv", [1, 2])


def onevision() -> tuple[Any, dict[str, Any]]:
    things: list[Any] = [onevision_models.SIZES[0]]
    rows = [onevision_models.prompt(3, 4, 1, things)]
    given = onevision_models.inputs([things], [[1]])
    return onevision_models.tiny_onevision(), models.batch(rows) | given


# family: (model and inputs, how often a tower runs)
FAMILIES: dict[str, tuple[Callable[[], tuple[Any, dict[str, Any]]], int]] = {
    "clip": (llava, 1),
    "siglip": (lambda: llava(2, tower="siglip", decoder="qwen2"), 1),
    "clip-eager": (lambda: llava(attention="eager"), 1),
    "tiles": (tiles, 1),
    "internvl": (internvl, 1),
    "video": (video, 2),
    "onevision": (onevision, 1),
}


def prefill(method: Any, model: Any, inputs: Any, engine: Engine | None, **options: Any) -> Any:
    pictures = options.pop("pictures", None)
    with method(model, engine=engine, **options) as trace, torch.no_grad():
        trace.set_pictures(pictures)
        return model(**inputs, logits_to_keep=1), trace


@pytest.fixture
def tower_alone(monkeypatch: Any) -> None:
    """The decoder runs plain, as recording it takes time."""
    monkeypatch.setattr(attached, "prefill_blocks", lambda *_: None)


@pytest.mark.usefixtures("tower_alone")
@pytest.mark.parametrize("family", FAMILIES)
def test_as_without_an_engine(family: str) -> None:
    make, runs = FAMILIES[family]
    model, inputs = make()
    engine, method = Engine("replay"), VisionDrop(llm={2: (10, 3)})
    plain = prefill(method, model, inputs, None)
    for _ in range(2):
        fast = prefill(method, model, inputs, engine)
        assert fast[1].paths["tower:graph"] == runs and not fast[1].paths["tower:plain"]
        assert_same(plain, fast, 2e-5)
        made = [key for key in engine._recordings if key[0] == "tower"]
        assert len(made) == runs
        spoil(engine)


def outputs(model: Any, pixels: Tensor, engine: Engine | None) -> Any:
    with torch.no_grad():
        return adapter_of(model).with_engine(engine).encode(model, pixels)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_features_queries_and_keys(tower: str) -> None:
    """Of several pictures, kept across the next replay; another number is another recording."""
    model, engine = models.tiny(tower), Engine("replay")
    kept = []
    for seed in range(3):
        pixels = models.pixels(2, seed)
        kept.append((outputs(model, pixels, None), outputs(model, pixels, engine)))
    assert engine.recorded == 1 and engine.served == 3
    for plain, fast in kept:
        assert plain.scale == fast.scale
        for what in ("features", "query", "key"):
            assert torch.equal(getattr(plain, what), getattr(fast, what))
    outputs(model, models.pixels(3), engine)
    assert engine.recorded == 2
    assert adapter_of(model).engine is None


@pytest.mark.usefixtures("tower_alone")
def test_a_store_holds_tensors_of_its_own() -> None:
    model, engine = models.tiny(), Engine("replay")
    towers = TowerCache(1 << 20)
    samples = [llava(1, seed)[1] for seed in range(3)]
    plain = [prefill(STAGED, model, sample, None) for sample in samples]
    for again in range(2):
        for i, sample in enumerate(samples):
            given = {"tower_cache": towers, "pictures": [str(i)]}
            fast = prefill(STAGED, model, sample, engine, **given)
            assert fast[1].paths["tower:graph"] == 1 - again
            assert_same(plain[i], fast, 2e-5)
            spoil(engine)


@pytest.mark.usefixtures("tower_alone")
def test_what_no_recording_holds_runs_plain() -> None:
    model, inputs = llava()
    merged = prefill(ToMe(12), model, inputs, Engine("replay"))
    assert merged[1].paths["tower:plain"] == 1 and not merged[1].paths["tower:graph"]
    assert_same(prefill(ToMe(12), model, inputs, None), merged)
    calls: list[Any] = []
    layer = model.model.vision_tower.encoder.layers[0]
    handle = layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    try:
        engine = Engine("replay")
        for _ in range(2):
            _, trace = prefill(Full(), model, inputs, engine)
            assert trace.paths["tower:plain"] == 1 and not trace.paths["tower:graph"]
    finally:
        handle.remove()
    assert len(calls) == 2
    with Full()(model, engine=engine) as trace:  # gradients are wanted
        assert model(**inputs, logits_to_keep=1).logits.requires_grad
    assert trace.paths["tower:plain"] == 1
