"""TRIM, SCOPE and HoloV against loops written from their definitions, and what these imply.

No figures of their released codes are at hand: the loops are an independent reading of what those
codes compute, token by token, not a run of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, CLIPModel

from tests.visiondrop.test_diversity import slow_coverage
from tests.visiondrop.tiny_clip import tiny_clip
from visiondrop.functional.crops import members, quotas
from visiondrop.merging import Reduction
from visiondrop.methods.holov import HoloV
from visiondrop.methods.scope import Scope
from visiondrop.methods.trim import Trim
from visiondrop.views import EncoderView, ProjectedView

SEEDS = range(5)
GRID = (5, 7)
N = 35
QUESTIONS = ["What is left of the lamp?", "How many?"]


def view(seed: int, has_cls: bool = True, width: int = 32) -> EncoderView:
    """Two pictures of 35 random patches; attention decisive."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    tokens = N + int(has_cls)
    return EncoderView(
        rand(2, tokens, width),
        2 * rand(2, 4, tokens, 8),
        2 * rand(2, 4, tokens, 8),
        8**-0.5,
        has_cls,
        GRID,
        make_keys=lambda: ["a", "b"],
        make_questions=lambda: QUESTIONS,
    )


def projected(tower: EncoderView, seed: int) -> ProjectedView:
    generator = torch.Generator().manual_seed(1000 + seed)
    features = torch.randn(2, N, 11, generator=generator, dtype=torch.float64)
    return ProjectedView(features, tower)


def slow_attention(tower: EncoderView, g: int) -> list[float]:
    """Mean over heads of the CLS row, or of all rows without CLS, from whole maps."""
    maps = [
        (tower.query[g, h] @ tower.key[g, h].T * tower.scale).softmax(-1).tolist() for h in range(4)
    ]
    if tower.has_cls:
        return [sum(m[0][j + 1] for m in maps) / 4 for j in range(N)]
    return [sum(m[i][j] for m in maps for i in range(N)) / 4 / N for j in range(N)]


def sources(reduction: Reduction, g: int, first: int) -> list[int]:
    return (reduction.source[g] - first).tolist()


# ------------------------------------------------------------------------------------------- TRIM


def slow_trim(tower: EncoderView, g: int, similarity: str, relevant: str, count: int | None) -> Any:
    """Kept patches and the mean of the others, with the stock model and numpy's percentiles."""
    clip = CLIPModel.from_pretrained(tiny_clip(), dtype=torch.float32).eval().requires_grad_(False)
    ids = AutoTokenizer.from_pretrained(tiny_clip())(QUESTIONS[g], return_tensors="pt")["input_ids"]
    text = clip.text_projection(clip.text_model(ids).pooler_output)[0].double()
    clip = clip.double()
    products = []
    for j in range(N):
        patch = tower.features[g, j + 1]
        norm = clip.vision_model.post_layernorm
        centred = patch - patch.mean()
        normed = centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight + norm.bias
        image = clip.visual_projection.weight @ normed
        product = float(image @ text)
        if similarity == "cosine":
            product /= float(image.norm()) * float(text.norm())
        products.append(-product if relevant == "low" else product)
    top = max(products)
    exps = [math.exp(p - top) for p in products]
    scores = np.array([e / sum(exps) for e in exps])
    if count is None:
        q1, q3 = np.percentile(scores, 25), np.percentile(scores, 75)
        share = sum(s > q3 + 1.5 * (q3 - q1) for s in scores) / N
        count = int(N * share)
    kept = sorted(sorted(range(N), key=lambda j: -scores[j])[:count])
    rest = [j for j in range(N) if j not in kept]
    return kept, sum(tower.features[g, j + 1] for j in rest) / len(rest)


@pytest.mark.parametrize("tokens", [None, 1, 9])
@pytest.mark.parametrize("similarity, relevant", [("dot", "low"), ("cosine", "high")])
@pytest.mark.parametrize("seed", SEEDS)
def test_trim_equals_loops(seed: int, similarity: Any, relevant: Any, tokens: int | None) -> None:
    tower = view(seed)
    method = Trim(tokens, clip=tiny_clip(), similarity=similarity, relevant=relevant)
    got = method.encoder_stage(tower)
    count = None if tokens is None else tokens - 1
    for g in range(2):
        one, row = (got[g], 0) if isinstance(got, list) else (got, g)
        assert one is not None
        kept, mean = slow_trim(tower, g, similarity, relevant, count)
        assert sources(one, row, 1)[:-1] == kept
        torch.testing.assert_close(one.features[row, -1], mean)
        torch.testing.assert_close(one.features[row, :-1], tower.features[g, [k + 1 for k in kept]])


def test_trim_adaptive_counts_differ_by_picture_and_stay_below_the_plan() -> None:
    counts = set()
    for seed in range(20):
        for one in Trim(clip=tiny_clip()).encoder_stage(view(seed)):  # type: ignore[union-attr]
            counts.add(one.source.shape[1])
            assert one.source.shape[1] <= Trim().ledger(32, N)[0] == 10
    assert len(counts) > 2


def test_trim_loses_no_patch() -> None:
    """Kept ones and the mean, each by what it stands for, add up to the picture."""
    tower = view(3)
    got = Trim(9, clip=tiny_clip()).encoder_stage(tower)
    assert isinstance(got, Reduction)
    assert got.sizes.sum(1).tolist() == [N, N]
    total = (got.features * got.sizes[..., None]).sum(1)
    torch.testing.assert_close(total, tower.patches.sum(1))
    assert (got.target[:, 0] == -1).all() and (got.target[:, 1:] >= 0).all()
    assert got.contextual.tolist() == [[False] * 8 + [True]] * 2


def test_trim_question_takes_part() -> None:
    tower = view(4)
    asked = Trim(9, clip=tiny_clip()).encoder_stage(tower)
    tower.make_questions = lambda: QUESTIONS[::-1]
    del tower.questions
    other = Trim(9, clip=tiny_clip()).encoder_stage(tower)
    assert isinstance(asked, Reduction) and isinstance(other, Reduction)
    assert not torch.equal(asked.source, other.source)


# ------------------------------------------------------------------------------------------ SCOPE


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("combine, alpha", [("multiply", 1.0), ("multiply", 2.0), ("add", 0.5)])
@pytest.mark.parametrize("seed", SEEDS)
def test_scope_equals_loops(seed: int, combine: Any, alpha: float, has_cls: bool) -> None:
    tower = view(seed, has_cls)
    got = Scope(8, alpha=alpha, combine=combine).encoder_stage(tower)
    for g in range(2):
        x = tower.features[g, int(has_cls) :].tolist()
        length = [math.sqrt(sum(a * a for a in v)) for v in x]
        cosine = [
            [
                sum(a * b for a, b in zip(x[i], x[j], strict=True)) / length[i] / length[j]
                for j in range(N)
            ]
            for i in range(N)
        ]
        weight = [(4 * a) ** alpha for a in slow_attention(tower, g)]
        expected = slow_coverage(cosine, 8, weight, [1.0] * N, combine)
        assert sources(got, g, int(has_cls)) == sorted(expected)


def test_scope_lies_between_coverage_and_attention() -> None:
    """alpha = 0 does not see attention at all; a great alpha sees nothing else."""
    tower, other = view(1), view(2)
    other.features = tower.features
    blind = [Scope(8, alpha=0).encoder_stage(v).source for v in (tower, other)]
    assert torch.equal(*blind)
    assert not torch.equal(*(Scope(8).encoder_stage(v).source for v in (tower, other)))
    best = tower.cls_attention.topk(8).indices.sort().values + 1
    assert torch.equal(Scope(8, alpha=60).encoder_stage(tower).source, best)


# ------------------------------------------------------------------------------------------ HoloV


def slow_crops(crops: int, shape: str) -> list[list[int]]:
    if shape == "runs":
        out, at = [], 0
        for p in range(crops):
            size = N // crops + (p < N % crops)
            out.append(list(range(at, at + size)))
            at += size
        return out
    assert crops == 6  # 2 x 3 windows: rows 3 + 2, columns 3 + 2 + 2
    spans = [(r, c) for r in (range(3), range(3, 5)) for c in ((0, 3), (3, 5), (5, 7))]
    return [[7 * i + j for i in r for j in range(*c)] for r, c in spans]


def slow_holov(
    x: torch.Tensor, attention: list[float], tokens: int, crops: list[list[int]], rank: str
) -> list[int]:
    """Crop by crop and pair by pair, in plain floats."""
    score: dict[int, float] = {}
    crop_score = []
    for crop in crops:
        m, eps = len(crop), 1e-6
        unit = {j: x[j] / (x[j].norm() + eps) for j in crop}
        spread = {}
        for j in crop:
            cosines = [0.0 if i == j else float(unit[j] @ unit[i]) for i in crop]
            mean = sum(cosines) / (m - 1)
            spread[j] = sum((c - mean) ** 2 for c in cosines) / (m - 1)
        level = sum(1e3 * attention[j] for j in crop) / m
        scale = level / (sum(spread.values()) / m + eps)
        for j in crop:
            score[j] = 1e3 * attention[j] + 0.09 * spread[j] * scale
        crop_score.append(sum(score[j] for j in crop) / m)
    weight = [s / (sum(crop_score) + 1e-6) for s in crop_score]
    given = [math.floor(w * tokens) for w in weight]
    by_weight = sorted(range(len(crops)), key=lambda c: -weight[c])
    for c in by_weight[: tokens - sum(given)]:
        given[c] += 1
    given = [min(q, len(crop)) for q, crop in zip(given, crops, strict=True)]
    while sum(given) < tokens:
        given[next(c for c in by_weight if given[c] < len(crops[c]))] += 1
    key = score if rank == "score" else dict(enumerate(attention))
    out = []
    for q, crop in zip(given, crops, strict=True):
        out += crop if q == len(crop) else sorted(crop, key=lambda j: -key[j])[:q]
    return out


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("rank", ["attention", "score"])
@pytest.mark.parametrize(
    "tokens, crops, shape", [(9, 4, "runs"), (12, 6, "windows"), (27, 8, "runs")]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_holov_equals_loops(
    seed: int, tokens: int, crops: int, shape: Any, rank: Any, has_cls: bool
) -> None:
    tower = view(seed, has_cls)
    tokens_view = projected(tower, seed)
    got = HoloV(tokens, crops=crops, shape=shape, rank=rank).projected_stage(tokens_view)
    for g in range(2):
        expected = slow_holov(
            tokens_view.features[g],
            slow_attention(tower, g),
            tokens,
            slow_crops(crops, shape),
            rank,
        )
        assert sources(got, g, 0) == expected
        assert torch.equal(got.features[g], tokens_view.features[g, expected])


def test_holov_raster_order_is_the_same_set() -> None:
    tokens = projected(view(0), 0)
    crop = HoloV(12, crops=5).projected_stage(tokens).source
    raster = HoloV(12, crops=5, order="raster").projected_stage(tokens).source
    assert not torch.equal(crop, raster) and torch.equal(crop.sort().values, raster)


def test_holov_keeps_something_of_every_crop_where_a_top_k_takes_one_corner() -> None:
    """Attention that falls slowly along the raster: the best 10 lie in the first two crops of
    five, HoloV's are spread over all, two each but for rounding.
    """
    tower = view(0)
    falling = torch.linspace(1.01, 1.0, N, dtype=torch.float64).expand(2, N)
    tower.__dict__["cls_attention"] = falling
    kept = HoloV(10, crops=5).projected_stage(projected(tower, 0)).source[0]
    share = [int((kept // 7 == crop).sum()) for crop in range(5)]
    assert sum(share) == 10 and all(1 <= count <= 3 for count in share)
    assert (falling[0].topk(10).indices // 7).unique().tolist() == [0, 1]


@given(
    scores=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_quotas_are_met_exactly_and_fit(scores: list[float], data: st.DataObject) -> None:
    size = data.draw(st.lists(st.integers(2, 9), min_size=len(scores), max_size=len(scores)))
    tokens = data.draw(st.integers(1, sum(size)))
    given_out = quotas(torch.tensor([scores]), torch.tensor(size), tokens)[0].tolist()
    assert sum(given_out) == tokens
    assert all(0 <= q <= s for q, s in zip(given_out, size, strict=True))


@pytest.mark.parametrize("crops, shape", [(4, "runs"), (6, "windows"), (7, "windows"), (1, "runs")])
def test_crops_part_the_grid(crops: int, shape: Any) -> None:
    index = members(GRID, crops, shape)
    assert len(index) == crops
    assert sorted(index[index < N].tolist()) == list(range(N))
