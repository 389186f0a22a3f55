"""How much of a set of states is left in a part of them: spans, neighbours, effective rank.

Everything is computed from the Gram matrix of states around their mean, [n, n] in float64, which
is made in chunks of columns; 2,880 states of any width take 66 MB.

Sources: effective rank as the exponential of the spectrum's entropy, Roy & Vetterli 2007, here of
variances, not of singular values; participation ratio (sum v)^2 / sum v^2; overlap of nearest
neighbours ("mutual k-NN"), Huh et al. 2024, "The Platonic Representation Hypothesis".
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "as_read",
    "centred",
    "cosine_error",
    "effective",
    "gram_of",
    "near",
    "neighbours",
    "overlap",
    "span_error",
    "tokens_needed",
    "variances",
]

COLUMNS = 512
RANK_TOLERANCE = 1e-10
"""Directions with less than this share of the largest one's variance span nothing."""


def as_read(states: Tensor) -> Tensor:
    """[n, D] float32, states over their root mean square: a decoder layer reads them through
    RMSNorm, so that their lengths make no difference to it. The norm's weights are left out.
    """
    states = states.float()
    return states / states.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


def centred(states: Tensor) -> Tensor:
    """[n, D], states around their mean."""
    return states - states.mean(0, dtype=torch.float64).to(states.dtype)


def gram_of(states: Tensor) -> Tensor:
    """[n, n] float64, inner products of states [n, D]."""
    n, width = states.shape
    out = torch.zeros(n, n, dtype=torch.float64, device=states.device)
    for first in range(0, width, COLUMNS):
        part = states[:, first : first + COLUMNS].double()
        out.addmm_(part, part.T)
    return out


def variances(states: Tensor, gram: Tensor) -> Tensor:
    """[min(n, D)] float64, variance along each principal direction of centred states times n,
    falling; `gram` is theirs.
    """
    n, width = states.shape
    if width < n:
        gram = states.double().T @ states.double()
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)


def effective(spectrum: Tensor) -> dict[str, float]:
    """How many dimensions a spectrum [r] of variances fills.

    participation: (sum v)^2 / sum v^2; entropy: exp of the entropy of v / sum v; dims_90, dims_99:
    the fewest principal directions that hold this share of the variance. All 0 without variance.
    """
    total = float(spectrum.sum())
    if total <= 0:
        return {"participation": 0.0, "entropy": 0.0, "dims_90": 0.0, "dims_99": 0.0}
    share = spectrum / total
    some = share[share > 0]
    held = share.cumsum(0)
    return {
        "participation": float(1 / share.pow(2).sum()),
        "entropy": float((-(some * some.log()).sum()).exp()),
        "dims_90": float((held < 0.90 - 1e-9).sum() + 1),
        "dims_99": float((held < 0.99 - 1e-9).sum() + 1),
    }


def span_error(gram: Tensor, kept: Tensor) -> tuple[float, float]:
    """What the states that are not kept lose if all that is left of them is their projection onto
    the span of the kept ones (least squares, all around the mean of all states).

    Args:
        gram: [n, n] of centred states; kept: [k] indices.

    Returns: the squared residual of the dropped states as a share of their own squared length (0
    where nothing is dropped, 1 where nothing is kept), and the share of the variance of all states
    that is left.
    """
    lengths = gram.diagonal()
    dropped = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    dropped[kept] = False
    own, total = float(lengths[dropped].sum()), float(lengths.sum())
    if not bool(dropped.any()) or own <= 0:
        return 0.0, 1.0
    if not len(kept):
        return 1.0, 0.0
    values, vectors = torch.linalg.eigh(gram[kept][:, kept])
    spans = values > RANK_TOLERANCE * values[-1].clamp(min=0)
    across = gram[kept][:, dropped]
    held = (vectors[:, spans].T @ across).pow(2) / values[spans, None]
    residual = float((lengths[dropped] - held.sum(0)).clamp(min=0).sum())
    return residual / own, 1 - residual / max(total, 1e-300)


def cosines(gram: Tensor, rows: Tensor | slice) -> Tensor:
    """[r, n], cosines of some states to all."""
    lengths = gram.diagonal().clamp(min=1e-300).sqrt()
    return gram[rows] / lengths[rows, None] / lengths[None]


def cosine_error(gram: Tensor, kept: Tensor) -> float:
    """1 - cosine of each dropped state to the nearest kept one, around the mean of all states, as
    mean over the dropped ones; 0 where nothing is dropped, 1 where nothing is kept.
    """
    dropped = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    dropped[kept] = False
    if not bool(dropped.any()):
        return 0.0
    if not len(kept):
        return 1.0
    return float((1 - cosines(gram, kept)[:, dropped].amax(0)).clamp(min=0).mean())


def neighbours(gram: Tensor, k: int) -> Tensor:
    """[n, k] int32, the k nearest other states of each by cosine around the mean.

    Raises `ValueError` where there are not so many.
    """
    n = len(gram)
    if not 1 <= k < n:
        raise ValueError(f"{k} nearest neighbours among {n} states: give 1 to {n - 1}")
    out = torch.empty(n, k, dtype=torch.int32, device=gram.device)
    step = max(1, 2**21 // n)
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        part = cosines(gram, rows)
        part.diagonal(first).fill_(float("-inf"))
        out[rows] = part.topk(k).indices.int()
    return out


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of each state's k nearest neighbours [n, k] that it has in both, as mean; chance is
    k / (n - 1).
    """
    same = (first[:, :, None] == second[:, None, :]).any(-1)
    return float(same.double().mean())


def near(found: Tensor, kept: Tensor) -> float:
    """Share of the dropped states with a kept one among their nearest neighbours [n, k]; 1 where
    nothing is dropped. Chance with m kept: 1 - C(n - 1 - m, k) / C(n - 1, k).
    """
    here = torch.zeros(len(found), dtype=torch.bool, device=found.device)
    here[kept] = True
    if bool(here.all()):
        return 1.0
    return float(here[found[~here].long()].any(-1).double().mean())


def tokens_needed(gram: Tensor, share: float, order: Tensor | None = None) -> int:
    """How many states it takes until their span holds `share` of the variance of all.

    Args:
        order: [n], in which order they are taken; None takes each time the one that is farthest
            from the span so far (pivoted Cholesky). As many principal directions hold at least as
            much: `effective`'s dims are a lower bound.
    """
    n = len(gram)
    left = gram.diagonal().clone()
    total = float(left.sum())
    if total <= 0:
        return 0
    floor = RANK_TOLERANCE * float(left.max())
    factor = torch.zeros(0, n, dtype=gram.dtype, device=gram.device)
    places = iter(range(n) if order is None else order.tolist())
    taken = 0
    while float(left.sum()) > (1 - share) * total + 1e-12 * total and taken < n:
        place = int(left.argmax()) if order is None else next(places)
        taken += 1
        if float(left[place]) <= floor:  # in the span already
            continue
        if taken >= len(factor):
            more = torch.zeros(max(64, len(factor)), n, dtype=gram.dtype, device=gram.device)
            factor = torch.cat([factor, more])
        row = gram[place] - factor[:, place] @ factor
        row = row / left[place].sqrt()
        factor[taken - 1] = row
        left = (left - row.pow(2)).clamp(min=0)
        left[place] = 0
    return taken
