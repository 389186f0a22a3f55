"""A decode step that was recorded gives what a step layer by layer gives.

The oracle is the same method without an engine. Recordings of the kind "replay" keep what a CUDA
graph keeps and no more, but take long to make: those tests have wide buckets (`WIDE`), the others
recordings that call their function again (`Held`).
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.visiondrop.decoding import (
    CLOSE,
    DROP,
    ROWS,
    WIDE,
    Talk,
    answer,
    double,
    recorded,
    steps,
)
from tests.visiondrop.engines import Held, cached
from tests.visiondrop.matrix import METHODS
from tests.visiondrop.models import LAYERS, batch, logits, pixels, prompt, tiny
from tests.visiondrop.test_identities import hooks
from visiondrop.engine import Engine, attached
from visiondrop.engine import engine as engine_module
from visiondrop.engine.decode import ends_of
from visiondrop.engine.slot import AHEAD


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "record", Held)


@pytest.fixture
def decode_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefills run layer by layer, as recording them takes long."""
    monkeypatch.setattr(attached, "prefill_blocks", lambda *_: None)


CELLS = [
    ("visiondrop", 1, {}),
    ("visiondrop", 3, {"kv_heads": 2}),
    ("visiondrop", 1, {"attention": "eager", "decoder": "qwen2", "kv_heads": 2}),
    ("visiondrop-options", 1, {"decoder": "mistral", "kv_heads": 1}),
    ("visiondrop-options", 3, {}),
    ("fastv", 1, {"attention": "eager"}),
    ("fastv-renumbered", 3, {"kv_heads": 2}),
    ("random", 3, {}),
    ("random-original", 1, {"kv_heads": 2}),
    ("full", 1, {"attention": "eager", "kv_heads": 2}),
    ("full", 3, {}),
]


@pytest.mark.parametrize(("name", "rows", "model"), CELLS, ids=str)
def test_equal_to_the_plain_step(name: str, rows: int, model: Any, held: None) -> None:
    """With the buckets of the default, for so many tokens that most are left."""
    engine = Engine("replay")
    compare(double(**model), METHODS[name], rows, 48, engine, model.get("attention", "sdpa"))
    assert 10 < len(recorded(engine)) < 47


@pytest.mark.parametrize(
    ("name", "rows", "model"), [("visiondrop", 3, {"kv_heads": 2}), ("visiondrop-options", 1, {})]
)
def test_the_same_from_recordings_that_are_played(
    name: str, rows: int, model: Any, decode_alone: None
) -> None:
    engine = Engine("replay", waste=WIDE)
    compare(double(**model), METHODS[name], rows, 12, engine)
    assert 0 < len(recorded(engine)) < 4


def compare(
    model: Any, method: Any, rows: int, count: int, engine: Engine, attention: str = "sdpa"
) -> None:
    """Texts, logits and the cache that is left."""
    plain, paths = answer(model, method, ROWS[:rows], **steps(count))
    assert not paths["decode:graph"] and not paths["decode:plain"]
    out, paths = answer(model, method, ROWS[:rows], engine, **steps(count))
    assert paths["decode:graph"] == count - 1 and paths["decode:plain"] == 0
    assert out.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(logits(out), logits(plain), **CLOSE[attention])
    mine, theirs = out.past_key_values, plain.past_key_values
    assert mine.get_seq_length() == theirs.get_seq_length()
    torch.testing.assert_close(cached(mine), cached(theirs), **CLOSE[attention])
    for ours, expected in zip(mine.layers, theirs.layers, strict=True):
        assert ours.get_seq_length() == expected.get_seq_length() == ours.keys.shape[2]
    for block, other in zip(mine.blocks, theirs.blocks, strict=True):
        assert torch.equal(block.count, other.count) and block.length == other.length


def test_padded_rows_and_eager_attention(held: None) -> None:
    """In float32: stock eager attention makes NaN of a float64 prefill with padding."""
    model, engine = tiny(attention="eager"), Engine("replay", waste=WIDE)
    plain, _ = answer(model, DROP, ROWS, **steps(4))
    out, paths = answer(model, DROP, ROWS, engine, **steps(4))
    assert paths["decode:graph"] == 3 and out.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(logits(out), logits(plain), atol=1e-5, rtol=1e-5)


def test_in_single_precision(held: None) -> None:
    plain, _ = answer(tiny(), DROP, ROWS[:1], **steps(8))
    out, paths = answer(tiny(), DROP, ROWS[:1], Engine("replay"), **steps(8))
    assert paths["decode:graph"] == 7 and out.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(logits(out), logits(plain), atol=1e-5, rtol=1e-5)


def test_a_second_sample_takes_the_same_recordings(decode_alone: None) -> None:
    model, engine, made = double(), Engine("replay", waste=WIDE), 0
    for row in (ROWS[0], prompt(4, 5, 9), prompt(2, 6, 8)):
        served = engine.served
        out, paths = answer(model, DROP, [row], engine, **steps(6))
        plain, _ = answer(model, DROP, [row], **steps(6))
        assert torch.allclose(logits(out), logits(plain), atol=1e-9)
        made = made or engine.recorded
        assert engine.recorded == made and paths["decode:graph"] == 5
        assert engine.served - served == 5 + paths["prefill:graph"] + paths["tower:graph"]
    assert len(engine.slots) == 1


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2, "temperature": 0.8},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_ways_of_decoding(kwargs: dict[str, Any], held: None) -> None:
    model, engine = double(), Engine("replay", waste=WIDE)
    rows = ROWS[:1] if "prompt_lookup_num_tokens" in kwargs else ROWS[:2]
    torch.manual_seed(4)
    plain, _ = answer(model, DROP, rows, **steps(8), **kwargs)
    torch.manual_seed(4)
    out, paths = answer(model, DROP, rows, engine, **steps(8), **kwargs)
    assert paths["decode:graph"] > 0
    assert out.sequences.tolist() == plain.sequences.tolist()


def test_what_a_recording_cannot_hold_runs_layer_by_layer(held: None) -> None:
    model, engine = double(), Engine("replay", waste=WIDE)
    asked = {"output_hidden_states": True}
    out, paths = answer(model, DROP, ROWS[:1], engine, **steps(3), **asked)
    assert paths["decode:graph"] == 0 and paths["decode:plain"] == 2
    assert len(out.hidden_states[-1]) == LAYERS + 1
    # The hooks that transformers leaves behind do not matter.
    _, paths = answer(model, DROP, ROWS[:1], engine, **steps(3))
    assert paths["decode:graph"] == 2
    seen: list[int] = []
    handle = model.model.language_model.layers[3].register_forward_hook(lambda *_: seen.append(1))
    try:
        _, paths = answer(model, DROP, ROWS[:1], engine, **steps(3))
    finally:
        handle.remove()
    assert paths["decode:graph"] == 0 and len(seen) == 3
    with DROP(model, engine=engine) as trace:  # gradients are recorded here
        kv = DynamicCache()
        first = {"pixel_values": pixels(1).double(), "logits_to_keep": 1}
        model(**batch(ROWS[:1]), past_key_values=kv, **first)
        model(torch.tensor([[5]]), past_key_values=kv).logits.sum().backward()
    assert trace.paths["decode:plain"] == 1
    model.zero_grad()


def test_a_hook_set_between_steps_is_called(held: None) -> None:
    model, seen = double(), []
    with DROP(model, engine=Engine("replay")) as trace:
        talk = Talk(model, ROWS[0], pixels(1))
        talk.step()
        layer = model.model.language_model.layers[3]
        handle = layer.register_forward_hook(lambda *_: seen.append(1))
        try:
            talk.step(2)
        finally:
            handle.remove()
        assert len(seen) == trace.paths["decode:plain"] == 2
        talk.step()
        assert trace.paths["decode:graph"] == 2


def test_layers_and_hooks_are_back_after_an_exception(
    monkeypatch: pytest.MonkeyPatch, held: None
) -> None:
    model, engine = double(), Engine("replay", waste=WIDE)
    decoder = model.model.language_model
    before, layers = hooks(model), decoder.layers

    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    plain, _ = answer(model, DROP, ROWS[:1], **steps(3))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", fails)
        with pytest.raises(ZeroDivisionError):
            answer(model, DROP, ROWS[:1], engine, **steps(3))
    assert decoder.layers is layers and hooks(model) == before
    out, paths = answer(model, DROP, ROWS[:1], engine, **steps(3))
    assert paths["decode:graph"] == 2 and decoder.layers is layers
    assert out.sequences.tolist() == plain.sequences.tolist()


def test_nothing_is_read_back(decode_alone: None) -> None:
    """On the meta device, where no value can be."""
    model = copy.deepcopy(tiny(kv_heads=2)).to("meta")
    rows, kv = 2, DynamicCache()
    ids = batch(ROWS[:rows])
    with DROP(model, engine=Engine("replay", waste=WIDE)) as trace, torch.inference_mode():
        first = {"pixel_values": pixels(rows).to("meta"), "logits_to_keep": 1}
        model(**ids, past_key_values=kv, use_cache=True, **first)
        for _ in range(3):
            out = model(torch.full((rows, 1), 5), past_key_values=kv, use_cache=True)
    assert out.logits.device.type == "meta"
    assert trace.paths["decode:graph"] == 3 and trace.paths["decode:plain"] == 0


def test_little_more_is_read_than_is_held() -> None:
    class Held:
        layers = [None] * 32

        def __init__(self, lengths: list[int]):
            self.blocks = [
                type("Block", (), {"first_layer": 8 * i, "length": n})()
                for i, n in enumerate(lengths)
            ]

    engine, met = Engine("replay"), set()
    for grown in range(AHEAD):
        lengths = [n + grown for n in (230, 170, 130, 110)]
        ends = ends_of(Held([n - 1 for n in lengths]), engine)
        assert all(end >= n for end, n in zip(ends, lengths, strict=True))
        assert sum(ends) <= 1.05 * sum(lengths)
        assert len({e - n for e, n in zip(ends, lengths, strict=True)}) == 1
        met.add(ends)
    assert len(met) <= AHEAD // 4, "one recording serves several steps"
