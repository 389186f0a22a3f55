"""Redundancy of planted states: known ranks, duplicates, Gaussians, and slow oracles in numpy."""

import numpy as np
import pytest
import torch

from analysis import state_redundancy as red


def normal(n, width, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(states):
    return red.gram_of(red.centred(states))


def measured(states):
    middle = red.centred(states)
    return red.effective(red.variances(middle, red.gram_of(middle)))


@pytest.mark.parametrize("n, width", [(40, 100), (100, 40), (30, 1100)])
def test_the_gram_matrix_and_its_spectrum_are_numpys(n, width):
    states = red.centred(normal(n, width))
    found = red.gram_of(states)
    assert np.allclose(found, states.numpy() @ states.numpy().T)
    singular = np.linalg.svd(states.numpy(), compute_uv=False)
    assert np.allclose(red.variances(states, found)[: min(n, width)], singular**2, atol=1e-9)


@pytest.mark.parametrize("n, width", [(60, 200), (200, 60)])
@pytest.mark.parametrize("rank", [1, 5, 20])
def test_planted_low_rank_states_have_their_rank(n, width, rank):
    # Equal variance along `rank` directions: every measure is the rank.
    basis = torch.linalg.qr(normal(width, rank, 1)).Q
    weights = torch.linalg.qr(red.centred(normal(n, rank, 2))).Q
    found = measured(weights @ basis.T + normal(1, width, 3))
    assert found["participation"] == pytest.approx(rank)
    assert found["entropy"] == pytest.approx(rank)
    assert found["dims_99"] == rank and found["dims_90"] == int(np.ceil(0.9 * rank - 1e-9))


def test_known_variances_have_known_dimensions():
    found = red.effective(torch.tensor([8.0, 1.0, 0.5, 0.5, 0.0]))
    assert found["participation"] == pytest.approx(100 / 65.5)
    p = np.array([0.8, 0.1, 0.05, 0.05])
    assert found["entropy"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert (found["dims_90"], found["dims_99"]) == (2, 4)
    assert measured(torch.ones(5, 3))["participation"] == 0


def by_least_squares(states, kept):
    """Residuals of numpy's own least squares, around the mean."""
    middle = (states - states.mean(0)).numpy()
    dropped = np.setdiff1d(np.arange(len(middle)), kept)
    weights, *_ = np.linalg.lstsq(middle[kept].T, middle[dropped].T, rcond=1e-10)
    residual = ((middle[dropped].T - middle[kept].T @ weights) ** 2).sum()
    return residual / (middle[dropped] ** 2).sum(), 1 - residual / (middle**2).sum()


def test_the_error_is_that_of_least_squares():
    states = normal(50, 30) @ normal(30, 30, 1)
    for count in (1, 7, 20):
        kept = torch.randperm(50, generator=torch.Generator().manual_seed(count))[:count]
        found = red.span_error(gram(states), kept)
        assert found == pytest.approx(by_least_squares(states, kept.numpy()), rel=1e-6)


def test_all_kept_loses_nothing_and_nothing_kept_loses_all():
    some, everything = torch.tensor([], dtype=torch.long), torch.arange(20)
    g = gram(normal(20, 8))
    assert red.span_error(g, everything) == (0, 1) and red.span_error(g, some) == (1, 0)
    assert red.cosine_error(g, everything) == 0 and red.cosine_error(g, some) == 1
    found = red.neighbours(g, 3)
    assert red.near(found, everything) == 1 and red.near(found, some) == 0


def test_one_of_each_pair_of_duplicates_is_enough():
    half = normal(15, 40)
    g = gram(torch.cat([half, half]))
    kept = torch.tensor([i + 15 * (i % 2) for i in range(15)])
    error, left = red.span_error(g, kept)
    assert error == pytest.approx(0, abs=1e-9) and left == pytest.approx(1)
    assert red.cosine_error(g, kept) == pytest.approx(0, abs=1e-9)
    assert red.near(red.neighbours(g, 1), kept) == 1
    # Both of some pairs and none of others is not.
    worse = torch.tensor([*range(7), *range(15, 22)])
    assert red.span_error(g, worse)[0] > 0.3


def test_kept_duplicates_do_not_break_the_span():
    half = normal(10, 40)
    states = torch.cat([half, half, normal(10, 40, 5)])
    twice, once = torch.arange(20), torch.arange(10)
    g = gram(states)
    assert red.span_error(g, twice)[1] == pytest.approx(red.span_error(g, once)[1])


def test_gaussian_states_lose_what_theory_says():
    # k random directions of D hold k / D of anything independent of them.
    n, width, k = 1500, 80, 30
    errors = [red.span_error(gram(normal(n, width, s)), torch.arange(k))[0] for s in range(3)]
    assert np.mean(errors) == pytest.approx(1 - k / width, abs=0.01)
    # The largest of k cosines to independent directions, by a draw of its own.
    unit = np.random.default_rng(1).normal(size=(4000, k, width))
    other = np.random.default_rng(2).normal(size=(4000, width))
    cosine = np.einsum("nkd,nd->nk", unit, other) / (
        np.linalg.norm(unit, axis=-1) * np.linalg.norm(other, axis=-1)[:, None]
    )
    found = np.mean([red.cosine_error(gram(normal(n, width, s)), torch.arange(k)) for s in (5, 6)])
    assert found == pytest.approx(1 - cosine.max(1).mean(), abs=0.01)


def test_neighbours_are_those_of_sorting():
    states = normal(60, 10)
    middle = (states - states.mean(0)).numpy()
    unit = middle / np.linalg.norm(middle, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    expected = np.argsort(-cosine, axis=1)[:, :5]
    found = red.neighbours(gram(states), 5)
    assert (np.sort(found.numpy(), 1) == np.sort(expected, 1)).all()
    with pytest.raises(ValueError, match="give 1 to 59"):
        red.neighbours(gram(states), 60)


def test_overlap_of_neighbours():
    g = gram(normal(200, 10))
    found = red.neighbours(g, 10)
    assert red.overlap(found, found) == 1
    assert red.overlap(found, found.flip(1)) == 1  # the order among the nearest does not count
    others = [red.neighbours(gram(normal(200, 10, s)), 10) for s in range(1, 6)]
    assert np.mean([red.overlap(found, o) for o in others]) == pytest.approx(10 / 199, abs=0.01)
    first, second = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 4], [3, 2]])
    assert red.overlap(first, second) == 0.75


def test_near_counts_dropped_states_with_a_kept_neighbour():
    found = torch.tensor([[1, 2], [0, 2], [3, 0], [2, 1]])
    assert red.near(found, torch.tensor([0])) == pytest.approx(2 / 3)
    assert red.near(found, torch.tensor([3])) == pytest.approx(1 / 3)


def test_tokens_needed_lie_between_dimensions_and_any_other_order():
    states = normal(120, 50) * torch.linspace(3, 0.1, 50)
    g = gram(states)
    greedy = red.tokens_needed(g, 0.9)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    drawn = red.tokens_needed(g, 0.9, order)
    assert measured(states)["dims_90"] <= greedy <= drawn
    # By the other function: with so many the span holds 90 %, with one less it does not.
    assert red.span_error(g, order[:drawn])[1] >= 0.9 > red.span_error(g, order[: drawn - 1])[1]


def test_tokens_needed_of_planted_states():
    basis = torch.linalg.qr(normal(40, 4)).Q
    states = normal(30, 4, 1) @ basis.T
    assert red.tokens_needed(gram(states), 1.0) == 4
    same = torch.ones(6, 3, dtype=torch.float64)
    assert red.tokens_needed(gram(same), 0.9) == 0
    # An order that begins with copies of one state waits until something new comes.
    copies = torch.cat([states[:1].repeat(5, 1), states[1:]])
    g = gram(copies)
    assert red.tokens_needed(g, 1.0, torch.arange(len(copies))) >= 8


def test_states_as_layers_read_them_do_not_depend_on_their_length():
    states = normal(10, 6)
    scaled = states * torch.linspace(0.1, 50, 10)[:, None].double()
    assert torch.allclose(red.as_read(states), red.as_read(scaled), atol=1e-5)
