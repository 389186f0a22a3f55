"""ToMe in a whole vision tower: a loop implementation of the definition, and its properties."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.visiondrop.models import (
    IMAGE,
    LAYERS,
    PATCHES,
    batch,
    generate,
    pixels,
    prompt,
    tiny,
)
from tests.visiondrop.test_bipartite import merge_by_loops
from visiondrop.adapters import geometry_of
from visiondrop.functional.bipartite import even_merges
from visiondrop.methods.tome import ToMe

DEPTH = 2  # of the tiny towers' three layers, hidden state -2 is read


def double(model: Any) -> Any:
    return copy.deepcopy(model).double()


def tower_by_loops(
    tower: Any, picture: Tensor, tokens: int, has_cls: bool
) -> tuple[Tensor, list[list[int]]]:
    """One picture [3, h, w]: what comes out of the blocks and the patches in each, without CLS."""
    hidden = tower.embeddings(picture[None])
    if has_cls:
        hidden = tower.pre_layrnorm(hidden)
    hidden = hidden[0]
    members = [[i] for i in range(len(hidden))]
    merges = even_merges(len(hidden) - has_cls, tokens, DEPTH)
    for layer, count in zip(tower.encoder.layers[:DEPTH], merges, strict=True):
        attention, normed = layer.self_attn, layer.layer_norm1(hidden)
        query, key, value = (
            linear(normed).unflatten(1, (attention.num_heads, -1))
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        sizes = [len(m) for m in members]
        heads = []
        for h in range(attention.num_heads):
            weights = torch.exp(query[:, h] @ key[:, h].T / key.shape[2] ** 0.5)
            # exp(x + log(size)): a merged token counts as often as the patches in it.
            weights = weights * torch.tensor(sizes, dtype=weights.dtype)
            heads.append(weights / weights.sum(1, keepdim=True) @ value[:, h])
        hidden = hidden + attention.out_proj(torch.cat(heads, 1))
        metric = key.mean(1)
        merged = merge_by_loops(hidden, sizes, metric, count, int(has_cls))
        hidden = torch.stack([mean for mean, _, _ in merged])
        members = [sum((members[i] for i in inside), []) for _, _, inside in merged]
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden[has_cls:], [[m - has_cls for m in group] for group in members[has_cls:]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_tower_and_logits_equal_loops(kind: str, attention: str) -> None:
    """Five random pictures: who is in which token, in which order, and the LLM fed with them."""
    model = double(tiny(kind, attention=attention))
    row, images, tokens = prompt(3, 6, 1), pixels(5, seed=4).double(), 11
    # Eager attention takes its softmax in float32 even in a float64 model.
    close = 1e-9 if attention == "sdpa" else 1e-4
    with ToMe(tokens)(model) as trace, torch.no_grad():
        logits = model(**batch([row] * 5), pixel_values=images, logits_to_keep=1).logits
    at, words = row.index(IMAGE), model.get_input_embeddings()(torch.tensor([row]))
    for i, picture in enumerate(images):
        with torch.no_grad():
            features, members = tower_by_loops(
                model.model.vision_tower, picture, tokens, kind == "clip"
            )
            visual = model.model.multi_modal_projector(features[None])
            embeds = torch.cat([words[:, :at], visual, words[:, at + PATCHES :]], 1)
            expected = model.lm_head(model.model.language_model(inputs_embeds=embeds)[0][0, -1])
        torch.testing.assert_close(logits[i, -1], expected, atol=close, rtol=close)
        stage = trace.samples[i].stages[0]
        assert stage.source is not None and stage.target is not None
        assert stage.identity[stage.source].tolist() == [group[0] for group in members]
        went = {patch: slot for slot, group in enumerate(members) for patch in group}
        pairs = zip(stage.identity.tolist(), stage.target.tolist(), strict=True)
        assert {patch: slot for patch, slot in pairs if patch >= 0} == went
        assert sum(map(len, members)) == PATCHES
        assert stage.kept == [group[0] for group in members if len(group) == 1]
        assert [set(m["members"]) for m in stage.merged] == [
            set(group[1:]) for group in members if len(group) > 1
        ]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("placement", ["appended", "in_place"])
def test_equal_patches_leave_no_mark(kind: str, placement: Any) -> None:
    """Without positions all patches of a plain picture are equal. Whatever is merged, attention
    with log(size) is that of the unmerged tower, and each token is what every patch would be.
    """
    model = double(tiny(kind))
    tower = model.model.vision_tower
    with torch.no_grad():
        tower.embeddings.position_embedding.weight.zero_()
    images = torch.full((1, 3, 24, 24), 0.7, dtype=torch.float64)
    with torch.no_grad():
        whole = tower(images, output_hidden_states=True).hidden_states[-2][:, int(kind == "clip") :]
    torch.testing.assert_close(whole, whole[:, :1].expand_as(whole))
    seen: list[Tensor] = []
    handle = model.model.multi_modal_projector.register_forward_pre_hook(
        lambda _m, args: seen.append(args[0])
    )
    try:
        for tokens in (PATCHES, 30, 17, 9):
            with ToMe(tokens, placement=placement)(model):
                generate(model, [prompt(3, 4)], images, max_new_tokens=1, min_new_tokens=1)
            assert seen[-1].shape[1] == tokens
            torch.testing.assert_close(seen[-1], whole[:, :tokens])
    finally:
        handle.remove()


def test_in_place_is_raster_order() -> None:
    model = tiny()
    kept = {}
    for placement in ("appended", "in_place"):
        with ToMe(12, placement=placement)(model) as trace:  # type: ignore[arg-type]
            generate(model, [prompt(3, 4)], pixels(1), max_new_tokens=1, min_new_tokens=1)
        stage = trace.samples[0].stages[0]
        assert stage.source is not None
        kept[placement] = stage.identity[stage.source].tolist()
    assert kept["in_place"] == sorted(kept["in_place"]) and len(set(kept["in_place"])) == 12
    assert kept["appended"] != sorted(kept["appended"])


def test_budgets() -> None:
    """Every number that halving reaches is met exactly; what it does not reach is refused first."""
    model = tiny()
    geometry = geometry_of(model)
    assert geometry.tower_layers == DEPTH
    for tokens in range(9, PATCHES + 1):
        method = ToMe.from_average(tokens, num_layers=LAYERS, num_patches=PATCHES)
        method.check(geometry)
        with method(model) as trace:
            model(**batch([prompt(2, 3)]), pixel_values=pixels(1), logits_to_keep=1)
        assert trace.samples[0].tokens_per_layer == method.ledger(LAYERS, PATCHES) == [tokens] * 8
    with pytest.raises(ValueError, match=r"halves them at most, so 9 are the least"):
        ToMe(8).check(geometry)
    with pytest.raises(ValueError, match="tokens=37 asked for where a picture has 36"):
        ToMe(37).check(geometry)
    assert ToMe.from_ratio(0.1) == ToMe(**ToMe.presets["auroracap-0.1"]) == ToMe(576 - 23 * 21)
