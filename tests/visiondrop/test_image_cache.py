"""A kept prompt beginning answers later questions as a fresh prompt does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.visiondrop import next_models as anyres
from tests.visiondrop import qwen_models as qwen
from tests.visiondrop.matrix import METHODS, SETTINGS, exempt
from tests.visiondrop.models import IMAGE, batch, generate, logits, pixels, prompt, tiny
from visiondrop import ImageCache, Random, VisionDrop, cache_room, image_cache
from visiondrop.reducer import Reducer
from visiondrop.reuse import why_not_reusable

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
DROP = METHODS["visiondrop"]
KEPT = VisionDrop(encoder=(14, 4), llm={2: (10, 3), 6: (3, 0)}, positions="original")
HEADS = [prompt(3, 0, 1), prompt(8, 0, 2)]
QUESTIONS = [[11, 12, 13], [14, 15, 16, 17, 18, 19], [20]]
OWN = [0, 1, 1]
BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
REUSABLE = [n for n in METHODS if why_not_reusable(METHODS[n]) is None and not exempt(n, "single")]


def build(cache: ImageCache, heads: list[list[int]] = HEADS) -> list[Any]:
    """Prefixes with one picture each."""
    images = pixels(len(heads))
    return cache.build_all(
        [{"input_ids": h, "pixel_values": images[i : i + 1]} for i, h in enumerate(heads)]
    )


def ask(cache: ImageCache, prefixes: Any, questions: list[list[int]], **kwargs: Any) -> Any:
    """Greedy with logits, as `models.generate` does."""
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False} | kwargs
    return cache.generate(
        prefixes,
        questions,
        suppress_tokens=[IMAGE],
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def fresh(model: Any, method: Reducer, rows: list[list[int]], images: Any, **kwargs: Any) -> Any:
    """Without the cache."""
    with method(model):
        return generate(model, rows, images, **kwargs)


def cells() -> list[Any]:
    """Each method with one attention; all with `--all-cells`, see below."""
    return [(name, ("sdpa", "eager")[i % 2]) for i, name in enumerate(REUSABLE)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"name", "attention"} <= set(metafunc.fixturenames):
        every = [(name, attention) for name in REUSABLE for attention in ("sdpa", "eager")]
        all_cells = metafunc.config.getoption("--all-cells")
        metafunc.parametrize("name, attention", every if all_cells else cells())


# ---------------------------------------------------------------------------- equality


def test_ragged_questions_on_several_pictures_equal_fresh_prompts(
    name: str, attention: str
) -> None:
    """Also: the first token's logits, and what is kept is what a fresh prompt would have kept."""
    model, method = tiny(attention=attention), METHODS[name]
    cache, images = ImageCache(model, method), pixels(2)
    prefixes = build(cache)
    own = [prefixes[i] for i in OWN]
    steps = {"max_new_tokens": 3, "min_new_tokens": 3}
    out = ask(cache, own, QUESTIONS, **steps)
    first = cache.logits(own, QUESTIONS)
    for r, (i, question) in enumerate(zip(OWN, QUESTIONS, strict=True)):
        alone = fresh(model, method, [HEADS[i] + question], images[i : i + 1], **steps)
        length = len(HEADS[i] + question)
        assert out.sequences[r].tolist() == alone.sequences[0, length:].tolist()
        torch.testing.assert_close(logits(out)[:, r], logits(alone)[:, 0], **CLOSE)
        torch.testing.assert_close(first[r], alone.logits[0][0], **CLOSE)
        layers = zip(prefixes[i].layers, alone.past_key_values.layers, strict=True)
        for index, ((key, value), layer) in enumerate(layers):
            held = prefixes[i].held(index)
            assert layer.get_seq_length() == held + len(question) + 2
            torch.testing.assert_close(key, layer.keys[0, :, :held], **CLOSE)
            torch.testing.assert_close(value, layer.values[0, :, :held], **CLOSE)


def test_what_asks_the_question_is_refused_and_nothing_else() -> None:
    """By the identity that says so: a later turn on kept KV equals a fresh prompt, or does not."""
    for name, method in METHODS.items():
        assert (why_not_reusable(method) is not None) == exempt(name, "chat"), name
        if "single" in SETTINGS[name].exempt or why_not_reusable(method) is None:
            continue
        with pytest.raises(ValueError, match=r"cannot be cached: it.*cache one of: .*visiondrop"):
            ImageCache(tiny(), method)


@pytest.mark.parametrize("kwargs", [{"kv_heads": 2}, {"tower": "siglip", "decoder": "qwen2"}])
@pytest.mark.parametrize("method", [None, KEPT], ids=["full", "visiondrop"])
def test_other_families(kwargs: dict[str, Any], method: Reducer | None) -> None:
    model = tiny(**kwargs)
    if "tower" in kwargs and method is not None:
        method = VisionDrop(encoder=(14, 4), llm={2: (10, 3)}, query="patches")
    cache = ImageCache(model, method)
    out = ask(cache, build(cache)[1], QUESTIONS)
    rows = [HEADS[1] + q for q in QUESTIONS]
    expected = fresh(model, cache.method, rows, pixels(2)[[1, 1, 1]])
    assert out.sequences.tolist() == expected.sequences[:, -5:].tolist()
    torch.testing.assert_close(logits(out), logits(expected), **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["renumbered", "original"])
def test_pictures_of_any_resolution(positions: Any, attention: str) -> None:
    """Prefixes of several tiles and lengths, built together and asked together."""
    model = anyres.tiny_next(attention=attention)
    method = VisionDrop(encoder=(14, 4), llm={2: (10, 3), 5: (6, 2)}, positions=positions)
    cache, sizes = ImageCache(model, method), anyres.SIZES[:3]
    heads = [anyres.prompt(2 + i, 0, i, [size]) for i, size in enumerate(sizes)]
    prefixes = cache.build_all(
        [
            {"input_ids": head, **anyres.inputs([size], [i])}
            for i, (head, size) in enumerate(zip(heads, sizes, strict=True))
        ]
    )
    own = [2, 0, 1]
    out = ask(cache, [prefixes[i] for i in own], QUESTIONS)
    for r, (i, question) in enumerate(zip(own, QUESTIONS, strict=True)):
        with method(model) as trace:
            images = anyres.inputs([sizes[i]], [i])
            alone = anyres.generate(
                model, [heads[i] + question], images, max_new_tokens=5, min_new_tokens=5
            )
        assert out.sequences[r].tolist() == alone.sequences[0, -5:].tolist()
        torch.testing.assert_close(logits(out)[:, r], logits(alone)[:, 0], **CLOSE)
        kept = prefixes[i].sample
        assert kept.tokens_per_layer == trace.samples[0].tokens_per_layer
        assert kept.newlines_per_layer == trace.samples[0].newlines_per_layer


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_positions_with_three_planes(family: str) -> None:
    """The model itself remembers its last prompt's positions only; each prefix has its own."""
    model = qwen.tiny_qwen(family)
    method = VisionDrop(encoder=(9, 3), llm={3: (5, 2)}, query="patches", positions="original")
    cache = ImageCache(model, method)
    shown = [[("image", (1, 4, 6), 1)], [("image", (1, 6, 6), 2)]]
    rows = [qwen.row(3, 4, 1, shown[0]), qwen.row(6, 5, 2, shown[1])]
    prompts, rests, alone = [], [], []
    for row, own in zip(rows, shown, strict=True):
        given = qwen.inputs(family, [row], [own])
        head, rest = cache.split(row)
        prompts.append(given | {k: given[k][:, : len(head)] for k in BY_TOKEN})
        rests.append(rest)
        with method(model):
            alone.append(torch.stack(qwen.generate(model, given).logits)[:, 0])
    options = {"max_new_tokens": 4, "min_new_tokens": 4}
    together = cache.build_all(prompts)
    for own in (together, [cache.prefill([own])[0] for own in prompts]):
        out = logits(ask(cache, own, rests, **options))
        first = cache.logits(own[::-1], rests[::-1])
        for r, expected in enumerate(alone):
            torch.testing.assert_close(out[:, r], expected, **CLOSE)
            torch.testing.assert_close(first[1 - r], expected[0], **CLOSE)
    beams = ask(cache, together, rests, num_beams=2, **options)
    with method(model):
        both = qwen.generate(model, qwen.inputs(family, rows, shown), num_beams=2)
    assert beams.sequences.tolist() == both.sequences[:, -4:].tolist()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
        {"repetition_penalty": 1.7},
    ],
    ids=lambda kwargs: "-".join(kwargs),
)
def test_ways_of_decoding(kwargs: dict[str, Any]) -> None:
    """Beams reorder the KV in mid-way."""
    model, cache = tiny(), ImageCache(tiny(), DROP)
    rows, images = [HEADS[1] + q for q in QUESTIONS[:2]], pixels(2)[[1, 1]]
    torch.manual_seed(7)
    expected = fresh(model, DROP, rows, images, **kwargs)
    torch.manual_seed(7)
    out = ask(cache, build(cache)[1], QUESTIONS[:2], **kwargs)
    new = out.sequences.shape[1]
    assert out.sequences.tolist() == expected.sequences[:, -new:].tolist()


def test_answers_outgrow_the_room_that_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (image_cache, cache_room):
        monkeypatch.setattr(module, "LEAST_ROOM", 2)
    cache = ImageCache(tiny(), DROP)
    out = ask(cache, build(cache)[1], QUESTIONS, max_new_tokens=8, min_new_tokens=8)
    rows, images = [HEADS[1] + q for q in QUESTIONS], pixels(2)[[1, 1, 1]]
    expected = fresh(tiny(), DROP, rows, images, max_new_tokens=8, min_new_tokens=8)
    torch.testing.assert_close(logits(out), logits(expected), **CLOSE)


def test_two_pictures_in_a_prefix() -> None:
    model, cache, images = tiny(), ImageCache(tiny(), KEPT), pixels(2)
    head = prompt(3, 2, 1, pictures=2)[:-2]
    kept = cache.build(head, pixel_values=images)
    assert len(kept) == len(head) and kept.sample.tokens_per_layer[0] == 2 * 18
    out = ask(cache, kept, [[30, 31]])
    expected = fresh(model, KEPT, [head + [30, 31]], images)
    torch.testing.assert_close(logits(out), logits(expected), **CLOSE)


def test_prompts_with_and_without_a_picture_in_one_batch() -> None:
    """A prefix of text alone has one block, others several."""
    model, cache = tiny(), ImageCache(tiny(), KEPT)
    text = [1, 5, 6, 7, 8]
    mixed = cache.build_all(
        [{"input_ids": text}, {"input_ids": HEADS[0], "pixel_values": pixels(1)}]
    )
    assert mixed[0].sample is None and mixed[1].sample is not None
    out = ask(cache, mixed, [[9, 10], [9, 10, 11]])
    for r, (row, images) in enumerate(
        [(text + [9, 10], None), (HEADS[0] + [9, 10, 11], pixels(1))]
    ):
        alone = fresh(model, KEPT, [row], images)
        torch.testing.assert_close(logits(out)[:, r], logits(alone)[:, 0], **CLOSE)


def test_left_padding_of_a_beginning_is_taken_off() -> None:
    cache = ImageCache(tiny(), DROP)
    padded = batch([HEADS[0], HEADS[1]])
    prefix = cache.build(
        padded["input_ids"][:1], attention_mask=padded["attention_mask"][:1], pixel_values=pixels(1)
    )
    assert prefix.ids.tolist() == HEADS[0]
    assert cache.build(HEADS[0], pixel_values=pixels(1)) is prefix


def test_seeded_methods_draw_by_the_picture_or_by_a_key() -> None:
    model, images = tiny(), pixels(1)
    cache = ImageCache(model, Random(9, seed=3))
    for keys in (None, ["sample 7"]):
        prefix = cache.build(HEADS[0], pixel_values=images, keys=keys)
        with cache.method(model, keys=keys):
            alone = generate(model, [HEADS[0] + [11]], images)
        torch.testing.assert_close(logits(ask(cache, prefix, [[11]])), logits(alone), **CLOSE)
    assert cache.stats.entries == 2, "another key keeps other tokens"
