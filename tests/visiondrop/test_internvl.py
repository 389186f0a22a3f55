"""What the InternVL adapter computes, against stock code and a slow implementation of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, interpolate, layer_norm

from tests.visiondrop.internvl_models import (
    PATCHES,
    SIDE,
    TILE,
    TOKENS,
    inputs,
    picture,
    prompt,
    tiny_internvl,
)
from tests.visiondrop.models import IMAGE, LAYERS, batch
from visiondrop import VisionDrop
from visiondrop.adapters import adapter_of
from visiondrop.functional.tile_run import TileRun, arrangement

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def rms(x: torch.Tensor, norm: Any) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight


def norm_of(x: torch.Tensor, norm: Any) -> torch.Tensor:
    if isinstance(norm, torch.nn.Identity):
        return x
    if isinstance(norm, torch.nn.LayerNorm):
        return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return rms(x, norm)


def slow_tower(model: Any, tile: torch.Tensor, layers: int) -> tuple[torch.Tensor, ...]:
    """(hidden states [1 + P, D], attention [H, 1 + P, 1 + P], keys [H, 1 + P, d]) of one tile after
    the first `layers` layers, from the weights.
    """
    tower = model.model.vision_tower
    patch = tower.embeddings.patch_embeddings.projection
    size, across = patch.kernel_size[0], TILE // patch.kernel_size[0]
    rows = [tower.embeddings.cls_token[0, 0]]
    for r in range(across):
        for c in range(across):
            cell = tile[:, r * size : (r + 1) * size, c * size : (c + 1) * size]
            rows.append((patch.weight * cell).sum((1, 2, 3)) + patch.bias)
    x = torch.stack(rows) + tower.embeddings.position_embeddings[0]
    for block in tower.encoder.layer[:layers]:
        attention, y = block.attention, norm_of(x, block.layernorm_before)
        heads, d = attention.num_heads, attention.head_dim

        def split(linear: Any, norm: Any, y: torch.Tensor = y, h: int = heads) -> torch.Tensor:
            out = y @ linear.weight.T
            out = out if linear.bias is None else out + linear.bias
            return norm_of(out, norm).unflatten(-1, (h, -1)).transpose(0, 1)

        query = split(attention.q_proj, attention.q_norm)
        key = split(attention.k_proj, attention.k_norm)
        value = split(attention.v_proj, torch.nn.Identity())
        weights = torch.stack(
            [(query[h] @ key[h].T / math.sqrt(d)).softmax(-1) for h in range(heads)]
        )
        mixed = torch.cat([weights[h] @ value[h] for h in range(heads)], -1)
        out = attention.projection_layer
        x = x + block.lambda_1 * (mixed @ out.weight.T + out.bias)
        y = norm_of(x, block.layernorm_after)
        y = gelu(y @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
        x = x + block.lambda_2 * (y @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)
    return x, weights, key


def patches_of(token: int) -> list[int]:
    """The square of 2 x 2 patches that a token shows."""
    row, column = divmod(token, SIDE)
    return [(2 * row + i) * 2 * SIDE + 2 * column + j for i in (0, 1) for j in (0, 1)]


FAMILIES = [
    (dict(normed=normed, layer=layer), layers)
    for normed in (False, True)
    for layer, layers in ((-1, 3), (-2, 2), (2, 2), (3, 3))
]


@torch.no_grad()
@pytest.mark.parametrize(("family", "layers"), FAMILIES)
def test_tower_equals_stock_and_loops(family: dict[str, Any], layers: int) -> None:
    model = tiny_internvl(**family)
    adapter, tiles = adapter_of(model), picture(2, 3)
    out = adapter.encode(model, tiles)
    stock = model.model.get_image_features(tiles, return_dict=True).pooler_output
    torch.testing.assert_close(adapter.project(model, out.features), stock, **CLOSE)
    for t, tile in enumerate(tiles):
        hidden, weights, key = slow_tower(model, tile, layers)
        if family["layer"] == -1:
            hidden = norm_of(hidden, model.model.vision_tower.layernorm)
        torch.testing.assert_close(out.features[t], hidden, **CLOSE)
        torch.testing.assert_close(out.key[t], key, **CLOSE)
        mine = (out.query[t] @ out.key[t].transpose(1, 2) * out.scale).softmax(-1)
        torch.testing.assert_close(mine, weights, **CLOSE)


@torch.no_grad()
def test_a_token_shows_its_square_of_patches() -> None:
    """By the model's own shuffle, and by which token moves when one patch does."""
    model = tiny_internvl()
    adapter = adapter_of(model)
    groups = adapter.groups(model)
    assert groups.sort(1).values.tolist() == [sorted(patches_of(t)) for t in range(TOKENS)]
    features = torch.randn(1, 1 + PATCHES, 32, generator=torch.Generator().manual_seed(0))
    before = adapter.project(model, features)
    for patch in range(PATCHES):
        other = features.clone()
        other[0, 1 + patch] += 1
        moved = (adapter.project(model, other) != before).any(-1)[0]
        assert moved.nonzero().flatten().tolist() == [
            t for t in range(TOKENS) if patch in patches_of(t)
        ]


def slow_shares(total: int, weights: list[float], room: int) -> list[int]:
    """`total` tokens in proportion to `weights`, at most `room` each: one token at a time to whom
    most is owed, after whole shares were given.
    """
    given = [0] * len(weights)
    open_ = set(range(len(weights)))
    left = total
    while True:
        part = {t: left * weights[t] / sum(weights[u] for u in open_) for t in open_}
        over = {t for t in open_ if part[t] >= room}
        if not over:
            break
        for t in over:
            given[t], left = room, left - room
        open_ -= over
        if not open_:
            return given
    for t in open_:
        given[t] = math.floor(part[t] + 1e-9)
    for t in sorted(open_, key=lambda t: (-round(part[t] % 1, 9), t))[: total - sum(given)]:
        given[t] += 1
    return given


def slow_stage(
    model: Any, tiles: torch.Tensor, dominant: int, contextual: int, query: str, equal: bool
) -> tuple[list[int], list[dict[str, Any]], torch.Tensor]:
    """VisionDrop's encoder stage on one picture by loops: (kept token ids, merged ones, embeddings
    [m, D'] in their order).
    """
    scores, keys, tokens = [], [], []
    for tile in tiles:
        hidden, weights, key = slow_tower(model, tile, 3)
        rows = weights[:, :1] if query == "cls" else weights[:, 1:]
        of_patch = rows.mean((0, 1))[1:]
        squares = [patches_of(t) for t in range(TOKENS)]
        scores.append([float(sum(of_patch[p] for p in square) / 4) for square in squares])
        mean_key = key.mean(0)[1:]
        keys.append([sum(mean_key[p] for p in square) / 4 for square in squares])
        tokens.append(adapter_of(model).project(model, hidden[None])[0])
    total, share = dominant + contextual, [1.0] * len(tiles)
    if not equal and len(tiles) > 1:
        # The crops of these pictures lie 1 x 2: left and right half of the thumbnail.
        judged = slow_tower(model, tiles[-1], 3)[1][:, 0].mean(0)[1:]
        grid = torch.tensor(
            [[judged[patches_of(r * SIDE + c)].mean() for c in range(SIDE)] for r in range(SIDE)]
        ).double()
        wide = interpolate(grid[None, None], (SIDE, 2 * SIDE), mode="bilinear")[0, 0]
        halves = [float(wide[:, :SIDE].sum()), float(wide[:, SIDE:].sum())]
        share = [*halves, sum(halves) / 2]
    kept, merged, embeddings = [], [], []
    for t, count in enumerate(slow_shares(total, share, TOKENS)):
        if not count:
            continue
        more = min(round(count * contextual / total), count - 1)
        ranked = sorted(range(TOKENS), key=lambda i: -scores[t][i])
        chosen = sorted(ranked[: count - more])
        rest = [i for i in range(TOKENS) if i not in chosen]
        step = max(1, len(rest) // more) if more else 1
        references = [rest[i * step] for i in range(more)]
        members: dict[int, list[int]] = {r: [] for r in references}
        for i in (i for i in rest if i not in references and more):
            near = [
                float(torch.nn.functional.cosine_similarity(keys[t][i], keys[t][r], dim=0))
                for r in references
            ]
            members[references[near.index(max(near))]].append(i)
        kept += [t * TOKENS + i for i in chosen]
        embeddings += [tokens[t][i] for i in chosen]
        for r in references:
            own = members[r]
            merged.append({"reference": t * TOKENS + r, "members": [t * TOKENS + i for i in own]})
            extra = sum(tokens[t][i] for i in own) / len(own) if own else 0
            embeddings.append(tokens[t][r] + extra)
    return kept, merged, torch.stack(embeddings)


@torch.no_grad()
@pytest.mark.parametrize("equal", [False, True], ids=["importance", "equal"])
@pytest.mark.parametrize("query", ["cls", "patches"])
@pytest.mark.parametrize("normed", [False, True])
def test_encoder_stage_equals_loops(normed: bool, query: Any, equal: bool) -> None:
    """Selection, merging and order of pictures of one and three tiles, and what the decoder makes
    of them.
    """
    model = tiny_internvl(normed=normed)
    if normed:  # the loops stop before the tower's last norm, which no score depends on
        model = tiny_internvl(normed=True, layer=3)
    for count, budget in ((1, (10, 3)), (3, (23, 5))):
        method = VisionDrop(encoder=budget, query=query)
        method = method.on_tiles(share="equal" if equal else "importance")
        tiles = thumbnailed(count)
        row = prompt(4, 6, 2, [count])
        with method(model) as trace:
            out = model(**batch([row]), pixel_values=tiles, logits_to_keep=1)
        kept, merged, embeddings = slow_stage(model, tiles, *budget, query, equal)
        (stage,) = trace.samples[0].stages
        assert (stage.kept, stage.merged) == (kept, merged)
        assert trace.samples[0].tokens_per_layer == [sum(budget)] * LAYERS
        ids = torch.tensor([*kept, *(m["reference"] for m in merged)]) // TOKENS
        assert count == 1 or (ids.bincount().tolist() == [10, 9, 9]) == equal
        at, end = row.index(IMAGE), len(row) - row[::-1].index(IMAGE)
        words = model.get_input_embeddings()(torch.tensor(row))
        whole = torch.cat([words[:at], embeddings, words[end:]])[None]
        expected = model.lm_head(model.model.language_model(inputs_embeds=whole)[0][:, -1])
        torch.testing.assert_close(out.logits[:, -1], expected, **CLOSE)


def thumbnailed(count: int) -> torch.Tensor:
    """Tiles of a random picture, a wide one cut into crops and scaled down, as processors do."""
    if count == 1:
        return picture(1, 5)
    crops = 1.5 * interpolate(picture(1, 8), (TILE, TILE * (count - 1)), mode="bilinear")
    crops = crops + 0.3 * torch.randn(crops.shape, generator=torch.Generator().manual_seed(8))
    small = interpolate(crops, (TILE, TILE), mode="area")
    return torch.cat([torch.cat(crops.split(TILE, 3)), small])


@pytest.mark.parametrize("budget", ["picture", "ratio", "tile"])
@pytest.mark.parametrize("share", ["importance", "equal"])
def test_budgets_are_met_exactly(budget: Any, share: Any) -> None:
    """For every number of tiles that the processor makes; whole pictures where they hold less."""
    model = tiny_internvl()
    tiles = [1, *range(3, 14)]
    rows, images = [prompt(3, 4, 1, [count]) for count in tiles], inputs(tiles, [*range(12)])
    first = {"picture": 30, "ratio": 60, "tile": 7}[budget]
    method = VisionDrop(encoder=(first - 2, 2), llm={2: (first // 2, 1), 5: (first // 3, 0)})
    with method.on_tiles(budget=budget, share=share)(model) as trace, torch.no_grad():
        model(**batch(rows), **images, logits_to_keep=1)
    assert len(trace.samples) == len(tiles)
    for count, sample in zip(tiles, trace.samples, strict=True):
        scale = {"picture": 1, "ratio": count / 13, "tile": count}[budget]
        left, plan = count * TOKENS, []
        for layer in range(LAYERS):
            total = {0: first, 2: first // 2 + 1, 5: first // 3}.get(layer, left)
            left = min(left, total if layer not in (0, 2, 5) else max(1, round(total * scale)))
            plan.append(left)
        assert sample.tokens_per_layer == plan
        assert sample.newlines_per_layer == [0] * LAYERS


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 3), (3, 2), (3, 4), (1, 12), (6, 2)])
def test_how_crops_lie_is_seen(shape: tuple[int, int]) -> None:
    rows, columns = shape
    noise = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(rows))
    whole = interpolate(noise, (rows * TILE, columns * TILE), mode="bicubic")
    crops = torch.cat([part for line in whole.split(TILE, 2) for part in line.split(TILE, 3)])
    small = interpolate(noise, (TILE, TILE), mode="bicubic")
    tiles = torch.cat([crops, small])
    assert arrangement(tiles) == shape
    run = TileRun.of(tiles, SIDE)
    assert (run.tiles, run.overview, run.unpruned) == (len(tiles), rows * columns, len(tiles) * 16)
    assert run.locate(TOKENS * (rows * columns) + SIDE + 2) == ("patch", rows * columns, 1, 2)
    cell = TILE // SIDE
    left, top = ((columns - 1) * SIDE + 2) * cell, ((rows - 1) * SIDE + 1) * cell
    token = TOKENS * (rows * columns - 1) + SIDE + 2  # of the last crop
    assert run.box(token) == pytest.approx((left, top, left + cell, top + cell))
    across, down = columns * cell, rows * cell
    assert run.box(token + TOKENS) == pytest.approx((2 * across, down, 3 * across, 2 * down))
    bright = torch.zeros(SIDE, SIDE)
    bright[0, 0] = 1.0
    weights = run.importance(bright.flatten())
    assert weights.argmax() == 0 and weights.sum() == pytest.approx(1)
    assert weights[-1] == pytest.approx(float(weights[:-1].mean()))
    assert torch.equal(TileRun.of(tiles[:1], SIDE).importance(bright), torch.ones(1).double())
