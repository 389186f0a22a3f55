"""How well a score finds a region: overlap of its top tokens with it, and what chance would give.

Among equal scores the earlier token wins, as where methods choose tokens.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import hypergeom, rankdata

__all__ = ["area_under", "chance", "expected_iou", "iou", "names", "overlap", "top"]


def names(tokens: int) -> tuple[str, ...]:
    """What `overlap` gives, in its order."""
    fixed = (f"{name}_{tokens}" for name in ("recall", "precision", "iou"))
    return ("auc", "recall", "precision", "iou", "lift", *fixed)


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """[..., k] places of the k highest scores [..., n], in no order."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def area_under(scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[...], the area under the ROC curve: how often a wanted token has a higher score than another
    one, equal scores counting half.

    Args:
        scores: [..., n]; wanted: [n] bool.

    NaN where all tokens are wanted, or none is.
    """
    count = int(wanted.sum())
    others = len(wanted) - count
    if not count or not others:
        return np.full(scores.shape[:-1], np.nan)
    ranks = rankdata(scores, axis=-1)[..., wanted].sum(-1)
    return (ranks - count * (count + 1) / 2) / (count * others)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two sets of ids; NaN of two empty ones."""
    shared = len(np.intersect1d(first, second))
    union = len(first) + len(second) - shared
    return shared / union if union else float("nan")


def expected_iou(size: int, drawn: int, total: int) -> float:
    """The expected intersection over union of a set of `size` tokens with `drawn` ones taken at
    random from `total`, each token as likely: the number they share is hypergeometric.
    """
    shared = np.arange(max(0, size + drawn - total), min(size, drawn) + 1)
    weight = hypergeom.pmf(shared, total, size, drawn)
    return float((weight * shared / (size + drawn - shared)).sum())


def overlap(scores: np.ndarray, wanted: np.ndarray, tokens: int) -> np.ndarray:
    """[..., 8], how well scores find the wanted tokens; see `names`.

    With r wanted among n tokens: the area under the ROC curve; recall, precision (equal to it) and
    intersection over union of the r highest scores, and lift, that precision over r / n; recall,
    precision and intersection over union of the `tokens` highest.

    Args:
        scores: [..., n]; wanted: [n] bool.

    Raises `ValueError` where no token is wanted.
    """
    size, total = int(wanted.sum()), len(wanted)
    if not size:
        raise ValueError("no token is wanted, so there is nothing to find")
    found = []
    for k in (size, min(tokens, total)):
        hits = wanted[top(scores, k)].sum(-1)
        found.append([hits / size, hits / k, hits / (size + k - hits)])
    lift = found[0][1] * total / size
    return np.stack([area_under(scores, wanted), *found[0], lift, *found[1]], -1)


def chance(size: int, total: int, tokens: int) -> np.ndarray:
    """[8], the expectation of `overlap` for tokens drawn at random: exact, not a sample."""
    tokens = min(tokens, total)
    share = size / total
    area = 0.5 if size < total else float("nan")
    return np.array(
        [area, share, share, expected_iou(size, size, total), 1.0]
        + [tokens / total, share, expected_iou(size, tokens, total)]
    )
