"""VisionDrop on packed pictures and pooled clips against an independent slow implementation.

No released code has it. The oracle below lays out the grid, cuts the padding, shrinks and closes
rows with newlines by itself, looks at one token after another, and shares no code with the library
or with stock packing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.visiondrop.models import IMAGE
from tests.visiondrop.onevision_models import (
    FRAMES,
    MOST,
    PATCHES,
    SIDE,
    SIZES,
    TILE,
    VIDEO,
    clip,
    generate,
    inputs,
    picture,
    prompt,
    tiny_onevision,
)
from tests.visiondrop.test_next_visiondrop import (
    NEWLINE,
    Token,
    llm_stage,
    merged,
    reduce,
    run_layers,
    softmax,
)
from visiondrop import VisionDrop

LAYOUT = {SIZES[0]: (2, 2), SIZES[2]: (3, 3), SIZES[3]: (1, 3)}
"""(rows, columns) of crops."""


@torch.no_grad()
def tower_states(model: Any, tiles: Tensor) -> tuple[Tensor, list[list[float]], Tensor]:
    """Embeddings [T, P, D'] of the patches, their scores [T][P], and their mean keys [T, P, d]."""
    tower = model.model.vision_tower
    states = tower(tiles, output_hidden_states=True).hidden_states
    layer = tower.encoder.layers[-1]
    normed = layer.layer_norm1(states[-2])
    heads = layer.self_attn.num_heads
    split = lambda t: t.view(*t.shape[:2], heads, -1)  # noqa: E731
    q, k = split(layer.self_attn.q_proj(normed)), split(layer.self_attn.k_proj(normed))
    scores = []
    for t in range(len(tiles)):
        own = [0.0] * PATCHES
        for head in range(heads):
            for i in range(PATCHES):
                products = (k[t, :, head] @ q[t, i, head] / math.sqrt(k.shape[-1])).tolist()
                for j, weight in enumerate(softmax(products)):
                    own[j] += weight / heads / PATCHES
        scores.append(own)
    return model.model.multi_modal_projector(states[-1]), scores, k.mean(2)


def resized(cells: list[list[Any]], rows: int, columns: int) -> list[list[Any]]:
    """Bilinear, half-pixel centres, edges repeated."""

    def taps(size: int, count: int) -> list[tuple[int, int, float]]:
        out = []
        for i in range(count):
            at = max((i + 0.5) * size / count - 0.5, 0.0)
            low = min(int(at), size - 1)
            out.append((low, min(low + 1, size - 1), at - low))
        return out

    across = taps(len(cells[0]), columns)
    wide = [[row[a] * (1 - w) + row[b] * w for a, b, w in across] for row in cells]
    down = taps(len(cells), rows)
    return [[wide[a][c] * (1 - w) + wide[b][c] * w for c in range(columns)] for a, b, w in down]


def window(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns cut away on either side of the crops' grid."""
    down, across = LAYOUT[size]
    (height, width), rows, columns = size, down * SIDE, across * SIDE
    if width / height > columns / rows:
        return (rows - int(round(height * columns / width, 7))) // 2, 0
    return 0, (columns - int(round(width * rows / height, 7))) // 2


def grid_cells(size: tuple[int, int], values: Callable[[int, int], Any]) -> list[list[Any]]:
    """The crops' grid of `values(tile, patch)`, unpadded and shrunk."""
    down, across = LAYOUT[size]
    top, left = window(size)
    cells = []
    for r in range(top, down * SIDE - top):
        line = []
        for c in range(left, across * SIDE - left):
            tile = 1 + r // SIDE * across + c // SIDE
            line.append(values(tile, r % SIDE * SIDE + c % SIDE))
        cells.append(line)
    ratio = math.sqrt(len(cells) * len(cells[0]) / (MOST * SIDE * SIDE))
    if ratio > 1.1:
        cells = resized(cells, int(len(cells) // ratio), int(len(cells[0]) // ratio))
    return cells


def packed(size: tuple[int, int], values: Callable[[int, int], Any]) -> dict[Token, Any]:
    """Value of each token: (0, patch) of the base, (1, (row, column)) of the grid."""
    out = {(0, p): values(0, p) for p in range(PATCHES)}
    for r, line in enumerate(grid_cells(size, values)):
        out |= {(1, (r, c)): value for c, value in enumerate(line)}
    return out


Entered = list[tuple[Token, Tensor, bool]]


@torch.no_grad()
def enter_picture(model: Any, size: tuple[int, int], tiles: Tensor, budget: Any) -> Entered:
    """(token, embedding, whether merged) of the picture as it enters the LLM."""
    features, scores, keys = tower_states(model, tiles)
    embedding = packed(size, lambda t, p: features[t, p])
    score = packed(size, lambda t, p: scores[t][p])
    key = packed(size, lambda t, p: keys[t, p])
    names = list(embedding)
    best, groups = reduce(
        list(range(len(names))),
        {j: float(score[name]) for j, name in enumerate(names)},
        *budget,
        lambda j: key[names[j]],
    )
    tokens = [embedding[name] for name in names]
    out: Entered = []
    for place, j in enumerate(best):
        out.append((names[j], tokens[j], False))
        row = names[j][1][0] if names[j][0] == 1 else None
        later = best[place + 1] if place + 1 < len(best) else None
        if row is not None and (later is None or names[later][1][0] != row):
            out.append(((NEWLINE, row), model.model.image_newline, False))
    for reference, members in groups:
        out.append((names[reference], merged(tokens, reference, members), True))
    return out


@torch.no_grad()
def enter_clip(model: Any, frames: Tensor, budget: Any) -> Entered:
    """The same of a clip, frame by frame; a newline closes it."""
    features, scores, keys = tower_states(model, frames)
    total, contextual = sum(budget), budget[1]
    kept: Entered = []
    for f in range(len(frames)):
        pooled = [
            sum(resized([of[r * SIDE : (r + 1) * SIDE] for r in range(SIDE)], 3, 3), [])
            for of in (list(features[f]), scores[f], list(keys[f]))
        ]
        tokens, score, key = pooled
        own = (f + 1) * total // len(frames) - f * total // len(frames)
        c = min(round(own * contextual / total), own - 1)
        best, groups = reduce(
            list(range(9)), dict(enumerate(score)), own - c, c, lambda j, k=key: k[j]
        )
        kept += [((f, j), tokens[j], False) for j in best]
        for reference, members in groups:
            kept.append(((f, reference), merged(tokens, reference, members), True))
    return [*kept, ((NEWLINE, 0), model.model.image_newline, False)]


def named(sample: Any, stage: int) -> list[Token]:
    """The trace's tokens after a stage in the oracle's words."""
    record, grid = sample.stages[stage], sample.grids[0]
    out: list[Token] = []
    for token in record.identity[record.source].tolist():
        kind, part, row, column = grid.locate(token)
        if kind == "newline":
            out.append((NEWLINE, row))
        elif kind == "token":
            out.append((1, (row, column)))
        else:
            out.append((part, row * grid.side + column))
    return out


@pytest.mark.parametrize("thing", [*LAYOUT, "v"])
def test_visiondrop_equals_slow_implementation(thing: Any) -> None:
    method = VisionDrop(encoder=(17, 5), llm={2: (10, 3), 5: (5, 2)})
    model, ids = tiny_onevision(), prompt(3, 5, 1, [thing])
    clip_given = thing == "v"
    holder = VIDEO if clip_given else IMAGE
    at = ids.index(holder)
    pixels = inputs([[thing]], [[7]])
    with method(model) as trace:
        out = generate(model, [ids], pixels, max_new_tokens=1, min_new_tokens=1)
    sample = trace.samples[0]

    if clip_given:
        entered = enter_clip(model, clip(7), method.encoder)
        rows = {(f, p): 0 for f in range(FRAMES) for p in range(9)}
    else:
        entered = enter_picture(model, thing, picture(thing, 7), method.encoder)
        rows = {(1, (r, c)): r for r in range(3 * SIDE) for c in range(3 * SIDE)}
    with torch.no_grad():
        words = model.get_input_embeddings()(torch.tensor([w for w in ids if w != holder]))
    tokens = [token for token, _, _ in entered]
    assert sum(token[0] != NEWLINE for token in tokens) == 22 and TILE == SIDE * 4
    x = torch.cat([words[:at], torch.stack([e for _, e, _ in entered]), words[at:]])
    assert named(sample, 0) == tokens
    assert sample.stages[0].contextual.tolist() == [flag for _, _, flag in entered]
    edges = [0, *method.llm, 8]
    for number, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
        if first:
            x, tokens = llm_stage(model, first, x, at, tokens, method.llm[first], rows)
            assert named(sample, number) == tokens
        assert sample.lengths[first] == len(x)
        x = run_layers(model, x, first, last)
    with torch.no_grad():
        logits = model.lm_head(model.model.language_model.norm(x[-1]))
    torch.testing.assert_close(out.logits[0][0], logits, atol=2e-4, rtol=1e-4)
