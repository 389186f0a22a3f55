"""Greedy diverse selections against slow loops, brute force and properties of their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.conftest import GOLDEN, load_golden
from visiondrop.functional.diversity import cosine_matrix, coverage_order, dpp_order, max_min_order

SEEDS = range(5)


def tokens(seed: int, n: int = 23, d: int = 9, groups: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(groups, n, d, generator=generator, dtype=torch.float64)


def weights(seed: int, n: int = 23, groups: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.rand(groups, n, generator=generator, dtype=torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.dot(a, b)) / math.sqrt(float(torch.dot(a, a)) * float(torch.dot(b, b)))


def slow_max_min(x: torch.Tensor, k: int) -> list[int]:
    """Pair by pair, in plain floats."""
    n = len(x)
    far = lambda i, j: 1 - cosine(x[i], x[j])  # noqa: E731
    nearest = [min(far(i, j) for j in range(n) if j != i) for i in range(n)]
    picks = [nearest.index(max(nearest))]
    while len(picks) < k:
        rest = [i for i in range(n) if i not in picks]
        picks.append(max(rest, key=lambda i: min(far(i, j) for j in picks)))
    return picks


def slow_dpp(kernel: torch.Tensor, k: int) -> list[int]:
    """By determinants, without any factor."""
    picks: list[int] = []
    for _ in range(k):
        rest = [i for i in range(len(kernel)) if i not in picks]
        det = {i: float(torch.det(kernel[[*picks, i]][:, [*picks, i]])) for i in rest}
        picks.append(max(rest, key=det.__getitem__))
    return picks


def slow_coverage(
    similar: list[list[float]], k: int, weight: list[float], demand: list[float], combine: str
) -> list[int]:
    """Sum by sum."""
    n = len(similar)
    picks: list[int] = []
    for _ in range(k):
        value = {}
        for j in (j for j in range(n) if j not in picks):
            gain = 0.0
            for i in range(n):
                covered = max([0.0, *(similar[s][i] for s in picks)])
                gain += demand[i] * max(0.0, similar[j][i] - covered)
            value[j] = gain * weight[j] if combine == "multiply" else gain + weight[j]
        picks.append(max(value, key=value.__getitem__))
    return picks


@pytest.mark.parametrize("seed", SEEDS)
def test_max_min_equals_loops(seed: int) -> None:
    x = tokens(seed)
    got = max_min_order(1 - cosine_matrix(x), 11)
    assert got.tolist() == [slow_max_min(x[g], 11) for g in range(2)]


@pytest.mark.parametrize("seed", SEEDS)
def test_dpp_equals_determinants(seed: int) -> None:
    x, r = tokens(seed), weights(seed)
    kernel = r[:, :, None] * cosine_matrix(x) * r[:, None]
    assert dpp_order(kernel, 7).tolist() == [slow_dpp(kernel[g], 7) for g in range(2)]


@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_coverage_equals_loops(seed: int, weighted: bool, combine: str) -> None:
    similar = cosine_matrix(tokens(seed))
    weight, demand = weights(seed), weights(seed + 50)
    options = {"weight": weight, "demand": demand} if weighted else {}
    got = coverage_order(similar, 9, combine=combine, **options)  # type: ignore[arg-type]
    one = [1.0] * 23 if combine == "multiply" else [0.0] * 23
    for g in range(2):
        expected = slow_coverage(
            similar[g].tolist(),
            9,
            weight[g].tolist() if weighted else one,
            demand[g].tolist() if weighted else [1.0] * 23,
            combine,
        )
        assert got[g].tolist() == expected


@pytest.mark.parametrize("order", [max_min_order, dpp_order, coverage_order])
def test_no_token_twice_even_among_duplicates_and_beyond_the_rank(order) -> None:  # type: ignore[no-untyped-def]
    """20 tokens that are 4 distinct ones in 3 dimensions; all can be asked for."""
    x = tokens(0, n=4, d=3).repeat(1, 5, 1).float()
    matrix = cosine_matrix(x)
    picks = order(1 - matrix if order is max_min_order else matrix, 20)
    assert all(sorted(row) == list(range(20)) for row in picks.tolist())


def test_max_min_is_within_half_of_the_optimum() -> None:
    """For a metric the greedy choice is at least half as spread as the best subset."""
    points = tokens(3, n=9, d=2)
    metric = torch.cdist(points, points)
    spread = lambda m, s: min(float(m[i, j]) for i, j in itertools.combinations(s, 2))  # noqa: E731
    for g, picks in enumerate(max_min_order(metric, 4).tolist()):
        best = max(spread(metric[g], s) for s in itertools.combinations(range(9), 4))
        assert spread(metric[g], picks) >= best / 2


def test_dpp_of_orthogonal_tokens_takes_the_heaviest() -> None:
    weight = torch.tensor([[0.3, 0.9, 0.1, 0.7]])
    kernel = torch.diag_embed(weight.square())
    assert dpp_order(kernel, 3).tolist() == [[1, 3, 0]]


def test_dpp_shuns_the_double_of_a_pick_whatever_its_weight() -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    weight = torch.tensor([[1.0, 0.99, 0.1]])
    kernel = weight[:, :, None] * cosine_matrix(x) * weight[:, None]
    assert dpp_order(kernel, 2).tolist() == [[0, 2]]


def test_coverage_gains_fall_and_one_pick_per_cluster_comes_first() -> None:
    """Three tight clusters of unequal size: the picks go by size, one each, before any second."""
    centres = torch.eye(3)
    x = torch.cat([centres[i].repeat(c, 1) for i, c in ((0, 2), (1, 5), (2, 3))])
    x = x + 0.01 * tokens(1, n=10, d=3, groups=1)[0].float()
    labels = [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    picks = coverage_order(cosine_matrix(x[None]), 5)[0].tolist()
    assert [labels[i] for i in picks[:3]] == [1, 2, 0]
    similar = cosine_matrix(x[None])[0]
    cover = [float(similar[picks[:t]].amax(0).clamp(min=0).sum()) for t in range(1, 6)]
    gains = [b - a for a, b in itertools.pairwise([0.0, *cover])]
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(gains))


def test_what_cannot_be_picked_is_refused() -> None:
    for order in (max_min_order, dpp_order, coverage_order):
        with pytest.raises(ValueError, match="24 tokens to pick from 23; possible: 1 to 23"):
            order(cosine_matrix(tokens(0)), 24)


def test_float64_stays_float64_and_half_is_widened() -> None:
    assert cosine_matrix(tokens(0)).dtype == torch.float64
    assert cosine_matrix(tokens(0).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("setting", load_golden("DivPrune")["settings"], ids=lambda s: s["name"])
def test_golden_DivPrune_selection_order(setting: dict) -> None:
    """The order of the released code's picks, from its own projected patches."""
    from safetensors.torch import load_file

    tensors = load_file(GOLDEN / "intermediates.safetensors")
    checked = 0
    for case in setting["pictures"]:
        x = tensors.get(f"picture{case['picture']}.projected_patches")
        if x is not None:
            k = len(case["selection_order"])
            got = max_min_order(1 - cosine_matrix(x[None]), k)[0].tolist()
            assert got == case["selection_order"]
            checked += 1
    assert checked
