"""How alike two sets of states are, and what can be read off them: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from analysis.overlap import area_under

__all__ = ["cka", "folds", "held_out", "hsic", "jackknife", "pair_features", "ridge"]


def hsic(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion of two kernel matrices
    [n, n] over the same n samples (Song et al. 2012, eq. 5). Expected to be 0 for independent
    samples, and may be below. Needs n >= 4, `ValueError` otherwise.
    """
    n = len(first)
    if n < 4:
        raise ValueError(f"{n} samples: the unbiased estimate needs 4 or more")
    k, m = first.astype(np.float64), second.astype(np.float64)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    row_k, row_m = k.sum(1), m.sum(1)
    both = (k * m).sum() + row_k.sum() * row_m.sum() / ((n - 1) * (n - 2))
    return float((both - 2 / (n - 2) * row_k @ row_m) / (n * (n - 3)))


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear centred kernel alignment, debiased, of two kernel matrices [n, n]: `hsic` of both over
    the geometric mean of `hsic` of each with itself (Kornblith et al. 2019; Nguyen et al. 2021).

    1 for states that are equal up to rotation, scale and shift, about 0 for independent ones. NaN
    where one of the two does not vary.
    """
    norm = hsic(first, first) * hsic(second, second)
    return hsic(first, second) / norm**0.5 if norm > 0 else float("nan")


def jackknife(
    statistic: Callable[[np.ndarray], float], clusters: Sequence[Any]
) -> tuple[float, float, float]:
    """A statistic of all samples and its 95 % interval by leaving out one cluster at a time.

    For statistics that drawing samples twice would spoil, such as `cka`. NaN ends for fewer than
    three clusters.

    Args:
        statistic: of the places of the samples that are taken.
        clusters: [n], what each sample shares with others: its picture.
    """
    names = np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = names.max() + 1
    whole = statistic(np.arange(len(names)))
    if count < 3:
        return whole, float("nan"), float("nan")
    without = np.array([statistic(np.flatnonzero(names != c)) for c in range(count)])
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    return whole, float(whole - 1.96 * error), float(whole + 1.96 * error)


def pair_features(visual: np.ndarray, text: np.ndarray) -> np.ndarray:
    """[m, p + p q]: each token's state [p] and its products with each entry of the question's [q],
    so that what is linear in them may be any bilinear function of both.
    """
    products = visual[:, :, None] * text[:, None, :]
    return np.concatenate([visual, products.reshape(len(visual), -1)], 1)


def ridge(features: np.ndarray, wanted: np.ndarray, strength: float = 0.01) -> Any:
    """A linear reader of `features` [m, p] for the classes `wanted` [m] bool, which weigh the same.

    Least squares on standardised features, with `strength` times the weight of the data on the
    squared weights. Returns a function [m', p] -> [m'].
    """
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 1e-8 * (1 + np.abs(mean)), spread, np.inf)  # constant: no use
    x = (features - mean) / spread
    weight = np.where(wanted, 0.5 / max(1, wanted.sum()), 0.5 / max(1, (~wanted).sum()))
    target = np.where(wanted, 1.0, -1.0)
    middle = weight @ x
    x = x - middle
    gram = (x * weight[:, None]).T @ x
    gram[np.diag_indices_from(gram)] += strength
    found = np.linalg.solve(gram, x.T @ (weight * target))
    return lambda new: ((new - mean) / spread - middle) @ found


def components(states: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """The first principal components of `states` [m, p], scaled to variance 1, as a function
    [m', p] -> [m', at most count].
    """
    mean = states.mean(0)
    values, vectors = np.linalg.eigh(np.cov(states - mean, rowvar=False))
    kept = np.argsort(values)[::-1][:count]
    kept = kept[values[kept] > 1e-9 * max(values.max(), 1e-30)]
    basis = vectors[:, kept] / np.sqrt(values[kept])
    return lambda new: (new - mean) @ basis


def folds(clusters: Sequence[Any], count: int, seed: int) -> np.ndarray:
    """[n], the fold of each sample; a picture's samples are all in one."""
    names = np.unique(np.asarray(clusters), return_inverse=True)[1]
    places = np.random.default_rng(seed).permutation(names.max() + 1)
    return places[names] % count


def held_out(
    features: np.ndarray,
    wanted: np.ndarray,
    questions: np.ndarray,
    fold: np.ndarray,
    text: np.ndarray | None = None,
    rank: int = 24,
) -> dict[int, float]:
    """How well a linear reader tells wanted tokens from others of the same question, on pictures
    that it was not fitted on: by question the area under the ROC curve (chance: 0.5).

    Args:
        features: [m, p], a state of each token; wanted: [m] bool.
        questions, fold: [m], what each token belongs to.
        text: [m, q], a state of the token's question. The reader is then a bilinear function of
            both, on their first `rank` principal components.
    """
    features, out = features.astype(np.float64), {}
    for f in np.unique(fold):
        train, test = fold != f, fold == f
        if len(set(wanted[train].tolist())) < 2:
            continue
        shown = features
        if text is not None:
            words = text.astype(np.float64)
            see, ask = components(features[train], rank), components(words[train], rank)
            shown = pair_features(see(features), ask(words))
        value = ridge(shown[train], wanted[train])(shown[test])
        for question in np.unique(questions[test]):
            own = questions[test] == question
            area = float(area_under(value[own], wanted[test][own]))
            if not np.isnan(area):
                out[int(question)] = area
    return out
