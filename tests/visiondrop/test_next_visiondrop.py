"""VisionDrop on any-resolution pictures against an independent slow implementation.

No released code has it. The oracle below takes the unpruned order from the stock packing (of token
numbers), looks at one token after another, and shares no code with the library.
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
)
from visiondrop import VisionDrop

NEWLINE = "newline"
Token = tuple[Any, Any]
"""(tile, patch), (tile, "cls") or (NEWLINE, row)."""


def unpruned_order(model: Any, size: tuple[int, int], tiles: int) -> list[Token]:
    numbers = torch.arange(tiles * PATCHES).float().view(tiles, PATCHES, 1)
    packed, _ = model.model.pack_image_features(
        [numbers], torch.tensor([size]), "default", image_newline=torch.tensor([-1.0])
    )
    out: list[Token] = []
    row = 0
    for number in packed[0][:, 0].int().tolist():
        out.append((NEWLINE, row) if number < 0 else divmod(number, PATCHES))
        row += number < 0
    return out


def rows_of(order: list[Token]) -> dict[Token, int]:
    """Crop patch -> row: the number of newlines before it."""
    out, row = {}, 0
    for token in order[PATCHES:]:
        if token[0] == NEWLINE:
            row += 1
        else:
            out[token] = row
    return out


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def shares(total: int, weights: list[float], room: list[int]) -> list[int]:
    """In proportion, full tiles first, then the largest remainders."""
    exact = [total * w / sum(weights) for w in weights]
    for tile, (want, most) in enumerate(zip(exact, room, strict=True)):
        if want >= most and weights[tile]:
            rest = [w if t != tile else 0.0 for t, w in enumerate(weights)]
            out = shares(total - most, rest, room)
            return [most if t == tile else n for t, n in enumerate(out)]
    given = [int(want + 1e-9) for want in exact]
    short = sorted(range(len(room)), key=lambda t: given[t] - exact[t])
    return [n + (t in short[: total - sum(given)]) for t, n in enumerate(given)]


def reduce(
    keep: list[int], score: dict[int, float], dominant: int, contextual: int, key: Any
) -> tuple[list[int], list[tuple[int, list[int]]]]:
    """The dominant tokens, and each reference with its members."""
    best = sorted(keep, key=lambda j: (-score[j], j))[:dominant]
    kept = sorted(best)
    rest = [j for j in keep if j not in best]
    if not contextual:
        return kept, []
    references = rest[:: max(1, len(rest) // contextual)][:contextual]
    members: dict[int, list[int]] = {r: [] for r in references}
    for j in rest:
        if j not in references:
            cosines = [float(torch.cosine_similarity(key(j), key(r), dim=0)) for r in references]
            members[references[cosines.index(max(cosines))]].append(j)
    return kept, list(members.items())


def merged(x: Any, reference: int, members: list[int]) -> Tensor:
    own = x[reference]
    return own + torch.stack([x[m] for m in members]).mean(0) if members else own


@torch.no_grad()
def tower_states(model: Any, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, queries and keys [T, 1 + P, ...] of the layer that makes them."""
    tower = model.model.vision_tower
    states = tower(tiles, output_hidden_states=True).hidden_states
    layer = tower.encoder.layers[-2]
    normed = layer.layer_norm1(states[-3])
    heads = layer.self_attn.num_heads
    split = lambda t: t.view(*t.shape[:2], heads, -1)  # noqa: E731
    q, k = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
    return states[-2], split(q), split(k)


def cls_scores(query: Tensor, key: Tensor, tokens: list[int]) -> dict[int, float]:
    """Attention of CLS to some tokens of a tile, over these, summed over heads."""
    out = dict.fromkeys(tokens, 0.0)
    for head in range(query.shape[1]):
        row = [float(query[0, head] @ key[j, head]) / math.sqrt(key.shape[-1]) for j in tokens]
        for j, weight in zip(tokens, softmax(row), strict=True):
            out[j] += weight
    return out


def importance(query: Tensor, key: Tensor, order: list[Token], tiles: int) -> list[float]:
    """The thumbnail's CLS attention, stretched over the unpadded rows, summed over each crop."""
    score = cls_scores(query, key, list(range(1 + PATCHES)))
    small = torch.tensor([score[j] for j in range(1, 1 + PATCHES)]).double()
    patches = [t for t in order[PATCHES:] if t[0] != NEWLINE]
    rows = len(set(rows_of(order).values()))
    columns = len(patches) // rows
    large = torch.nn.functional.interpolate(
        small.view(1, 1, SIDE, SIDE), (rows, columns), mode="bilinear", align_corners=False
    ).flatten()
    crops = [0.0] * tiles
    for value, (tile, _) in zip(large.tolist(), patches, strict=True):
        crops[tile] += value
    crops[0] = sum(crops[1:]) / (tiles - 1)
    return crops


@torch.no_grad()
def encoder_stage(
    model: Any, tiles: Tensor, order: list[Token], budget: tuple[int, int]
) -> list[tuple[Token, Tensor, bool]]:
    """The picture as it enters the LLM: (token, embedding, whether merged)."""
    count, (dominant, contextual) = len(tiles), budget
    features, query, key = tower_states(model, tiles)
    seen = [[0, *(1 + p for t, p in order if t == tile)] for tile in range(count)]
    weights = importance(query[0], key[0], order, count)
    budgets = shares(dominant + contextual, weights, [len(s) for s in seen])
    project = lambda x: model.model.multi_modal_projector(x[None, None])[0, 0]  # noqa: E731
    kept: dict[Token, Tensor] = {}
    behind: list[list[tuple[Token, Tensor, bool]]] = []
    for tile, (tokens, total) in enumerate(zip(seen, budgets, strict=True)):
        behind.append([])
        if not total:
            continue
        c = min(round(total * contextual / (dominant + contextual)), total - 1)
        score = cls_scores(query[tile], key[tile], tokens) | {0: math.inf}
        metric = lambda j, k=key[tile]: k[j].mean(0)  # noqa: E731
        best, groups = reduce(tokens, score, total - c, c, metric)
        for j in best:
            kept[tile, "cls" if j == 0 else j - 1] = project(features[tile, j])
        for reference, members in groups:
            own = project(merged(features[tile], reference, members))
            behind[-1].append(((tile, reference - 1), own, True))
    out = [((0, "cls"), kept[0, "cls"], False)] if (0, "cls") in kept else []
    out += [(t, kept[t], False) for t in order[:PATCHES] if t in kept] + behind[0]
    row_holds = False
    for token in order[PATCHES:]:
        if token in kept:
            out.append((token, kept[token], False))
            row_holds = True
        elif token[0] == NEWLINE:
            if row_holds:
                out.append((token, model.model.image_newline, False))
            row_holds = False
    out += [((t, "cls"), kept[t, "cls"], False) for t in range(1, count) if (t, "cls") in kept]
    return out + sum(behind[1:], [])


@torch.no_grad()
def run_layers(model: Any, x: Tensor, first: int, last: int) -> Tensor:
    decoder = model.model.language_model
    rope = decoder.rotary_emb(x[None], position_ids=torch.arange(len(x))[None])
    mask = torch.full((len(x), len(x)), -math.inf).triu(1)[None, None]
    for layer in decoder.layers[first:last]:
        x = layer(x[None], attention_mask=mask, position_embeddings=rope)
        x = x[0] if x.dim() == 3 else x
    return x


@torch.no_grad()
def llm_stage(
    model: Any, layer: int, x: Tensor, start: int, tokens: list[Token], budget: tuple[int, int],
    rows: dict[Token, int],
) -> tuple[Tensor, list[Token]]:  # fmt: skip
    """Hidden states and tokens of the picture after a stage; newlines are keys, never judged."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    decoder = model.model.language_model
    attention = decoder.layers[layer].self_attn
    normed = decoder.layers[layer].input_layernorm(x)
    cos, sin = decoder.rotary_emb(x[None], position_ids=torch.arange(len(x))[None])
    split = lambda t: t.view(1, len(x), -1, attention.head_dim).transpose(1, 2)  # noqa: E731
    q, k = apply_rotary_pos_emb(
        split(attention.q_proj(normed)), split(attention.k_proj(normed)), cos, sin
    )
    q, k = q[0], k[0]
    visual = [i for i, t in enumerate(tokens) if t[0] != NEWLINE]
    score = dict.fromkeys(visual, 0.0)
    for head in range(q.shape[0]):
        keys = k[head * k.shape[0] // q.shape[0]]
        for i in visual:
            at = start + i
            logits = (keys[: at + 1] @ q[head, at] / math.sqrt(attention.head_dim)).tolist()
            weights = softmax(logits)
            for j in visual:
                score[j] += weights[start + j] if j <= i else 0.0
    kept, groups = reduce(visual, score, *budget, lambda j: k[:, start + j].mean(0))
    picture = x[start : start + len(tokens)]
    states, names = [], []
    for i, token in enumerate(tokens):
        lined = token[0] == NEWLINE and any(j < i and rows.get(tokens[j]) == token[1] for j in kept)
        if i in kept or lined:
            states.append(picture[i])
            names.append(token)
    for reference, members in groups:
        states.append(merged(picture, reference, members))
        names.append(tokens[reference])
    after = start + len(tokens)
    return torch.cat([x[:start], torch.stack(states), x[after:]]), names


@pytest.mark.parametrize("size", SIZES[:3])
def test_visiondrop_equals_slow_implementation(size: tuple[int, int]) -> None:
    method = VisionDrop(encoder=(34, 6), llm={2: (20, 4), 5: (9, 2)})
    model, tiles = tiny_next(decoder="llama", kv_heads=2), picture(size, 7)
    order, ids = unpruned_order(model, size, len(tiles)), prompt(3, 5, 1, [size])
    rows, at = rows_of(order), ids.index(IMAGE)
    with method(model) as trace:
        out = generate(model, [ids], inputs([size], [7]), max_new_tokens=1, min_new_tokens=1)
    sample = trace.samples[0]

    with torch.no_grad():
        words = model.get_input_embeddings()(torch.tensor([w for w in ids if w != IMAGE]))
    entered = encoder_stage(model, tiles, order, method.encoder)
    tokens = [token for token, _, _ in entered]
    x = torch.cat([words[:at], torch.stack([e for _, e, _ in entered]), words[at:]])
    assert named(sample, 0, rows) == tokens
    assert sample.stages[0].contextual.tolist() == [flag for _, _, flag in entered]
    edges = [0, *method.llm, 8]
    for number, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
        if first:
            x, tokens = llm_stage(model, first, x, at, tokens, method.llm[first], rows)
            assert named(sample, number, rows) == tokens
        assert sample.lengths[first] == len(x)
        x = run_layers(model, x, first, last)
    with torch.no_grad():
        logits = model.lm_head(model.model.language_model.norm(x[-1]))
    torch.testing.assert_close(out.logits[0][0], logits, atol=2e-4, rtol=1e-4)


def named(sample: Any, stage: int, rows: dict[Token, int]) -> list[Token]:
    """The trace's tokens after a stage in the oracle's words (rows counted without padding)."""
    record, grid = sample.stages[stage], sample.grids[0]
    out: list[Token] = []
    for token in record.identity[record.source].tolist():
        kind, tile, row, column = grid.locate(token)
        if kind == "newline":
            out.append((NEWLINE, row - grid.window[0]))
        else:
            out.append((tile, "cls" if kind == "cls" else row * SIDE + column))
    return out
