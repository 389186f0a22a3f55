"""Generations whose KV cache lies in an engine's slot: they share it, leave it and come back.

The oracle is the same generation without an engine.
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
    close,
    double,
    recorded,
    steps,
)
from tests.visiondrop.engines import Held, spoil
from tests.visiondrop.models import LAYERS, batch, generate, logits, pixels, prompt
from visiondrop.cache_room import RoomLayer
from visiondrop.engine import Engine
from visiondrop.engine import engine as engine_module
from visiondrop.engine.slot import AHEAD, GRAIN, capacity_for


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "record", Held)


@pytest.mark.parametrize("way", ["in turns", "deepcopy", "one leaves"])
def test_two_generations_do_not_mix(way: str, held: None) -> None:
    model, engine, image = double(), Engine("replay", waste=WIDE), pixels(2)
    rows = [prompt(3, 6, 1), prompt(6, 5, 7)]
    with DROP(model):
        alone = [Talk(model, row, image[i : i + 1]) for i, row in enumerate(rows)]
        for talk in alone:
            talk.step(6)
    with DROP(model, engine=engine) as trace:
        if way == "deepcopy":
            first = Talk(model, rows[0], image[:1])
            first.step(2)
            second = copy.copy(first)
            second.kv, second.seen = copy.deepcopy(first.kv), list(first.seen)
            for _ in range(4):
                first.step()
                second.step()
            close(first, alone[0])
            close(second, alone[0])
            return
        talks = [Talk(model, row, image[i : i + 1]) for i, row in enumerate(rows)]
        for count in (1, 2, 3) if way == "in turns" else (6,):
            for talk in talks:
                talk.step(count)
        for talk, expected in zip(talks, alone, strict=True):
            close(talk, expected)
        assert trace.paths["decode:graph"] == 12
        held = [t.kv.layers[0].keys.untyped_storage().data_ptr() for t in talks]
        assert held[0] != held[1]
        assert talks[0].kv.layers[0].keys.shape[2] == talks[0].lengths()[0]


def test_nothing_of_an_earlier_sample_reaches_a_later_one(held: None) -> None:
    """NaN of a sample that overflowed, where the next one has no tokens yet."""
    model, engine = double(), Engine("replay", waste=WIDE)
    plain, _ = answer(model, DROP, ROWS[:1], **steps(4))
    for _ in range(2):
        out, paths = answer(model, DROP, ROWS[:1], engine, **steps(4))
        assert paths["decode:graph"] == 3
        assert out.sequences.tolist() == plain.sequences.tolist()
        for one, other in zip(out.logits, plain.logits, strict=True):
            torch.testing.assert_close(one, other, **CLOSE["sdpa"])
        del out
        spoil(engine)


def test_what_others_do_to_a_cache_between_steps_is_seen(held: None) -> None:
    """Cropping, tokens in a block of several, dropped columns and rows that are chosen."""
    model, image = double(), pixels(1)

    def talk(engine: Engine | None) -> Talk:
        with DROP(model, engine=engine) as trace:
            one = Talk(model, ROWS[0], image)
            one.step(2)
            one.kv.crop(-1)
            one.step(1)
            one.tell(torch.tensor([[5, 6, 7]]))
            one.step(1)
            one.kv.crop(-2)
            one.tell(torch.tensor([[8, 9]]))
            one.step(1)
            for layer, count in ((one.kv.layers[3], 4), (one.kv.layers[6], 2)):
                kept = [0, *range(count, layer.keys.shape[2])]
                layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
            one.step(2)
            one.kv.reorder_cache(torch.tensor([0]))
            one.step(1)
            if engine is not None:
                assert trace.paths["decode:graph"] == 8 and trace.paths["decode:plain"] == 2
        return one

    close(talk(Engine("replay", waste=WIDE)), talk(None))


def test_padding_within_the_new_tokens_moves_positions(held: None) -> None:
    """Same length, other padding than the slot was written for."""
    model = double()

    def talk(engine: Engine | None) -> list[torch.Tensor]:
        seen, kv = [], DynamicCache()
        with DROP(model, engine=engine), torch.no_grad():
            first = batch(ROWS[:2])
            kwargs = {"past_key_values": kv, "use_cache": True}
            model(**first, pixel_values=pixels(2).double(), logits_to_keep=1, **kwargs)
            mask = first["attention_mask"]
            # The last two leave as many columns as the first, one of them padding.
            for new in ([[1], [1]], None, [[0, 1], [1, 1]], [[1], [1]]):
                if new is None:
                    kv.crop(-2)
                    mask = mask[:, :-2]
                    continue
                mask = torch.cat([mask, torch.tensor(new)], 1)
                ids = torch.full((2, len(new[0])), 7 + len(seen))
                seen.append(model(ids, attention_mask=mask, **kwargs).logits[:, -1])
        return seen

    ours, plain = talk(Engine("replay", waste=WIDE)), talk(None)
    torch.testing.assert_close(ours, plain, **CLOSE["sdpa"])


def test_a_second_turn_goes_on_from_a_slot(held: None) -> None:
    """Within the engine, and without one after it."""
    model, engine = double(), Engine("replay", waste=WIDE)
    expected: list[Any] = []
    for first, second in ((None, None), (engine, engine), (engine, None)):
        out, _ = answer(model, DROP, ROWS[:1], first, **steps(4))
        turn = [*out.sequences[0].tolist(), 11, 12, 13]
        with DROP(model, engine=second) as trace:
            kv = {"past_key_values": out.past_key_values}
            again = generate(model, [turn], None, **kv, **steps(4))
        assert trace.paths["decode:graph"] == (3 if second else 0)
        expected.append(logits(again))
        torch.testing.assert_close(expected[-1], expected[0], **CLOSE["sdpa"])


def test_a_long_generation_outgrows_its_slot(held: None) -> None:
    model, engine = double(), Engine("replay", waste=0.95)
    count = GRAIN + 10
    plain, _ = answer(model, DROP, ROWS[:1], **steps(count))
    out, paths = answer(model, DROP, ROWS[:1], engine, **steps(count))
    assert out.sequences.tolist() == plain.sequences.tolist()
    assert paths["decode:graph"] == count - 1 and len(engine.slots) == 1
    (slot,) = engine.slots.values()
    assert {key[0] for key in recorded(engine)} == {slot.serial}, (
        "recordings of the slot before are gone"
    )
    assert slot.serial > 0 and max(slot.capacities) > GRAIN


def test_tokens_are_copied_to_a_slot_once(held: None, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    plain = RoomLayer.move_in

    def counted(layer: RoomLayer, *args: Any) -> None:
        moves.append(1)
        plain(layer, *args)

    monkeypatch.setattr(RoomLayer, "move_in", counted)
    _, paths = answer(double(), DROP, ROWS[:1], Engine("replay"), **steps(9))
    assert len(moves) == LAYERS and not paths["cache:grown"] and not paths["cache:in_place"]


def test_a_slot_has_room_for_an_answer() -> None:
    for end in (1, GRAIN - 1, GRAIN, 1000):
        assert end + AHEAD <= capacity_for(end) < end + AHEAD + GRAIN
        assert capacity_for(end) % GRAIN == 0
