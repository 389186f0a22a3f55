"""HiRED on any-resolution pictures against an independent slow implementation.

METHODS' figures cover LLaVA-1.5 alone. The oracle takes the unpruned order from the stock packing,
scores token by token, and shares no code with the library.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.visiondrop.models import IMAGE
from tests.visiondrop.next_models import (
    PATCHES,
    SIDE,
    SIZES,
    generate,
    inputs,
    picture,
    prompt,
    tiny_next,
    unpruned,
)
from tests.visiondrop.test_next_visiondrop import (
    NEWLINE,
    Token,
    cls_scores,
    named,
    rows_of,
    tower_states,
    unpruned_order,
)
from visiondrop.methods.hired import HiRED

GRIDS = {(48, 36): (2, 2), (24, 40): (1, 2), (17, 72): (1, 3), (48, 48): (2, 2)}


@torch.no_grad()
def first_layer(model: Any, thumbnail: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [1 + P, heads, d] of tower layer 0, from the stock tower's first state."""
    tower = model.model.vision_tower
    state = tower(thumbnail[None], output_hidden_states=True).hidden_states[0][0]
    layer = tower.encoder.layers[0]
    normed = layer.layer_norm1(state)
    split = lambda t: t.view(len(t), layer.self_attn.num_heads, -1)  # noqa: E731
    return split(layer.self_attn.q_proj(normed)), split(layer.self_attn.k_proj(normed))


def shares(
    early: dict[int, float], tokens: int, alpha: float, rule: str, grid: tuple[int, int]
) -> list[int]:
    """Of the thumbnail and the crops, before any crop is found too small."""
    rows, columns = grid
    crops = rows * columns
    weight = [0.0] * crops
    best = sorted(early, key=lambda j: (-early[j], j))[: int(PATCHES * (1 - alpha))]
    for j, value in early.items():
        y, x = divmod(j, SIDE)
        if rule == "released":
            weight[j // (PATCHES // crops)] += j in best
        elif y // (SIDE // rows) < rows and x // (SIDE // columns) < columns:
            weight[y // (SIDE // rows) * columns + x // (SIDE // columns)] += value
    first = min(int(tokens * alpha), PATCHES)
    rest = min(tokens - first, crops * PATCHES)
    return [first, *(int(w / sum(weight) * rest + 1e-6) for w in weight)]


@pytest.mark.parametrize("rule", ["released", "paper"])
@pytest.mark.parametrize("size", SIZES)
def test_hired_equals_slow_implementation(size: tuple[int, int], rule: str) -> None:
    tokens, alpha = 70, 0.4
    method = HiRED(tokens, alpha=alpha, partition=rule)  # type: ignore[arg-type]
    model, tiles = tiny_next(), picture(size, 7)
    order, ids = unpruned_order(model, size, len(tiles)), prompt(3, 5, 1, [size])
    rows, at = rows_of(order), ids.index(IMAGE)
    with method(model) as trace:
        out = generate(model, [ids], inputs([size], [7]), max_new_tokens=1, min_new_tokens=1)
    sample = trace.samples[0]

    every = list(range(1 + PATCHES))
    early = cls_scores(*first_layer(model, tiles[0]), every)
    early = {j - 1: value for j, value in early.items() if j}
    features, query, key = tower_states(model, tiles)
    seen = [[p for t, p in order if t == tile] for tile in range(len(tiles))]
    budgets = shares(early, tokens, alpha, rule, GRIDS[size])
    kept: set[Token] = set()
    for tile, (patches, budget) in enumerate(zip(seen, budgets, strict=True)):
        score = cls_scores(query[tile], key[tile], every)
        best = sorted(patches, key=lambda p: (-score[1 + p], p))[:budget]
        kept |= {(tile, p) for p in best}
    assert tokens - len(tiles) < len(kept) <= tokens or any(
        budget > len(own) for budget, own in zip(budgets, seen, strict=True)
    )

    expected: list[Token] = []
    for token in order:
        if token[0] == NEWLINE:
            if any(rows.get(other) == token[1] for other in expected):
                expected.append(token)
        elif token in kept:
            expected.append(token)
    assert named(sample, 0, rows) == expected
    assert set(sample.lengths) == {len(ids) - len(order) + len(expected)}

    with torch.no_grad():
        words = model.get_input_embeddings()(torch.tensor([w for w in ids if w != IMAGE]))
        embeds = [
            model.model.image_newline
            if tile == NEWLINE
            else model.model.multi_modal_projector(features[tile, 1 + patch][None])[0]
            for tile, patch in expected
        ]
        whole = torch.cat([words[:at], torch.stack(embeds), words[at:]])[None]
        logits = model.lm_head(model.model.language_model(inputs_embeds=whole)[0])[0, -1]
    torch.testing.assert_close(out.logits[0][0], logits, atol=2e-4, rtol=1e-4)


def test_early_attention_alone_shares_among_the_crops() -> None:
    """Blanking the last layers changes what is kept in a tile, never how many."""
    model, size = tiny_next(), SIZES[3]
    ids, counts, kept = prompt(3, 5, 1, [size]), [], []
    attention = model.model.vision_tower.encoder.layers[-2].self_attn
    before = attention.q_proj.weight.clone()
    for scale in (1.0, -1.0):
        with torch.no_grad():
            attention.q_proj.weight.copy_(before * scale)
        with HiRED(60)(model) as trace:
            generate(model, [ids], inputs([size], [7]), max_new_tokens=1, min_new_tokens=1)
        record, grid = trace.samples[0].stages[0], trace.samples[0].grids[0]
        places = [grid.locate(t) for t in record.identity[record.source].tolist()]
        kept.append(places)
        counts.append([sum(t == tile for _, t, *_ in places) for tile in range(grid.tiles)])
    with torch.no_grad():
        attention.q_proj.weight.copy_(before)
    assert counts[0] == counts[1] and kept[0] != kept[1]


@pytest.mark.parametrize("tokens", [37, 100, 143])
def test_fill_meets_the_budget_exactly(tokens: int) -> None:
    model = tiny_next()
    rows = [prompt(3, 4, 1, [size]) for size in SIZES]
    images = inputs(SIZES, [1, 2, 3, 4])
    for fill in (False, True):
        with HiRED(tokens, fill=fill).on_tiles(budget="ratio")(model) as trace:
            generate(model, rows, images, max_new_tokens=1, min_new_tokens=1)
        for size, sample in zip(SIZES, trace.samples, strict=True):
            tiles = 1 + math.prod(GRIDS[size])
            patches = sample.tokens_per_layer[0] - sample.newlines_per_layer[0]
            top, bottom = sample.grids[0].window[:2]
            asked = min(round(tokens * tiles / 5), unpruned(size) - (bottom - top))
            assert patches == asked if fill else patches <= asked
        assert trace.mean_tokens > 0


def test_more_than_there_is_leaves_the_picture_whole() -> None:
    model, size = tiny_next(), SIZES[0]  # padded: fewer patches than 5 tiles have
    ids = prompt(3, 5, 1, [size])
    plain = generate(model, [ids], inputs([size], [7]))
    with HiRED(5 * PATCHES)(model) as trace:
        out = generate(model, [ids], inputs([size], [7]))
    assert set(trace.samples[0].tokens_per_layer) == {len([w for w in ids if w == IMAGE])}
    torch.testing.assert_close(out.logits[0], plain.logits[0], atol=2e-4, rtol=1e-4)


def test_hired_refuses_impossible_shares() -> None:
    with pytest.raises(ValueError, match="alpha=1.5"), HiRED(9, alpha=1.5)(tiny_next()):
        raise AssertionError("not refused")
