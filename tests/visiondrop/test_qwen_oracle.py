"""VisionDrop on Qwen2-VL and Qwen2.5-VL against an independent slow implementation.

No released code has it. The oracle below runs tower and decoder by itself, one token after another
(patches are not reordered, windows are told by place, positions and rotation are its own), and
shares no code with the library.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.visiondrop.qwen_models import (
    IMAGE,
    JUDGE,
    VIDEO,
    Visual,
    generate,
    inputs,
    patches,
    row,
    tiny_qwen,
)
from visiondrop import VisionDrop
from visiondrop.scoring import column_mean
from visiondrop.views import DecoderView

FAMILIES = ["qwen2_5_vl", "qwen2_vl"]
SECONDS = 2.0
Place = tuple[int, int, int]


def rotated(x: Tensor, angles: list[float]) -> Tensor:
    """Each pair (i, i + d/2) of x [d] turned by its angle."""
    half = len(x) // 2
    out = x.clone()
    for i, angle in enumerate(angles):
        a, b = x[i], x[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


# ------------------------------------------------------------------------------ the tower


def patch_places(shape: tuple[int, int, int]) -> list[Place]:
    """(frame, row, column) of each patch as the processor packs them: 2 x 2 together."""
    t, h, w = shape
    return [
        (f, 2 * r + dr, 2 * c + dc)
        for f in range(t) for r in range(h) for c in range(w) for dr in (0, 1) for dc in (0, 1)
    ]  # fmt: skip


@torch.no_grad()
def tower(model: Any, family: str, visual: Visual) -> tuple[Tensor, Tensor, Tensor]:
    """Of one picture or video: tokens [n, D'], score [n] and key [n, d] of each."""
    kind, shape, seed = visual
    net, at = model.model.visual, patch_places(shape)
    x = net.patch_embed(patches(shape, seed))
    count, heads = len(at), net.blocks[0].attn.num_heads
    size = x.shape[-1] // heads
    # Rows turn the first quarter of the pairs, columns the second.
    step = [1e4 ** (-4 * i / size) for i in range(size // 4)]
    turns = [[r * s for s in step] + [c * s for s in step] for _, r, c in at]
    score, mean_key = torch.zeros(count), torch.zeros(count, size)
    for number, block in enumerate(net.blocks):
        full = family == "qwen2_vl" or number == JUDGE[family]
        room = [(f,) if full else (f, r // 4, c // 4) for f, r, c in at]
        q, k, v = (p.view(count, heads, size) for p in block.attn.qkv(block.norm1(x)).chunk(3, -1))
        q = torch.stack(
            [torch.stack([rotated(h, a) for h in p]) for p, a in zip(q, turns, strict=True)]
        )
        k = torch.stack(
            [torch.stack([rotated(h, a) for h in p]) for p, a in zip(k, turns, strict=True)]
        )
        attended = torch.zeros(count, heads, size)
        for i in range(count):
            seen = [j for j in range(count) if room[j] == room[i]]
            for head in range(heads):
                weights = ((k[seen, head] @ q[i, head]) / math.sqrt(size)).softmax(0)
                attended[i, head] = weights @ v[seen, head]
                if number == JUDGE[family]:
                    score[seen] += weights / heads / len(seen)
        if number == JUDGE[family]:
            mean_key = k.mean(1)
        x = x + block.attn.proj(attended.flatten(1))
        x = x + block.mlp(block.norm2(x))
    tokens = net.merger(x)
    return tokens, score.view(-1, 4).mean(1), mean_key.view(-1, 4, size).mean(1)


# ------------------------------------------------------------------------------ one stage


def reduce(
    x: list[Tensor], score: list[float], key: list[Tensor], dominant: int, contextual: int
) -> list[tuple[int, Tensor, bool]]:
    """(which, what it is now, whether merged) of the tokens that stay."""
    best = sorted(range(len(x)), key=lambda j: (-score[j], j))[:dominant]
    out = [(j, x[j], False) for j in sorted(best)]
    rest = [j for j in range(len(x)) if j not in best]
    references = rest[:: max(1, len(rest) // contextual)][:contextual] if contextual else []
    members: dict[int, list[int]] = {r: [] for r in references}
    for j in rest:
        if references and j not in references:
            cosines = [float(torch.cosine_similarity(key[j], key[r], dim=0)) for r in references]
            members[references[cosines.index(max(cosines))]].append(j)
    for r, own in members.items():
        extra = torch.stack([x[j] for j in own]).mean(0) if own else torch.zeros_like(x[r])
        out.append((r, x[r] + extra, True))
    return out


def budgets(budget: tuple[int, int], frames: int) -> list[tuple[int, int]]:
    """Dealt to the frames in turn: frame i has floor((i + 1) T / t) - floor(i T / t)."""
    total = sum(budget)
    each = [(i + 1) * total // frames - i * total // frames for i in range(frames)]
    return [(n - c, c) for n in each for c in [min(round(n * budget[1] / total), n - 1)]]


# ------------------------------------------------------------------------------ the decoder


def positions(family: str, ids: list[int], visuals: list[Visual]) -> list[Place]:
    """(time, row, column) of every token of the unpruned prompt."""
    out: list[Place] = []
    now, rest = 0, list(visuals)
    while len(out) < len(ids):
        if ids[len(out)] not in (IMAGE, VIDEO):
            out.append((now, now, now))
            now += 1
            continue
        kind, (t, h, w), _ = rest.pop(0)
        pace = 4 * SECONDS if kind == "video" and family == "qwen2_5_vl" else 1
        out += [
            (now + int(f * pace), now + r, now + c)
            for f in range(t) for r in range(h) for c in range(w)
        ]  # fmt: skip
        now += max(h, w)
    return out


@torch.no_grad()
def answer(
    model: Any, family: str, ids: list[int], visuals: list[Visual], method: VisionDrop
) -> tuple[Tensor, list[list[list[int]]]]:
    """Logits after the prompt, and what stays of each picture after each stage."""
    decoder = model.model.language_model
    config = decoder.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    plane = [0, 0, 1, 2]  # mrope_section [2, 1, 1]
    step = [1e4 ** (-2 * i / size) for i in range(size // 2)]
    embeds = decoder.embed_tokens(torch.tensor(ids))
    where = positions(family, ids, visuals)

    # (state, position, picture or -1, token of the picture)
    row: list[tuple[Tensor, Place, int, int]] = []
    stages: list[list[list[int]]] = [[] for _ in visuals]
    at = 0
    for p, visual in enumerate(visuals):
        token = IMAGE if visual[0] == "image" else VIDEO
        first = ids.index(token, at)
        row += [(embeds[i], where[i], -1, 0) for i in range(at, first)]
        x, score, key = tower(model, family, visual)
        t, h, w = visual[1]
        stay: list[tuple[int, Tensor]] = [(j, x[j]) for j in range(len(x))]
        if method.encoder is not None and sum(method.encoder) <= len(x):
            stay = []
            for f, budget in enumerate(budgets(method.encoder, t)):
                own = range(f * h * w, (f + 1) * h * w)
                kept = reduce(
                    [x[j] for j in own], [float(score[j]) for j in own], [key[j] for j in own],
                    *budget,
                )  # fmt: skip
                stay += [(own[j], state) for j, state, _ in kept]
            stages[p].append([j for j, _ in stay])
        row += [(state, where[first + j], p, j) for j, state in stay]
        at = first + len(x)
    row += [(embeds[i], where[i], -1, 0) for i in range(at, len(ids))]

    def parts(layer: Any) -> tuple[Any, Any, Any]:
        """Queries, keys, values of every token and head."""
        out: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        attention = layer.self_attn
        for state, place, *_ in row:
            y = layer.input_layernorm(state)
            angles = [place[plane[i]] * s for i, s in enumerate(step)]
            out[0].append([rotated(q, angles) for q in attention.q_proj(y).view(heads, size)])
            out[1].append([rotated(k, angles) for k in attention.k_proj(y).view(groups, size)])
            out[2].append(list(attention.v_proj(y).view(groups, size)))
        return out

    def weights(q: Any, k: Any, i: int, head: int) -> Tensor:
        own = torch.stack([k[j][head * groups // heads] for j in range(i + 1)])
        return ((own @ q[i][head]) / math.sqrt(size)).softmax(0)

    for number, layer in enumerate(decoder.layers):
        if number in method.llm:
            q, k, _ = parts(layer)
            fresh: list[tuple[Tensor, Place, int, int]] = []
            for p in [-1, *range(len(visuals))]:
                own = [i for i, token in enumerate(row) if token[2] == p]
                if p < 0:
                    continue
                chosen = [(n, row[i][0]) for n, i in enumerate(own)]
                if sum(method.llm[number]) <= len(own):
                    score = [0.0] * len(own)
                    for i in own:
                        for head in range(heads):
                            attention = weights(q, k, i, head)
                            for n, j in enumerate(own):
                                score[n] += float(attention[j]) / heads / len(own) if j <= i else 0
                    key = [torch.stack(k[i]).mean(0) for i in own]
                    kept = reduce([row[i][0] for i in own], score, key, *method.llm[number])
                    chosen = [(n, state) for n, state, _ in kept]
                    stages[p].append([row[own[n]][3] for n, _ in chosen])
                after = [i for i, token in enumerate(row) if token[2] < 0 and i < own[0]]
                fresh += [row[i] for i in after[sum(token[2] < 0 for token in fresh) :]]
                fresh += [(state, *row[own[n]][1:]) for n, state in chosen]
            text = [token for token in row if token[2] < 0]
            row = fresh + text[sum(token[2] < 0 for token in fresh) :]
        q, k, v = parts(layer)
        out = []
        for i, (state, *rest_) in enumerate(row):
            attended = [
                weights(q, k, i, head)
                @ torch.stack([v[j][head * groups // heads] for j in range(i + 1)])
                for head in range(heads)
            ]
            middle = state + layer.self_attn.o_proj(torch.cat(attended))
            out.append((middle + layer.mlp(layer.post_attention_layernorm(middle)), *rest_))
        row = out  # type: ignore[assignment]
    return model.lm_head(decoder.norm(row[-1][0])), stages


CASES: dict[str, tuple[list[Visual], VisionDrop]] = {
    "picture": (
        [("image", (1, 3, 5), 2)],
        VisionDrop(encoder=(8, 3), llm={2: (5, 2), 4: (3, 1)}),
    ),
    "video": ([("video", (3, 2, 4), 4)], VisionDrop(encoder=(11, 5), llm={3: (6, 2)})),
    "both": (
        [("video", (2, 3, 3), 7), ("image", (1, 4, 3), 8)],
        VisionDrop(encoder=(8, 3), llm={1: (7, 2), 5: (3, 2)}),
    ),
    "llm": ([("image", (1, 4, 4), 9)], VisionDrop(llm={2: (6, 2), 5: (2, 0)})),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_against_the_oracle(name: str, family: str, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--all-cells") and (list(CASES).index(name) < 2) != (
        family == "qwen2_5_vl"
    ):
        pytest.skip("with --all-cells")
    visuals, method = CASES[name]
    model, ids = tiny_qwen(family), row(3, 4, 5, visuals)
    fed = inputs(family, [ids], [visuals], SECONDS)
    with method(model) as trace:
        out = generate(model, fed, max_new_tokens=1, min_new_tokens=1)
    logits, expected = answer(model, family, ids, visuals, method)
    got: list[list[list[int]]] = [[] for _ in visuals]
    for stage in trace.samples[0].stages:
        if stage.source is not None:
            got[stage.picture].append(stage.identity[stage.source].tolist())
    assert got == expected
    torch.testing.assert_close(out.logits[0][0], logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_tower_of_the_oracle_is_the_model(family: str) -> None:
    """So that the oracle's score is that of the attention which the model runs."""
    model = tiny_qwen(family)
    visual: Visual = ("video", (2, 3, 5), 3)
    given = inputs(family, [[1]], [[visual]])
    stock = model.model.get_video_features(given["pixel_values_videos"], given["video_grid_thw"])
    tokens, score, _ = tower(model, family, visual)
    torch.testing.assert_close(tokens, stock.pooler_output[0], atol=1e-4, rtol=1e-4)
    frames = score.view(2, -1)
    assert torch.allclose(frames.sum(1) * 4, torch.ones(2)) and frames.std() > 1e-3


class Probe(VisionDrop):
    """Keeps what an LLM stage would score by."""

    seen: ClassVar[list[Tensor]] = []

    def llm_stage(self, view: DecoderView) -> None:
        self.seen.append(column_mean(view.query, view.key, view.scale)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_llm_scores_are_the_models_own_attention(family: str) -> None:
    """Eager attention of the layer that a stage stands before, visual rows and columns."""
    model = tiny_qwen(family, "eager")
    visuals: list[Visual] = [("video", (3, 2, 4), 4)]
    ids = row(3, 4, 5, visuals)
    fed = inputs(family, [ids], [visuals], SECONDS)
    maps = []
    hook = model.model.language_model.layers[3].self_attn.register_forward_hook(
        lambda _m, _a, out: maps.append(out[1])
    )
    try:
        with Probe(llm={3: (1, 0)})(model), torch.no_grad():
            model(**fed, logits_to_keep=1)
    finally:
        hook.remove()
    at = [i for i, word in enumerate(ids) if word == VIDEO]
    own = maps[0][0][:, at][:, :, at].mean((0, 1))
    torch.testing.assert_close(Probe.seen.pop(), own, atol=1e-6, rtol=1e-4)
