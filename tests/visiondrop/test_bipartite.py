"""Bipartite merging and thinning out: loops written from the definitions, and their properties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from visiondrop.functional.bipartite import drop_duplicates, even_merges, merge_pairs


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def merge_by_loops(
    features: Tensor, sizes: list[int], metric: Tensor, merges: int, protected: int
) -> list[tuple[Tensor, int, list[int]]]:
    """One picture: (feature, size, members) in output order; the first member is what stays."""
    tokens = range(len(sizes))
    best = {}
    for i in tokens:
        if i % 2 == 0 and i >= protected:
            scores = {j: cosine(metric[i], metric[j]) for j in tokens if j % 2 == 1}
            partner = max(scores, key=lambda j: scores[j])
            best[i] = (scores[partner], partner)
    gone = sorted(best, key=lambda i: -best[i][0])[:merges]
    out = []
    for i in [i for i in tokens if i % 2 == 0 and i not in gone] + [i for i in tokens if i % 2]:
        members = [i] + [g for g in gone if best[g][1] == i]
        size = sum(sizes[m] for m in members)
        mean = sum(features[m] * sizes[m] for m in members) / size
        out.append((mean, size, members))
    return out


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("protected", [0, 1])
def test_merge_pairs_equals_loops(seed: int, protected: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups, count, width = 3, 20 + seed, 6
    features = torch.randn(groups, count, width, generator=generator, dtype=torch.float64)
    metric = torch.randn(groups, count, 4, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 6, (groups, count), generator=generator)
    for merges in (1, 4, (count - protected) // 2):
        got = merge_pairs(features, sizes, metric, merges, protected=protected)
        placed = merge_pairs(
            features, sizes, metric, merges, protected=protected, placement="in_place"
        )
        for g in range(groups):
            wanted = merge_by_loops(features[g], sizes[g].tolist(), metric[g], merges, protected)
            assert len(wanted) == count - merges == got.features.shape[1]
            torch.testing.assert_close(got.features[g], torch.stack([w[0] for w in wanted]))
            assert got.sizes[g].tolist() == [w[1] for w in wanted]
            assert got.source[g].tolist() == [w[2][0] for w in wanted]
            assert got.contextual[g].tolist() == [len(w[2]) > 1 for w in wanted]
            went = {m: slot for slot, w in enumerate(wanted) for m in w[2]}
            assert got.target[g].tolist() == [went[i] for i in range(count)]
            wanted.sort(key=lambda w: w[2][0])
            torch.testing.assert_close(placed.features[g], torch.stack([w[0] for w in wanted]))
            assert placed.source[g].tolist() == sorted(got.source[g].tolist())
            went = {m: slot for slot, w in enumerate(wanted) for m in w[2]}
            assert placed.target[g].tolist() == [went[i] for i in range(count)]
        if protected:
            assert (got.source[:, 0] == 0).all() and torch.equal(got.features[:, 0], features[:, 0])
            assert torch.equal(got.sizes[:, 0], sizes[:, 0])


def test_no_patch_is_lost_over_many_steps() -> None:
    """Sizes sum to the number of patches, and the size-weighted mean of all tokens never moves."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 577, 8, generator=generator, dtype=torch.float64)
    sizes, mean = torch.ones(2, 577, dtype=torch.long), tokens[:, 1:].mean(1)
    plan = even_merges(576, 40, 23)
    for merges in plan:
        out = merge_pairs(tokens, sizes, tokens, merges, protected=1)
        tokens, sizes = out.features, out.sizes
    assert tokens.shape[1] == 41 and sizes[:, 1:].sum(1).tolist() == [576, 576]
    assert sizes[:, 0].tolist() == [1, 1]
    centre = (tokens[:, 1:] * sizes[:, 1:, None]).sum(1) / 576
    torch.testing.assert_close(centre, mean)


def test_log_size_attention_of_equal_tokens_is_that_of_the_unmerged() -> None:
    """k equal tokens merged into one of size k: softmax with + log(size) sees no difference."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randn(1, 5, 8, generator=generator, dtype=torch.float64)
    # Even and odd places hold the same kinds, so each finds its double.
    tokens = kinds.repeat_interleave(2, dim=1)
    query = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    once = merge_pairs(tokens, torch.ones(1, 10, dtype=torch.long), tokens, 5)
    assert once.sizes.tolist() == [[2] * 5]
    torch.testing.assert_close(once.features, kinds)
    # A second step meets a token merged already: one of size 2 beside singles of its kind.
    mixed = torch.cat([tokens[:, :1], once.features[:, :1], tokens[:, 1:]], 1)
    sizes = torch.tensor([[1, 2] + [1] * 9])
    out = merge_pairs(mixed, sizes, mixed, 5)
    assert out.sizes.sum() == 12 and out.sizes.max() >= 3

    def attend(values: Tensor, bias: Tensor) -> Tensor:
        return (query @ values[0].T + bias).softmax(-1) @ values[0]

    unmerged = torch.cat([kinds[:, :1], kinds[:, :1], tokens], 1)
    plain = attend(unmerged, torch.zeros(12, dtype=torch.float64))
    torch.testing.assert_close(attend(mixed, sizes[0].log()), plain)
    torch.testing.assert_close(attend(out.features, out.sizes[0].log()), plain)
    assert not torch.allclose(attend(out.features, torch.zeros(6, dtype=torch.float64)), plain)


def test_half_precision_is_merged_in_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 40, 16, generator=generator)
    low = x.bfloat16()
    sizes = torch.ones(1, 40, dtype=torch.long)
    got, wanted = merge_pairs(low, sizes, low, 9), merge_pairs(low.float(), sizes, low.float(), 9)
    assert got.features.dtype == torch.bfloat16
    assert torch.equal(got.features, wanted.features.bfloat16())
    assert torch.equal(got.target, wanted.target)


@given(before=st.integers(1, 3000), share=st.floats(0, 1), steps=st.integers(1, 40))
def test_even_merges_reach_their_end(before: int, share: float, steps: int) -> None:
    least = before
    for _ in range(steps):
        least -= least // 2
    after = least + round(share * (before - least))
    plan, here = even_merges(before, after, steps), before
    for step, merges in enumerate(plan):
        assert 0 <= merges <= here // 2
        assert even_merges(here, after, steps - step)[0] == merges
        here -= merges
    assert here == after
    # As even as it can be: a step does less than another only by one, or because it must.
    sizes = [before, *(before - s for s in itertools.accumulate(plan))]
    for step, merges in enumerate(plan):
        assert merges >= max(plan) - 1 or merges == sizes[step + 1]
    if least > 1:
        with pytest.raises(ValueError, match=f"{least} are the least"):
            even_merges(before, least - 1, steps)


def test_auroracap_ratio_is_the_same_number_in_every_block() -> None:
    for ratio in (0.02, 0.1, 0.2, 0.4, 0.55, 0.9, 1.0):
        r = int(576 * (1 - ratio) / 24)
        assert even_merges(576, 576 - 23 * r, 23) == [r] * 23


def test_refusals_of_merging() -> None:
    x, ones = torch.randn(1, 7, 3), torch.ones(1, 7, dtype=torch.long)
    with pytest.raises(ValueError, match="4 pairs to be merged where 7 tokens .* make 3 at most"):
        merge_pairs(x, ones, x, 4)
    with pytest.raises(ValueError, match="protected=2"):
        merge_pairs(x, ones, x, 1, protected=2)
    with pytest.raises(ValueError, match="37 tokens cannot be merged out of 36"):
        even_merges(36, 37, 2)


def thin_out_by_loops(features: Tensor, order: list[int], keep: int, step: int) -> list[int]:
    while len(order) > keep:
        even, odd = order[::2], order[1::2]
        nearest = {i: max(cosine(features[i], features[j]) for j in odd) for i in even}
        ranked = sorted(even, key=lambda i: -nearest[i])
        order = ranked[min(step, len(order) - keep, len(even)) :] + odd
    return order


@pytest.mark.parametrize("seed", range(5))
def test_drop_duplicates_equals_loops(seed: int) -> None:
    """Odd numbers too, and fewer left than a round would drop: there the released code stops."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 41, 5, generator=generator, dtype=torch.float64)
    order = torch.stack([torch.randperm(41, generator=generator)[: 31 + seed] for _ in range(2)])
    for keep, step in ((20, 8), (7, 8), (2, 3), (1, 8), (0, 8), (order.shape[1], 8)):
        got = drop_duplicates(features, order, keep, step)
        for g in range(2):
            wanted = thin_out_by_loops(features[g], order[g].tolist(), keep, step) if keep else []
            assert got[g].tolist() == wanted and len(wanted) == keep


def test_drop_duplicates_drops_a_copy() -> None:
    """Of vectors at right angles and one copy, the copy goes (or its original: one of them)."""
    features = torch.eye(6)[[0, 1, 2, 3, 4, 0]][None]
    kept = drop_duplicates(features, torch.arange(6)[None], 5)
    assert sorted(kept[0].tolist()) == [1, 2, 3, 4, 5]
    assert math.isclose(float(features[0, kept[0]].sum()), 5)
