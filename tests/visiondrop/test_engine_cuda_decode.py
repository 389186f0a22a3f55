"""CUDA graphs of the decode step: batches with padding, slots that grow, generations in turns.

On other machines the same contract is tested in test_engine_decode.py and test_engine_slots.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.visiondrop import models
from tests.visiondrop.decoding import DROP, ROWS, WIDE, recorded, steps
from tests.visiondrop.engines import cached
from tests.visiondrop.matrix import METHODS
from visiondrop import Reducer
from visiondrop.engine import Engine
from visiondrop.engine.slot import GRAIN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CLOSE = {"atol": 5e-5, "rtol": 1e-5}


def on_cuda(**family: Any) -> Any:
    return copy.deepcopy(models.tiny(**family)).to("cuda")


def given_to(rows: list[list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    inputs = {**models.batch(rows), "pixel_values": models.pixels(len(rows), seed)}
    return {name: tensor.to("cuda") for name, tensor in inputs.items()}


def answer(
    model: Any, method: Reducer, rows: list[list[int]], engine: Engine | None, count: int
) -> Any:
    with method(model, engine=engine) as trace:
        out = model.generate(
            **given_to(rows), **steps(count), do_sample=False, suppress_tokens=[models.IMAGE],
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    return out, trace.paths


def compare(model: Any, method: Reducer, rows: list[list[int]], engine: Engine, count: int) -> None:
    """Texts, logits and the cache that is left; every step a replay."""
    plain, paths = answer(model, method, rows, None, count)
    assert not paths["decode:graph"]
    out, paths = answer(model, method, rows, engine, count)
    assert paths["decode:graph"] == count - 1 and paths["decode:plain"] == 0
    assert out.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(models.logits(out), models.logits(plain), **CLOSE)
    mine, theirs = cached(out.past_key_values), cached(plain.past_key_values)
    torch.testing.assert_close(mine, theirs, **CLOSE)


CELLS = [
    ("visiondrop", 3, {"kv_heads": 2}),
    ("visiondrop-options", 1, {"decoder": "qwen2", "kv_heads": 2}),
    ("fastv", 3, {}),
    ("random", 2, {"kv_heads": 2}),
    ("full", 3, {}),
]


@pytest.mark.parametrize(("name", "rows", "family"), CELLS, ids=str)
def test_a_batch_with_padding(name: str, rows: int, family: dict[str, Any]) -> None:
    """Over many buckets, then once more from the recordings that are there, then rows that are
    padded otherwise.
    """
    model, engine = on_cuda(**family), Engine("cuda")
    compare(model, METHODS[name], ROWS[:rows], engine, 40)
    made = engine.recorded
    assert 5 < len(recorded(engine)) < 39
    compare(model, METHODS[name], ROWS[:rows], engine, 40)
    assert engine.recorded == made
    compare(model, METHODS[name], ROWS[:rows][::-1], engine, 12)


def test_a_generation_outgrows_its_slot() -> None:
    """Others before and behind it."""
    model, engine = on_cuda(), Engine("cuda", waste=WIDE)
    compare(model, DROP, ROWS[:1], engine, 8)
    (before,) = engine.slots.values()
    compare(model, DROP, ROWS[:1], engine, GRAIN + 10)
    (slot,) = engine.slots.values()
    assert slot.serial != before.serial and max(slot.capacities) > max(before.capacities)
    assert {key[0] for key in recorded(engine)} == {slot.serial}
    compare(model, DROP, ROWS[:1], engine, 8)
    assert len(engine.slots) == 1
    compare(model, DROP, ROWS, engine, 8)  # three rows have a slot of their own
    compare(model, DROP, ROWS[:1], engine, 8)
    assert len(engine.slots) == 2


class Talk:
    """A generation step by step, so that others come between."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]):
        self.model, self.kv = model, DynamicCache(config=model.config.text_config)
        self.seen: list[torch.Tensor] = []
        self.tell(inputs.pop("input_ids"), **inputs, logits_to_keep=1)

    def tell(self, ids: torch.Tensor, **kwargs: Any) -> None:
        with torch.no_grad():
            out = self.model(ids, past_key_values=self.kv, use_cache=True, **kwargs)
        self.seen.append(out.logits[:, -1].clone())

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.tell(self.seen[-1].argmax(-1)[:, None])


def test_two_generations_in_turns() -> None:
    """One slot for both, and a prefill between steps, which writes to the memory of all graphs."""
    model, engine = on_cuda(), Engine("cuda")
    rows = [models.prompt(3, 6, 1), models.prompt(6, 5, 7)]
    with DROP(model):
        alone = [Talk(model, given_to([row], i)) for i, row in enumerate(rows)]
        for talk in alone:
            talk.step(6)
    with DROP(model, engine=engine) as trace:
        first = Talk(model, given_to(rows[:1], 0))
        first.step(2)
        second = Talk(model, given_to(rows[1:], 1))
        for count in (1, 2, 1):
            second.step(count)
            first.step(count)
        second.step(2)
    assert trace.paths["decode:graph"] == 12 and trace.paths["prefill:graph"] == 8
    assert trace.paths["decode:plain"] == 0 and len(engine.slots) == 1
    for talk, expected in zip((first, second), alone, strict=True):
        torch.testing.assert_close(torch.stack(talk.seen), torch.stack(expected.seen), **CLOSE)
        torch.testing.assert_close(cached(talk.kv), cached(expected.kv), **CLOSE)


@pytest.mark.parametrize("count", [1, 3])
def test_in_bfloat16(count: int) -> None:
    """The same tokens are told after the same prefill, as a rounding may change what is kept or
    said. Steps differ by roundings of the attention alone.
    """
    model, engine = on_cuda(kv_heads=2).to(torch.bfloat16), Engine("cuda")
    inputs = given_to(ROWS[:count])
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    talks = []
    for used in (None, engine):
        with DROP(model):
            talk = Talk(model, dict(inputs))
        with DROP(model, engine=used) as trace:
            for token in range(2, 14):
                # Left padding lies in the cache, so a step's mask is that of the cache.
                talk.tell(torch.full((count, 1), token, device=inputs["input_ids"].device))
        assert trace.paths["decode:graph"] == (12 if used else 0)
        assert trace.paths["decode:plain"] == 0
        talks.append(torch.stack(talk.seen).float())
    plain, fast = talks
    assert torch.equal(plain[0], fast[0]), "the same prefill"
    away = (fast - plain).norm(dim=-1) / plain.norm(dim=-1)
    assert plain.isfinite().all() and away.max() < 0.05
