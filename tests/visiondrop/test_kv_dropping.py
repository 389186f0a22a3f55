"""KV entries dropped by others while a method is at work."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.visiondrop.models import LAYERS, batch, generate, logits, pixels, prompt, tiny
from tests.visiondrop.presses import cache_positions, kept, key_norm, press, window_attention
from tests.visiondrop.slow_decoder import rms, slow_logits, turn
from visiondrop import Full, ImageCache, Uniform, VisionDrop
from visiondrop.methods.vmtc_cmai import VmtcCmai

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
STAGES = {2: (10, 3), 4: (7, 2), 6: (4, 1)}
METHODS = {
    "full": Full(),
    "visiondrop": VisionDrop(encoder=(14, 4), llm=STAGES),
    "original": VisionDrop(encoder=(14, 4), llm=STAGES, positions="original"),
    "uniform": Uniform(9, positions="original"),
}
SHARES = {
    "even": lambda layer: 0.5,
    "by layer": lambda layer: 0.9 - 0.1 * layer,
    "some layers": lambda layer: (1.0, 0.4)[layer % 2],
}
ROW = prompt(5, 6, seed=1)


@torch.no_grad()
def step(model: Any, held: list[list[Tensor]], token: int, positions: list[int]) -> Tensor:
    """Logits after one more token, in loops over heads.

    Args:
        held: [L][H_kv] pairs of keys and values, [n, d] each, which grow by the token's own.
        positions: of the token, in each layer.
    """
    decoder = model.model.language_model
    theta = decoder.config.rope_parameters["rope_theta"]
    x = decoder.embed_tokens.weight[token]
    for layer, own, position in zip(decoder.layers, held, positions, strict=True):
        attention, size = layer.self_attn, layer.self_attn.head_dim
        y = rms(layer.input_layernorm, x)
        query, key, value = (
            getattr(attention, f"{part}_proj")(y).view(-1, size) for part in ("q", "k", "v")
        )
        for h, pair in enumerate(own):
            new = turn(key[h], position, theta), value[h]
            own[h] = [torch.cat([old, n[None]]) for old, n in zip(pair, new, strict=True)]
        heads = []
        for h, q in enumerate(query):
            keys, values = own[h * len(own) // len(query)]
            weights = (keys @ turn(q, position, theta) / math.sqrt(size)).softmax(0)
            heads.append(weights @ values)
        x = x + attention.o_proj(torch.cat(heads))
        x = x + layer.mlp(rms(layer.post_attention_layernorm, x))
    return slow_logits(model, [[x]])


def dropped_by_hand(model: Any, method: Any, row: list[int], score: str, share: Any) -> Any:
    """What is left of a reduced prompt's keys and values, and each layer's next position."""
    inputs: dict[int, Any] = {}

    def note(attention: Any, args: Any, kwargs: dict[str, Any]) -> None:
        inputs[attention.layer_idx] = kwargs

    layers = model.model.language_model.layers
    hooks = [one.self_attn.register_forward_pre_hook(note, with_kwargs=True) for one in layers]
    with torch.no_grad(), method(model) as trace:
        cache = model(**batch([row]), pixel_values=pixels(1, 3), logits_to_keep=1).past_key_values
    for hook in hooks:
        hook.remove()
    held = []
    for index, layer in enumerate(cache.layers):
        given = inputs[index]
        values = SCORES[score](layers[index].self_attn, given["hidden_states"], layer.keys, given)
        own = kept(values, share(index))[0]
        both = layer.keys[0], layer.values[0]
        held.append([[t[h, columns] for t in both] for h, columns in enumerate(own)])
    lengths = trace.samples[0].lengths
    positions = [len(row)] * LAYERS if method.positions == "original" else list(lengths)
    return held, positions


SCORES = {"key norm": key_norm, "window": window_attention}
CASES = [
    ("full", "key norm", "even", {}),
    ("visiondrop", "key norm", "by layer", {"kv_heads": 2}),
    ("visiondrop", "window", "even", {"attention": "eager"}),
    ("original", "window", "by layer", {"attention": "eager", "kv_heads": 2}),
    ("original", "key norm", "some layers", {}),
    ("uniform", "window", "some layers", {"kv_heads": 2}),
]


@pytest.mark.parametrize(("name", "score", "share", "family"), CASES)
def test_answer_goes_on_from_what_the_press_left(name, score, share, family):
    model, method = tiny(**family), METHODS[name]
    with method(model) as trace, press(model, SCORES[score], SHARES[share]):
        out = generate(model, [ROW], pixels(1, 3))
    held, positions = dropped_by_hand(model, method, ROW, score, SHARES[share])
    prefill = trace.samples[0].lengths
    left = [layer.get_seq_length() - 4 for layer in out.past_key_values.layers]
    assert left == [max(1, int(n * SHARES[share](i))) for i, n in enumerate(prefill)]
    for i, token in enumerate(out.sequences[0, len(ROW) : -1].tolist()):
        expected = step(model, held, token, [p + i for p in positions])
        torch.testing.assert_close(logits(out)[i + 1, 0], expected, **CLOSE)
    with method(model):
        assert not torch.allclose(logits(generate(model, [ROW], pixels(1, 3))), logits(out))


@pytest.mark.parametrize(("name", "score", "share", "family"), CASES)
def test_several_tokens_at_once_are_one_after_the_other(name, score, share, family):
    """The mask among new tokens has as many columns as each layer holds."""
    model, method = tiny(**family), METHODS[name]
    new = torch.tensor([[7, 8, 9]])
    out = []
    for pieces in ((3,), (1, 1, 1), (2, 1)):
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), method(model), press(model, SCORES[score], SHARES[share]):
            model(
                **batch([ROW]), pixel_values=pixels(1, 3), past_key_values=cache, logits_to_keep=1
            )
            given = [model(input_ids=t, past_key_values=cache).logits for t in new.split(pieces, 1)]
        out.append(torch.cat(given, 1))
    torch.testing.assert_close(out[1], out[0], **CLOSE)
    torch.testing.assert_close(out[2], out[0], **CLOSE)


@pytest.mark.parametrize("name", METHODS)
def test_batch_of_one_length_equals_its_rows_and_beams_go_on(name):
    model, method, share = tiny(kv_heads=2), METHODS[name], SHARES["by layer"]
    rows = [ROW, prompt(5, 6, seed=2)]
    with method(model), press(model, key_norm, share):
        both = logits(generate(model, rows, pixels(2, 3)))
        for r, row in enumerate(rows):
            alone = logits(generate(model, [row], pixels(2, 3)[r : r + 1]))[:, 0]
            torch.testing.assert_close(both[:, r], alone, **CLOSE)
        several = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True}
        beams = generate(model, [ROW], pixels(1, 3), **several)
    # Each answer scores what it scores when it is read along the same dropped prompt.
    held, positions = dropped_by_hand(model, method, ROW, "key norm", share)
    for answer, score in zip(beams.sequences.tolist(), beams.sequences_scores, strict=True):
        own, total = [list(layer) for layer in held], 0.0
        with torch.no_grad(), method(model):
            last = model(**batch([ROW]), pixel_values=pixels(1, 3), logits_to_keep=1).logits[0, -1]
        for i, token in enumerate(answer[len(ROW) :]):
            total += float(last.log_softmax(0)[token])
            last = step(model, own, token, [p + i for p in positions])
        assert score == pytest.approx(total / 5, abs=1e-3)


def test_refusals():
    model, share = tiny(), SHARES["even"]
    padded = r"holds \d+ tokens .* some of them padding: .* one prompt at a time"
    with METHODS["visiondrop"](model), press(model, key_norm, share):
        with pytest.raises(ValueError, match=padded):
            generate(model, [ROW, prompt(2, 3)], pixels(2))
    with VmtcCmai(12)(model), press(model, key_norm, share):
        with pytest.raises(ValueError, match="Inhibition hides entries by their column"):
            generate(model, [ROW], pixels(1))
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), METHODS["visiondrop"](model):
        model(**batch([ROW]), pixel_values=pixels(1), past_key_values=cache, logits_to_keep=1)
        layer = cache.layers[3]
        layer.keys, layer.values = (torch.cat([t, t], 2) for t in (layer.keys, layer.values))
        with pytest.raises(ValueError, match="layer 3 .* was extended outside this method"):
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    kept_pictures = ImageCache(model, METHODS["visiondrop"])
    with press(model, key_norm, share), pytest.raises(ValueError, match="outside the image cache"):
        kept_pictures.build(input_ids=torch.tensor([ROW[:-6]]), pixel_values=pixels(1))


def test_untouched_cache_keeps_its_blocks():
    """No new block where nothing was dropped: the objects stay, and so do their masks."""
    from visiondrop.kv_dropping import blocks_as_held

    with torch.no_grad(), METHODS["visiondrop"](tiny()):
        cache = tiny()(
            **batch([ROW, prompt(2, 3)]), pixel_values=pixels(2), logits_to_keep=1
        ).past_key_values
    assert len(cache.blocks) == 4 and cache.blocks[0].mask is not None
    same = blocks_as_held(cache)
    assert all(a is b for a, b in zip(same, cache.blocks, strict=True))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["KnormPress", "SnapKVPress", "PyramidKVPress"])
def test_presses_of_kvpress(kind, name):
    kvpress = pytest.importorskip("kvpress", reason="kvpress is not installed")
    model, method = tiny(kv_heads=2), METHODS[name]
    own = getattr(kvpress, kind)(0.5, **({} if kind == "KnormPress" else {"window_size": 4}))
    with method(model) as trace, cache_positions(model), own(model):
        out = generate(model, [ROW], pixels(1, 3))
    held = [layer.get_seq_length() - 4 for layer in out.past_key_values.layers]
    assert all(0 < n < before for n, before in zip(held, trace.samples[0].lengths, strict=True))
    if kind == "KnormPress":
        with method(model), press(model, key_norm, SHARES["even"]):
            expected = generate(model, [ROW], pixels(1, 3))
        torch.testing.assert_close(logits(out), logits(expected), **CLOSE)
