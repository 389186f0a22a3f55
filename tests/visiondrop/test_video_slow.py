"""VisionDrop on clips against an independent slow implementation, one token after another.

No released code of it for videos is there.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.visiondrop.test_next_visiondrop import cls_scores, llm_stage, merged, reduce, run_layers
from tests.visiondrop.video_models import (
    CLIP_TOKENS,
    FRAME,
    FRAMES,
    VIDEO,
    clip,
    generate,
    inputs,
    prompt,
    tiny_video,
)
from visiondrop import VisionDrop


@torch.no_grad()
def tower_states(model: Any, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, queries and keys [F, 1 + P, ...] of the layer that makes them."""
    tower = model.model.video_tower
    states = tower(frames, output_hidden_states=True).hidden_states
    layer = tower.encoder.layers[-2]
    normed = layer.layer_norm1(states[-3])
    q, k = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
    heads = layer.self_attn.num_heads
    return states[-2], q.view(*q.shape[:2], heads, -1), k.view(*k.shape[:2], heads, -1)


@torch.no_grad()
def frame_by_frame(
    model: Any, frames: Tensor, budget: tuple[int, int]
) -> list[tuple[tuple[int, int], Tensor, bool]]:
    """The clip as it enters the LLM: ((frame, place), embedding, whether merged); place 0 is
    CLS.
    """
    dominant, contextual = budget
    total = dominant + contextual
    features, query, key = tower_states(model, frames)
    project = lambda x: model.model.multi_modal_projector(x[None, None])[0, 0]  # noqa: E731
    out = []
    for f in range(len(frames)):
        own = (f + 1) * total // len(frames) - f * total // len(frames)
        c = min(round(own * contextual / total), own - 1)
        score = cls_scores(query[f], key[f], list(range(FRAME))) | {0: math.inf}
        metric = lambda j, k=key[f]: k[j].mean(0)  # noqa: E731
        best, groups = reduce(list(range(FRAME)), score, own - c, c, metric)
        out += [((f, j), project(features[f, j]), False) for j in best]
        for reference, members in groups:
            out.append(((f, reference), project(merged(features[f], reference, members)), True))
    return out


def named(sample: Any, stage: int) -> list[tuple[int, int]]:
    """The trace's tokens after a stage as (frame, place)."""
    record, grid = sample.stages[stage], sample.grids[0]
    out = []
    for token in record.identity[record.source].tolist():
        kind, frame, row, column = grid.locate(token)
        out.append((frame, 0 if kind == "cls" else 1 + row * grid.side + column))
    return out


@pytest.mark.parametrize("seed", [7, 8])
def test_visiondrop_equals_slow_implementation(seed: int) -> None:
    method = VisionDrop(encoder=(17, 6), llm={2: (12, 3), 5: (6, 2)})
    model, ids = tiny_video(kv_heads=2), prompt(3, 5, seed, "v")
    at = ids.index(VIDEO)
    with method(model) as trace:
        out = generate(model, [ids], inputs("v", [seed]), max_new_tokens=1, min_new_tokens=1)
    sample = trace.samples[0]

    with torch.no_grad():
        words = model.get_input_embeddings()(torch.tensor([w for w in ids if w != VIDEO]))
    entered = frame_by_frame(model, clip(seed), method.encoder)  # type: ignore[arg-type]
    tokens = [token for token, _, _ in entered]
    assert len({frame for frame, _ in tokens}) == FRAMES and len(tokens) == 23
    x = torch.cat([words[:at], torch.stack([e for _, e, _ in entered]), words[at:]])
    assert named(sample, 0) == tokens
    assert sample.stages[0].contextual.tolist() == [flag for _, _, flag in entered]
    assert sample.stages[0].tokens_in == CLIP_TOKENS
    edges = [0, *method.llm, 8]
    for number, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
        if first:
            x, tokens = llm_stage(model, first, x, at, tokens, method.llm[first], {})
            assert named(sample, number) == tokens
        assert sample.lengths[first] == len(x)
        x = run_layers(model, x, first, last)
    with torch.no_grad():
        logits = model.lm_head(model.model.language_model.norm(x[-1]))
    torch.testing.assert_close(out.logits[0][0], logits, atol=2e-4, rtol=1e-4)
