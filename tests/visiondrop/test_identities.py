"""Identities that hold for every method, family, attention and batch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.visiondrop.matrix import METHODS, WHOLE, exempt, fits
from tests.visiondrop.models import (
    IMAGE,
    LAYERS,
    PATCHES,
    batch,
    generate,
    logits,
    pixels,
    prompt,
    tiny,
)
from visiondrop import VisionDrop
from visiondrop.reducer import Reducer

CLOSE = {"atol": 2e-4, "rtol": 1e-4}

FAMILIES: dict[str, dict[str, Any]] = {
    "clip-llama": {},
    "clip-llama-gqa": {"kv_heads": 2},
    "siglip-qwen2": {"tower": "siglip", "decoder": "qwen2", "kv_heads": 2},
    "clip-mistral": {"decoder": "mistral", "kv_heads": 1},
}
ATTENTIONS = ("sdpa", "eager")


IDENTITY = {
    "test_cached_equals_recomputed": "recomputed",
    "test_ledger_equals_cache_lengths": "ledger",
}


def cells(methods: list[str]) -> list[Any]:
    """Every method with every family; the attention alternates so that each pair of values
    meets.
    """
    out = []
    for i, (method, family) in enumerate(itertools.product(methods, FAMILIES)):
        if fits(method, family):
            attention = ATTENTIONS[(i + i // 4) % 2]
            out.append(pytest.param(method, family, attention, id=f"{method}-{family}"))
    return out


def names(*identities: str) -> list[str]:
    """Entries of the matrix that are not exempt from any of the identities."""
    return [name for name in METHODS if not any(exempt(name, i) for i in identities)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"name", "family", "attention"} <= set(metafunc.fixturenames):
        function = metafunc.function.__name__
        methods = names("single", IDENTITY.get(function, "single"))
        if function == "test_full_budget_equals_unpruned":
            methods = list(WHOLE)
        if metafunc.config.getoption("--all-cells"):
            every = itertools.product(methods, FAMILIES, ATTENTIONS)
            values: list[Any] = [cell for cell in every if fits(cell[0], cell[1])]
        else:
            values = cells(methods)
        metafunc.parametrize("name, family, attention", values)


ROWS = [prompt(3, 6, 1), prompt(5, 9, 2), prompt(3, 4, 3)]


def questions(images: torch.Tensor) -> list[str]:
    """A question that goes with each picture, for methods with a text encoder of their own."""
    return [f"is it {int(picture[0, 0, 0] * 1e4) % 100}?" for picture in images.float()]


def run(model: Any, method: Reducer, rows: list[list[int]], images: torch.Tensor, **kw: Any) -> Any:
    with method(model, questions=questions(images)) as trace:
        return generate(model, rows, images, **kw), trace


def test_batch_equals_singles(name: str, family: str, attention: str) -> None:
    model = tiny(**FAMILIES[family], attention=attention)
    images = pixels(3)
    out, trace = run(model, METHODS[name], ROWS, images)
    for i, row in enumerate(ROWS):
        one, single = run(model, METHODS[name], [row], images[i : i + 1])
        torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], **CLOSE)
        assert trace.samples[i].to_dict() == single.samples[0].to_dict()
        assert out.sequences[i, -5:].tolist() == one.sequences[0, -5:].tolist()


def test_sdpa_equals_eager(name: str, family: str, attention: str) -> None:
    images = pixels(3)
    outs = []
    for kind in ATTENTIONS:
        model = tiny(**FAMILIES[family], attention=kind)
        outs.append(run(model, METHODS[name], ROWS, images))
    torch.testing.assert_close(logits(outs[0][0]), logits(outs[1][0]), **CLOSE)
    assert outs[0][1].to_dict() == outs[1][1].to_dict()


def test_cached_equals_recomputed(name: str, family: str, attention: str) -> None:
    """Decoding on the cache = running everything again for each token (the stages choose alike)."""
    model = tiny(**FAMILIES[family], attention=attention)
    images = pixels(3)
    cached, trace = run(model, METHODS[name], ROWS, images)
    fresh, again = run(model, METHODS[name], ROWS, images, use_cache=False)
    torch.testing.assert_close(logits(cached), logits(fresh), **CLOSE)
    stages = [[[stage.to_dict() for stage in s.stages] for s in t.samples] for t in (trace, again)]
    assert stages[0] == stages[1]
    assert len(again.samples) == len(ROWS)


def test_ledger_equals_cache_lengths(name: str, family: str, attention: str) -> None:
    model = tiny(**FAMILIES[family], attention=attention)
    method = METHODS[name]
    row = ROWS[1]
    out, trace = run(model, method, [row], pixels(1))
    plan = method.ledger(LAYERS, PATCHES, has_cls=family.startswith("clip"))
    assert trace.samples[0].tokens_per_layer == plan
    text = len(row) - PATCHES
    held = [layer.get_seq_length() for layer in out.past_key_values.layers]
    assert held == [text + visual + 4 for visual in plan]
    size = 2 * model.config.text_config.num_key_value_heads * 8 * 4
    assert trace.kv_bytes == [sum(text + visual for visual in plan) * size]


def test_hooks_gone_after_exit_and_exception(name: str, family: str, attention: str) -> None:
    model = tiny(**FAMILIES[family], attention=attention)
    plain = generate(model, ROWS, pixels(3))
    before = hooks(model)
    with METHODS[name](model):
        assert hooks(model) != before
    assert hooks(model) == before
    with pytest.raises(ZeroDivisionError), METHODS[name](model):
        raise ZeroDivisionError
    assert hooks(model) == before and "get_image_features" not in model.model.__dict__
    assert torch.equal(logits(generate(model, ROWS, pixels(3))), logits(plain))


def hooks(model: Any) -> list[int]:
    return [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__)
        for m in model.modules()
    ]


def test_full_budget_equals_unpruned(name: str, family: str, attention: str) -> None:
    method = WHOLE[name]
    model = tiny(**FAMILIES[family], attention=attention)
    rows, images = [*ROWS, prompt(2, 3, 5, pictures=2)], pixels(5)
    plain = generate(model, rows, images)
    out, trace = run(model, method, rows, images)
    torch.testing.assert_close(logits(out), logits(plain), **CLOSE)
    assert out.sequences.tolist() == plain.sequences.tolist()
    assert [s.mean_tokens for s in trace.samples] == [PATCHES] * 3 + [2 * PATCHES]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_all_of_577_equals_cls_and_patches_by_hand(attention: str) -> None:
    """VisionDrop's encoder stage with every token = the decoder fed CLS and all patches."""
    model = tiny(attention=attention)
    images, rows = pixels(2), [prompt(3, 6, 1), prompt(5, 9, 2)]
    out, _ = run(
        model,
        VisionDrop(encoder=(PATCHES + 1, 0)),
        rows,
        images,
        max_new_tokens=1,
        min_new_tokens=1,
    )
    for i, row in enumerate(rows):
        with torch.no_grad():
            hidden = model.model.vision_tower(images[i : i + 1], output_hidden_states=True)
            visual = model.model.multi_modal_projector(hidden.hidden_states[-2])
            words = model.get_input_embeddings()(torch.tensor([row]))
            at = row.index(IMAGE)
            embeds = torch.cat([words[:, :at], visual, words[:, at + PATCHES :]], 1)
            expected = model.lm_head(model.model.language_model(inputs_embeds=embeds)[0][:, -1])
        torch.testing.assert_close(out.logits[0][i : i + 1], expected, **CLOSE)


def test_interleaved_generations_do_not_mix() -> None:
    """Two decodes step by step on one model, inside one context, each with its own cache."""
    model, method = tiny(), METHODS["visiondrop"]
    rows, images = [prompt(3, 6, 1), prompt(6, 5, 7)], pixels(2)
    alone = [run(model, method, [row], images[i : i + 1])[0] for i, row in enumerate(rows)]
    caches: list[Any] = [DynamicCache(config=model.config.text_config) for _ in rows]
    ids = [torch.tensor([row]) for row in rows]
    seen: list[list[torch.Tensor]] = [[], []]
    with method(model), torch.no_grad():
        for step in range(5):
            for i in (0, 1):
                first = {"pixel_values": images[i : i + 1]} if step == 0 else {}
                out = model(
                    ids[i], past_key_values=caches[i], use_cache=True, logits_to_keep=1, **first
                )
                seen[i].append(out.logits[0, -1])
                ids[i] = out.logits[:, -1].argmax(-1, keepdim=True)
    for i in (0, 1):
        torch.testing.assert_close(torch.stack(seen[i]), logits(alone[i])[:, 0], **CLOSE)


@pytest.mark.parametrize("name", names("single", "chat"))
def test_chat_turn_on_kept_cache_equals_fresh_prompt(name: str) -> None:
    model, method = tiny(), METHODS[name]
    first, images = prompt(3, 6, 1), pixels(1)
    with method(model, questions=questions(images)):
        out = generate(model, [first], images)
        turn = [*out.sequences[0].tolist(), 11, 12, 13]
        kept = generate(model, [turn], None, past_key_values=out.past_key_values)
    fresh, _ = run(model, method, [turn], images)
    torch.testing.assert_close(logits(kept), logits(fresh), **CLOSE)


@pytest.mark.parametrize("name", names("single", "beams"))
@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 2},
        {"num_return_sequences": 2, "do_sample": True},
    ],
    ids=["beams", "prompt-lookup", "sampling"],
)
def test_ways_of_decoding(name: str, kwargs: dict[str, Any]) -> None:
    """With nothing dropped they equal the unpruned model; with a method batch = singles (beams)."""
    model, method = tiny(), METHODS[name]
    rows, images = ROWS[:2], pixels(2)
    if "prompt_lookup_num_tokens" in kwargs:
        plain, _ = run(model, method, rows[:1], images[:1])
        out, _ = run(model, method, rows[:1], images[:1], **kwargs)
        assert out.sequences.tolist() == plain.sequences.tolist()
        return
    if kwargs.get("do_sample"):
        torch.manual_seed(5)
        out, _ = run(model, method, rows[:1], images[:1], **kwargs)
        torch.manual_seed(5)
        again, _ = run(model, method, rows[:1], images[:1], use_cache=False, **kwargs)
        assert out.sequences.tolist() == again.sequences.tolist()
        return
    out, _ = run(model, method, rows, images, **kwargs)
    for i, row in enumerate(rows):
        one, _ = run(model, method, [row], images[i : i + 1], **kwargs)
        assert out.sequences[i, -5:].tolist() == one.sequences[0, -5:].tolist()
        slow, _ = run(model, method, [row], images[i : i + 1], use_cache=False, **kwargs)
        assert slow.sequences[0].tolist() == one.sequences[0].tolist()


@pytest.mark.parametrize("name", names("single", "several"))
def test_prompts_without_and_with_several_pictures(name: str) -> None:
    """A text-only row, one picture and two pictures in one batch = each alone."""
    model, method = tiny(), METHODS[name]
    rows = [prompt(4, 0, 1, pictures=0), prompt(3, 6, 2), prompt(2, 4, 3, pictures=2)]
    images = pixels(3)
    out, trace = run(model, method, rows, images)
    plain = generate(model, rows[:1], None)
    torch.testing.assert_close(logits(out)[:, 0], logits(plain)[:, 0], **CLOSE)
    for i, own in ((1, images[:1]), (2, images[1:])):
        one, single = run(model, method, [rows[i]], own)
        torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], **CLOSE)
        assert trace.samples[i - 1].to_dict() == single.samples[0].to_dict()
    if not exempt(name, "ledger"):
        assert trace.samples[1].tokens_per_layer == [
            2 * n for n in trace.samples[0].tokens_per_layer
        ]


def test_text_only_batch_inside_context() -> None:
    model = tiny()
    rows = [prompt(4, 0, 1, pictures=0), prompt(7, 0, 2, pictures=0)]
    plain = generate(model, rows, None)
    with METHODS["visiondrop"](model) as trace:
        out = generate(model, rows, None)
    assert torch.equal(logits(out), logits(plain)) and trace.samples == []


def test_right_padding_in_forward() -> None:
    """Rows padded on the right keep their own last token in the last column."""
    model, method = tiny(), METHODS["visiondrop"]
    rows, images = [prompt(3, 6, 1), prompt(3, 9, 2)], pixels(2)
    left = batch(rows)
    width = left["input_ids"].shape[1]
    right = {
        "input_ids": torch.tensor([r + [0] * (width - len(r)) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
    }
    with method(model), torch.no_grad():
        a = model(**left, pixel_values=images, logits_to_keep=1).logits
        b = model(**right, pixel_values=images, logits_to_keep=1).logits
    torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", names("single"))
def test_other_dtypes_run(name: str, dtype: torch.dtype) -> None:
    import copy

    model = copy.deepcopy(tiny()).to(dtype)
    out, trace = run(model, METHODS[name], ROWS, pixels(3).to(dtype))
    assert logits(out).isfinite().all()
    if not exempt(name, "ledger"):
        assert trace.samples[0].tokens_per_layer == METHODS[name].ledger(LAYERS, PATCHES)
    if dtype == torch.float64 and not exempt(name, "float64"):
        single, _ = run(tiny(), METHODS[name], ROWS, pixels(3))
        torch.testing.assert_close(logits(out).float(), logits(single), atol=1e-3, rtol=1e-3)
