"""YOPO against loops, and what its definition promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.visiondrop.models import LAYERS, PATCHES, generate, logits, pixels, prompt, tiny
from tests.visiondrop.slow_decoder import slow_decoder, slow_logits, unpruned_embeds
from visiondrop import Full
from visiondrop.extensions.masking import Columns, neighbourhood
from visiondrop.methods.yopo import Yopo
from visiondrop.profiling import ModelSize

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
SIDE = 6
OFF = {"window": None, "neurons": 1.0, "layers": 1.0}
HEADS = {0: [1], 2: [0, 3], 5: [2]}


def first_logits(model: Any, method: Any, row: list[int], images: torch.Tensor, **kw: Any) -> Any:
    with method(model):
        return generate(model, [row], images, **kw)


def loops(model: Any, method: Yopo, row: list[int], image: torch.Tensor) -> torch.Tensor:
    """The method's definition, pair by pair."""
    start = row.index(model.config.image_token_id)
    heads = model.config.text_config.num_attention_heads
    group = heads // model.config.text_config.num_key_value_heads
    computing = int(method.layers * LAYERS)
    width = model.config.text_config.intermediate_size

    def patch(i: int) -> int | None:
        return i - start if start <= i < start + PATCHES else None

    def sees(layer: int, head: int, i: int, j: int) -> bool:
        p, q = patch(i), patch(j)
        if p is None or q is None or method.window is None:
            return j <= i
        reach = (method.window - 1) // 2
        near = abs(p // SIDE - q // SIDE) <= reach and abs(p % SIDE - q % SIDE) <= reach
        return near and (j <= i or not method.causal)

    def inactive(layer: int, head: int) -> bool:
        return head // group in method.inactive_heads.get(layer, [])

    def value_gain(layer: int, head: int, j: int) -> float:
        if patch(j) is None:
            return 1.0
        unread = layer >= computing and method.skip == "unread"
        return 0.0 if unread or inactive(layer, head) else 1.0

    def output_gain(layer: int, head: int, i: int) -> float:
        return 0.0 if patch(i) is not None and inactive(layer, head) else 1.0

    def neurons(layer: int, i: int) -> int:
        return width if patch(i) is None else int(width * method.neurons)

    def after_layer(layer: int, i: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        frozen = method.skip == "frozen" and layer >= computing and patch(i) is not None
        return x if frozen else y

    states = slow_decoder(
        model,
        unpruned_embeds(model, row, image),
        sees=sees,
        value_gain=value_gain,
        output_gain=output_gain,
        neurons=neurons,
        after_layer=after_layer,
    )
    return slow_logits(model, states)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("method", "kv_heads"),
    [
        (Yopo(window=3), 4),
        (Yopo(window=3, causal=True, neurons=0.4, layers=0.75, inactive_heads=HEADS), 4),
        (Yopo(window=1, layers=0.5, skip="frozen", inactive_heads={1: [1], 6: [0]}), 2),
        (Yopo(window=None, neurons=0.1, layers=0), 1),
    ],
    ids=["released", "heads", "frozen", "nothing-read"],
)
def test_equals_loops(method: Yopo, kv_heads: int, attention: str) -> None:
    model = tiny(kv_heads=kv_heads, attention=attention)
    default = method == Yopo(window=3) and attention == "sdpa"
    for seed in range(5 if default else 2):
        row, image = prompt(2 + seed % 2, 4, seed), pixels(1, seed)
        out = first_logits(model, method, row, image, max_new_tokens=1, min_new_tokens=1)
        torch.testing.assert_close(out.logits[0][0], loops(model, method, row, image[0]), **CLOSE)


def test_each_part_alone_changes_the_answer() -> None:
    """No part is a no-op that the loops share."""
    model, row, image = tiny(), prompt(3, 6, 1), pixels(1)
    plain = logits(first_logits(model, Full(), row, image))
    for part in (
        {"window": 3},
        {"window": 3, "causal": True},
        {"neurons": 0.5},
        {"layers": 0.5},
        {"layers": 0.5, "skip": "frozen"},
        {"inactive_heads": {3: [2]}},
    ):
        changed = logits(first_logits(model, Yopo(**{**OFF, **part}), row, image))
        assert (changed - plain).abs().max() > 1e-2, part


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_everything_on_equals_unpruned(attention: str) -> None:
    """A causal window over the whole grid, all heads, neurons and layers."""
    model, row, image = tiny(attention=attention), prompt(3, 6, 1), pixels(1)
    plain = generate(model, [row], image)
    for method in (Yopo(**OFF), Yopo(**{**OFF, "window": 2 * SIDE - 1, "causal": True})):
        out = first_logits(model, method, row, image)
        torch.testing.assert_close(logits(out), logits(plain), **CLOSE)
        assert out.sequences.tolist() == plain.sequences.tolist()


def test_nobody_gets_anything_from_unread_tokens() -> None:
    """Values of visual tokens are zero in skipped layers and inactive heads, and only there."""
    model, row = tiny(), prompt(3, 6, 1)
    out = first_logits(model, Yopo(inactive_heads=HEADS), row, pixels(1))
    for index, layer in enumerate(out.past_key_values.layers):
        zero = (layer.values[0] == 0).all(-1)
        expected = torch.zeros_like(zero)
        visual = slice(4, 4 + PATCHES)
        expected[HEADS.get(index, []), visual] = True
        if index >= LAYERS // 2:
            expected[:, visual] = True
        assert torch.equal(zero, expected)


def test_neighbourhood_counts_and_symmetry() -> None:
    picture = torch.tensor([[-1, *[0] * 36, -1, *[1] * 36]])
    patch = torch.tensor([[-1, *range(36), -1, *range(36)]])
    near = neighbourhood(Columns(picture, patch), (6, 6), 3)[0]
    assert torch.equal(near, near.T)
    counts = near[1:37].sum(1).view(6, 6)
    assert counts[0, 0] == 4 and counts[0, 3] == 6 and bool((counts[1:5, 1:5] == 9).all())
    assert not near[0].any() and not near[1:37, 38:].any()


def test_calibrated_heads_are_those_that_look_least() -> None:
    """Activity against a plain softmax over all heads; the rest of the method as given."""
    model, row, image = tiny(kv_heads=2), prompt(3, 6, 1), pixels(1)
    arguments = {"input_ids": torch.tensor([row]), "pixel_values": image}
    method = Yopo.calibrated(model, [arguments], inactive=0.5, window=None)
    assert method.window is None and set(method.inactive_heads) == set(range(LAYERS))
    mass = torch.zeros(LAYERS, 2)
    start = 4

    def look(layer: int, _states: Any, heads: Any) -> None:
        query, key = heads
        for h in range(4):
            for i in range(start, len(row)):
                scores = torch.stack([query[i][h] @ key[j][h // 2] for j in range(i + 1)]) / 8**0.5
                own = scores.softmax(0)[start : start + PATCHES].sum()
                mass[layer, h // 2] += own / 2 / (len(row) - start)

    slow_decoder(model, unpruned_embeds(model, row, image[0]), before_layer=look)
    expected = {layer: [int(m.argmin())] for layer, m in enumerate(mass)}
    assert method.inactive_heads == expected
    first_logits(model, method, row, image)


def test_share_of_flops() -> None:
    """LLaVA-1.5-7B by hand; everything on is 1, nothing is 0."""
    size = ModelSize(24, 23, 1024, 4096, 576, 588, True, 1024, 32, 4096, 11008, 32, 32, 128, 32000)
    heads = {layer: list(range(24)) for layer in range(32)}
    share = Yopo(inactive_heads=heads).visual_flops_share(size)
    near, far = 25, 576
    kept = 0.25 * (8 * 4096**2 + 4 * near * 4096) + 0.5 * 6 * 4096 * 11008
    assert share == pytest.approx(
        16 * kept / (32 * (8 * 4096**2 + 4 * far * 4096 + 6 * 4096 * 11008))
    )
    assert 0.19 < share < 0.22
    assert Yopo(**OFF).visual_flops_share(size) == 1
    assert Yopo(layers=0).visual_flops_share(size) == 0
    assert 0 < Yopo(layers=0, skip="frozen").visual_flops_share(size) < 0.2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 4}, "window=4; give an odd number"),
        ({"neurons": 0.0}, "neurons=0.0"),
        ({"layers": 1.5}, "layers=1.5"),
        ({"inactive_heads": {9: [0]}}, "layer 9; this model has layers 0 to 7"),
        ({"inactive_heads": {1: [4]}}, "inactive head 4 where this model has 4"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    model = tiny()
    with pytest.raises(ValueError, match=message), Yopo(**fields)(model):
        pass


def test_flash_attention_refused() -> None:
    from visiondrop.extensions.masking import refuse_maskless_attention

    with pytest.raises(ValueError, match="flash_attention_2.*eager or sdpa"):
        refuse_maskless_attention("yopo", "flash_attention_2")


def test_json_round_trip() -> None:
    import json

    method = Yopo(window=3, inactive_heads=HEADS)
    again = Yopo.from_dict(json.loads(json.dumps(method.to_dict())))
    assert again == method
