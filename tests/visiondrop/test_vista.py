"""VISTA against loops, and what its definition promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.visiondrop.models import (
    LAYERS,
    PATCHES,
    batch,
    generate,
    logits,
    pixels,
    prompt,
    tiny,
)
from tests.visiondrop.slow_decoder import rms, slow_decoder, slow_logits, unpruned_embeds
from visiondrop import Full, Uniform, VisionDrop
from visiondrop.extensions.steering import mix_states, steer
from visiondrop.methods.vista import Vista
from visiondrop.methods.vmtc_cmai import VmtcCmai
from visiondrop.methods.yopo import Yopo

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
NONE = {"strength": 0.0, "gamma": 0.0}


def slow_steer(x: torch.Tensor, v: torch.Tensor, strength: float, adaptive: bool) -> torch.Tensor:
    if not v.any():
        return x
    if adaptive:
        cosine = float(x @ v / (x.norm() * v.norm()))
        gain = 1 + max(0.0, -cosine)
        moved = x / x.norm() + strength * gain * v / v.norm()
    else:
        moved = x + strength * v
    return moved / moved.norm() * x.norm()


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_steer_equals_loops(seed: int, adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 1, 7, generator=generator, dtype=torch.float64)
    out = steer(x, v, 0.4, adaptive)
    for b in range(2):
        for i in range(5):
            expected = slow_steer(x[b, i], v[b, 0], 0.4, adaptive)
            torch.testing.assert_close(out[b, i], expected)


@pytest.mark.parametrize("adaptive", [True, False])
def test_steering_turns_towards_the_direction_and_keeps_the_norm(adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x, v = torch.randn(50, 9, generator=generator), torch.randn(9, generator=generator)
    cosine = torch.nn.functional.cosine_similarity
    out = steer(x, v, 0.3, adaptive)
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    assert bool((cosine(out, v[None]) > cosine(x, v[None])).all())
    torch.testing.assert_close(steer(x, torch.zeros(9), 0.3, adaptive), x)
    assert steer(x.bfloat16(), v, 0.3, adaptive).dtype == torch.bfloat16


def test_states_far_from_the_direction_are_pushed_harder() -> None:
    v, x = torch.tensor([1.0, 0.0]), torch.tensor([[-0.8, 0.6], [0.8, 0.6]])
    plain = torch.nn.functional.normalize(x + 0.1 * v, dim=-1)
    out = steer(x, v, 0.1)
    torch.testing.assert_close(out[1], plain[1])
    assert out[0, 0] > plain[0, 0] + 0.01


def test_mixed_states_give_mixed_logits() -> None:
    head = torch.nn.Linear(5, 11)
    final, early = torch.randn(3, 5), torch.randn(3, 5)
    mixed = head(mix_states(final, early, 0.3))
    torch.testing.assert_close(mixed, 0.7 * head(final) + 0.3 * head(early))


def run(model: Any, method: Any, row: list[int], image: torch.Tensor, **kw: Any) -> Any:
    with method(model):
        return generate(model, [row], image, **kw)


def loops(model: Any, method: Vista, row: list[int], image: torch.Tensor) -> torch.Tensor:
    """Two passes for the vectors, one with every state steered one by one, logits one by one."""
    embeds = unpruned_embeds(model, row, image)
    text = torch.tensor([token != model.config.image_token_id for token in row])
    seen, blind = slow_decoder(model, embeds), slow_decoder(model, embeds[text])
    vectors = [a[-1] - b[-1] for a, b in zip(seen[1:], blind[1:], strict=True)]

    def push(place: str, layer: int, i: int, y: torch.Tensor) -> torch.Tensor:
        touched = method.scope == "all" or i == len(row) - 1
        if method.inject != place or not touched or not method.strength:
            return y
        return slow_steer(y, vectors[layer], method.strength, method.adaptive)

    states = slow_decoder(
        model,
        embeds,
        after_mlp=lambda layer, i, y: push("mlp", layer, i, y),
        after_layer=lambda layer, i, _x, y: push("residual", layer, i, y),
    )
    first, last = method.logits_layers or (LAYERS - method.window, LAYERS - 1)
    norm = model.model.language_model.norm
    early = [states[i][-1] for i in range(first, last + 1)]
    early = [model.lm_head(rms(norm, x) if method.early_norm else x) for x in early]
    mean = torch.stack(early).mean(0)
    return (1 - method.gamma) * slow_logits(model, states) + method.gamma * mean


@pytest.mark.parametrize(
    "method",
    [
        Vista(strength=0.2),
        Vista(strength=0.3, inject="residual", adaptive=False, scope="decode", early_norm=True),
        Vista(strength=0.0, gamma=0.5, logits_layers=(2, 4)),
        Vista(strength=0.1, gamma=0.0, inject="residual"),
    ],
    ids=["released", "paper", "logits-alone", "steering-alone"],
)
def test_equals_loops(method: Vista) -> None:
    model = tiny(kv_heads=2)
    for seed in range(5 if method == Vista(strength=0.2) else 2):
        row, image = prompt(2 + seed % 2, 4, seed), pixels(1, seed)
        out = run(model, method, row, image, max_new_tokens=1, min_new_tokens=1)
        torch.testing.assert_close(out.logits[0][0], loops(model, method, row, image[0]), **CLOSE)


def test_zero_strength_equals_unpruned_exactly() -> None:
    """And a strength that goes to zero comes to it through the hooks."""
    model, row, image = tiny(), prompt(3, 6, 1), pixels(1)
    plain = logits(run(model, Full(), row, image))
    assert torch.equal(logits(run(model, Vista(**NONE), row, image)), plain)
    for fields in ({"strength": 1e-7}, {"strength": 1e-7, "inject": "residual"}, {"gamma": 1e-7}):
        almost = logits(run(model, Vista(**{**NONE, **fields}), row, image))
        torch.testing.assert_close(almost, plain, **CLOSE)


def test_each_part_alone_changes_the_answer() -> None:
    model, row, image = tiny(), prompt(3, 6, 1), pixels(1)
    plain = logits(run(model, Full(), row, image))
    for part in (
        {"strength": 0.3},
        {"strength": 0.3, "inject": "residual"},
        {"strength": 0.3, "scope": "decode"},
        {"gamma": 0.3},
        {"gamma": 0.3, "early_norm": True},
    ):
        changed = logits(run(model, Vista(**{**NONE, **part}), row, image))
        assert (changed - plain).abs().max() > 1e-2, part


def test_steers_towards_the_picture_that_a_stage_left() -> None:
    """With all tokens dropped but one, vectors are those of that one token's prompt."""
    model, row, image = tiny(), prompt(3, 6, 1), pixels(1)
    method = Vista(strength=0.3, scope="decode")
    reduced = logits(run(model, Uniform(4) + method, row, image))
    whole = logits(run(model, method, row, image))
    alone = logits(run(model, Uniform(4), row, image))
    assert (reduced - whole).abs().max() > 1e-2 and (reduced - alone).abs().max() > 1e-2


@pytest.mark.parametrize("scope", ["all", "decode"])
@pytest.mark.parametrize("first", [Uniform(14), VisionDrop(encoder=(14, 3), llm={3: (6, 2)})])
def test_composed_batch_equals_singles_and_recomputed(first: Any, scope: Any) -> None:
    model, images = tiny(), pixels(3)
    rows = [prompt(3, 6, 1), prompt(5, 9, 2), prompt(3, 4, 3)]
    method = first + Vista(strength=0.2, scope=scope)
    with method(model) as trace:
        out = generate(model, rows, images)
    assert [s.tokens_per_layer for s in trace.samples] == [method.ledger(LAYERS, PATCHES)] * 3
    for i, row in enumerate(rows):
        one = run(model, method, row, images[i : i + 1])
        again = run(model, method, row, images[i : i + 1], use_cache=False)
        torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], **CLOSE)
        torch.testing.assert_close(logits(again), logits(one), **CLOSE)


@pytest.mark.parametrize("method", [Vista(strength=0.4), VmtcCmai(12, inhibit=0.6), Yopo(3)])
def test_two_interleaved_generations_do_not_mix(method: Any) -> None:
    """What decoding needs of a prompt, vectors and blind tokens, is on its cache."""
    model = tiny()
    rows, images = [prompt(3, 6, 1), prompt(6, 5, 7)], pixels(2)
    alone = [run(model, method, row, images[i : i + 1]) for i, row in enumerate(rows)]
    caches: list[Any] = [DynamicCache(config=model.config.text_config) for _ in rows]
    ids = [batch([row])["input_ids"] for row in rows]
    with method(model), torch.no_grad():
        for step in range(5):
            for i in (0, 1):
                first = {"pixel_values": images[i : i + 1]} if step == 0 else {}
                out = model(
                    ids[i], past_key_values=caches[i], use_cache=True, logits_to_keep=1, **first
                )
                torch.testing.assert_close(out.logits[0, -1], logits(alone[i])[step, 0], **CLOSE)
                ids[i] = out.logits[:, -1].argmax(-1, keepdim=True)


def test_state_follows_the_rows_of_its_cache() -> None:
    model = tiny()
    with (Vista(strength=0.4) + VmtcCmai(12, inhibit=0.6))(model):
        out = generate(model, [prompt(3, 6, 1), prompt(5, 9, 2)], pixels(2))
    cache = out.past_key_values
    before = {name: rows.clone() for name, rows in cache.state.items()}
    assert set(before) == {"vista/vectors", "vista/pictured", "vmtc_cmai/0002"}
    assert all(not torch.equal(rows[0], rows[1]) for n, rows in before.items() if "pict" not in n)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    for name, rows in before.items():
        assert torch.equal(cache.state[name], rows[[1, 0]])
    cache.reset()
    assert cache.state == {}


def test_rows_without_a_picture_are_left_alone() -> None:
    model, rows = tiny(), [prompt(4, 0, 1, pictures=0), prompt(3, 6, 2)]
    with Vista(strength=0.4)(model):
        out = generate(model, rows, pixels(1))
    plain = generate(model, rows[:1], None)
    torch.testing.assert_close(logits(out)[:, 0], logits(plain)[:, 0], **CLOSE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strength": -0.1}, "strength=-0.1"),
        ({"gamma": 1.1}, "gamma=1.1"),
        ({"window": 8}, "window=8"),
        ({"window": 0}, "window of 1 to 7"),
        ({"logits_layers": (25, 30)}, "within 1 to 7"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), Vista(**fields)(tiny()):
        pass


def test_twice_in_one_composition_is_refused() -> None:
    """Both would keep their vectors in the same place; the model is left as it was."""
    model, row, image = tiny(), prompt(3, 6, 1), pixels(1)
    with pytest.raises(ValueError, match="both bring Steering"), (Vista() + Vista())(model):
        pass
    plain = generate(model, [row], image)
    assert torch.equal(logits(run(model, Full(), row, image)), logits(plain))
