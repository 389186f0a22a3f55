"""What SparseVLM, SparseVLM+ and DART are made of, against loops on random tensors: density peaks,
text raters, pivots.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.visiondrop.models import tiny
from visiondrop.functional.density_peaks import dpc_knn, golden_ratio_noise, merge_clusters, recycle
from visiondrop.functional.pivots import least_similar, set_order
from visiondrop.functional.text_rating import (
    position_bias,
    rated_by_heads,
    rated_by_text,
    text_raters,
)

SEEDS = range(5)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------ density peaks


def slow_dpc(x: list[list[float]], c: int, noise: list[float]) -> tuple[list[int], list[int]]:
    """Density peaks of one picture, one pair of tokens at a time."""
    n = len(x)
    far = [[math.dist(a, b) / math.sqrt(len(a)) for b in x] for a in x]
    density = [math.exp(-sum(d * d for d in sorted(far[i])[:c]) / c) for i in range(n)]
    density = [p + 1e-6 * e for p, e in zip(density, noise, strict=True)]
    largest = max(max(row) for row in far)
    delta = [
        min([far[i][j] for j in range(n) if density[j] > density[i]], default=largest)
        for i in range(n)
    ]
    centres = sorted(range(n), key=lambda i: -density[i] * delta[i])[:c]
    assigned = []
    for i in range(n):
        near = min(range(c), key=lambda k: (far[centres[k]][i], k))
        assigned.append(centres.index(i) if i in centres else near)
    return centres, assigned


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n, clusters", [(30, 4), (17, 2), (9, 1), (5, 5)])
def test_density_peaks_equal_loops(n: int, clusters: int, seed: int) -> None:
    tokens = rand(3, n, 6, seed=seed)
    noise = golden_ratio_noise(n)
    assert noise[3].item() == pytest.approx(3 * 0.6180339887498949 % 1)
    centres, assigned = dpc_knn(tokens, clusters, noise)
    merged = merge_clusters(tokens, assigned, clusters)
    for g in range(3):
        slow_centres, slow_assigned = slow_dpc(tokens[g].tolist(), clusters, noise.tolist())
        assert centres[g].tolist() == slow_centres and assigned[g].tolist() == slow_assigned
        for k in range(clusters):
            members = [tokens[g, i] for i in range(n) if slow_assigned[i] == k]
            mean = sum(members) / (len(members) + 1e-6)  # type: ignore[arg-type]
            torch.testing.assert_close(merged[g, k], mean)


def test_clusters_of_separate_heaps_are_the_heaps() -> None:
    """Three heaps far apart: one centre in each, everyone with its own."""
    heaps = torch.tensor([[0.0, 0], [50, 0], [0, 50]], dtype=torch.float64)
    tokens = (heaps.repeat(7, 1) + rand(21, 2, seed=1) * 0.1)[None]
    centres, assigned = dpc_knn(tokens, 3)
    assert sorted((centres[0] % 3).tolist()) == [0, 1, 2]
    for i in range(21):
        assert centres[0, assigned[0, i]] % 3 == i % 3


def test_more_clusters_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="4 clusters asked for where 3 tokens are"):
        dpc_knn(rand(1, 3, 2), 4)


def test_recycling_keeps_order_and_counts_patches() -> None:
    features, ranked = rand(2, 12, 3), torch.stack([torch.randperm(12) for _ in range(2)])
    sizes = torch.arange(1, 13).expand(2, -1)
    out = recycle(features, sizes, ranked, 4, 6, 2)
    for g in range(2):
        kept, pool, lost = ranked[g, :4], ranked[g, 4:10], ranked[g, 10:]
        assert out.source[g, :4].tolist() == sorted(kept.tolist())
        assert torch.equal(out.features[g, :4], features[g, out.source[g, :4]])
        assert (out.target[g, lost] == -1).all() and (out.target[g, pool] >= 4).all()
        assert out.sizes[g, 4:].sum() == sizes[g, pool].sum()
        for slot in (4, 5):
            members = (out.target[g] == slot).nonzero().squeeze(1)
            mean = features[g, members].sum(0) / (len(members) + 1e-6)
            torch.testing.assert_close(out.features[g, slot], mean)
            assert out.source[g, slot] in members
    assert out.contextual.tolist() == [[False] * 4 + [True] * 2] * 2


# ------------------------------------------------------------------ text raters


@pytest.mark.parametrize("seed", SEEDS)
def test_text_rating_equals_loops(seed: int) -> None:
    """Raters by plain sums; their rows averaged one by one, by heads and over all heads."""
    visual, text = rand(2, 6, 4, seed=seed), rand(2, 5, 4, seed=seed + 9)
    attention = rand(2, 3, 5, 6, seed=seed + 20)
    raters = text_raters(visual, text)
    scores = rated_by_text(attention, raters)
    few, heads = rated_by_heads(attention, raters, 2)
    for g in range(2):
        shares = [0.0] * 5
        for v in visual[g].tolist():
            exps = [math.exp(sum(a * b for a, b in zip(v, t, strict=True))) for t in text[g]]
            shares = [s + e / sum(exps) / 6 for s, e in zip(shares, exps, strict=True)]
        expected = [i for i in range(5) if shares[i] > sum(shares) / 5]
        assert raters[g].nonzero().squeeze(1).tolist() == expected
        by_head = torch.stack([sum(attention[g, h, i] for i in expected) for h in range(3)])
        by_head = by_head / len(expected)
        torch.testing.assert_close(scores[g], by_head.mean(0))
        best = sorted(range(3), key=lambda h: -float(by_head[h].sum()))[:2]
        assert heads[g].tolist() == best
        torch.testing.assert_close(few[g], by_head[best].mean(0))


def test_where_no_word_stands_out_all_judge() -> None:
    text = rand(1, 1, 4).expand(1, 3, 4)
    assert text_raters(rand(1, 6, 4), text).tolist() == [[True] * 3]


def test_position_bias_is_the_logit_of_ones() -> None:
    """Against transformers' own rotary embedding, at positions with gaps."""
    rotary = tiny().model.language_model.rotary_emb
    positions = torch.tensor([[0, 1, 2, 5, 9, 40], [3, 4, 8, 9, 10, 300]])
    cos, sin = rotary(torch.zeros(1, dtype=torch.float64), position_ids=positions)
    ones = torch.ones(2, 1, 6, cos.shape[-1], dtype=torch.float64)
    query, key = apply_rotary_pos_emb(ones, ones, cos, sin)
    scale = cos.shape[-1] ** -0.5
    logits = (query @ key.transpose(-1, -2) * scale)[:, 0]
    got = position_bias(cos, sin, torch.tensor([4, 5]), slice(1, 4), scale)
    torch.testing.assert_close(got, logits[:, 4:, 1:4])
    gap = (positions[:, 4:, None] - positions[:, None, 1:4]).double()
    half = cos.shape[-1] // 2
    thetas = [10000 ** (-m / half) for m in range(half)]
    torch.testing.assert_close(
        got, 2 * scale * sum((gap * t).cos() for t in thetas), atol=1e-5, rtol=0
    )


# ------------------------------------------------------------------ pivots


@given(
    st.integers(1, 24).flatmap(
        lambda k: st.lists(
            st.lists(st.integers(0, 2**30 - 1) | st.integers(0, 99), min_size=k, max_size=k).filter(
                lambda keys: len(set(keys)) == len(keys)
            ),
            min_size=1,
            max_size=3,
        )
    )
)
def test_order_of_small_ints_in_a_set(rows: list[list[int]]) -> None:
    """Equal to what this interpreter's own sets do."""
    order = set_order(torch.tensor(rows))
    assert [[row[i] for i in o] for row, o in zip(rows, order, strict=True)] == [
        list(set(row)) for row in rows
    ]


def test_order_in_a_set_where_all_collide() -> None:
    rows = [
        [32 * i + 7 for i in range(8)],
        [31 + 32 * i for i in range(8)],
        [5, 8, 13, 37, 69, 0, 64, 40],
    ]
    order = set_order(torch.tensor(rows))
    assert [[row[i] for i in o] for row, o in zip(rows, order, strict=True)] == [
        list(set(row)) for row in rows
    ]
    assert order[0].tolist() != list(range(8)) or order[1].tolist() != list(range(8))


@pytest.mark.parametrize("seed", SEEDS)
def test_least_similar_equals_loops(seed: int) -> None:
    tokens, pivots = rand(2, 15, 4, seed=seed), rand(2, 3, 4, seed=seed + 5)
    taken = torch.zeros(2, 15, dtype=torch.bool)
    taken[:, [2, 7]] = True
    chosen, now = least_similar(tokens, pivots, taken, [4, 3, 3])
    for g in range(2):
        pool, expected = [i for i in range(15) if i not in (2, 7)], []
        for pivot, count in zip(pivots[g], (4, 3, 3), strict=True):
            cosine = {i: float(torch.cosine_similarity(tokens[g, i], pivot, dim=0)) for i in pool}
            best = sorted(pool, key=lambda i: cosine[i])[:count]
            expected += best
            pool = [i for i in pool if i not in best]
        assert chosen[g].tolist() == expected
        assert (~now[g]).nonzero().squeeze(1).tolist() == pool
