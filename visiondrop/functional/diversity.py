"""Choosing tokens that differ from each other: greedy selection as pure, batched tensor functions.

Every function takes one n x n matrix per picture and returns the picks in the order in which they
were made. A step is a handful of tensor operations on the device; nothing is read back. Ties go to
the earlier token. A token is never picked twice, also where all that is left is a duplicate.

Shapes: G pictures, n tokens, k picks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from visiondrop.scoring import wide

__all__ = ["Combination", "cosine_matrix", "coverage_order", "dpp_order", "max_min_order"]

Combination = Literal["multiply", "add"]


def cosine_matrix(tokens: Tensor) -> Tensor:
    """Cosine of every token with every other, [G, n, n] in float32, for `tokens` [G, n, D]."""
    unit = torch.nn.functional.normalize(wide(tokens), dim=-1)
    return unit @ unit.transpose(1, 2)


def _check(matrix: Tensor, k: int) -> None:
    n = matrix.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"{k} tokens to pick from {n}; possible: 1 to {n}")


def _rows(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that takes row `pick` [G] of each matrix [G, n, m], [G, m]."""
    groups, n, _ = matrix.shape
    flat = matrix.reshape(groups * n, -1)
    if groups == 1:
        return lambda pick: flat.index_select(0, pick)
    first = torch.arange(0, groups * n, n, device=matrix.device)
    return lambda pick: flat.index_select(0, pick + first)


@torch.no_grad()
def max_min_order(distance: Tensor, k: int) -> Tensor:
    """Greedy max-min diversity (DivPrune, arXiv 2503.02175): [G, k] picks.

    First the token whose nearest other token is farthest; then always the token that is farthest
    from its nearest chosen one. O(k n) after the first pick.

    Args:
        distance: [G, n, n], symmetric.
        k: 1 to n, else `ValueError`.
    """
    _check(distance, k)
    distance = distance.clone()
    diagonal = distance.diagonal(dim1=1, dim2=2)
    diagonal.fill_(torch.inf)
    picks = [distance.amin(1).argmax(1)]
    # From here on the diagonal is what takes a picked token out of the running.
    diagonal.fill_(-torch.inf)
    row = _rows(distance)
    nearest = row(picks[0])
    for _ in range(k - 1):
        picks.append(nearest.argmax(1))
        torch.minimum(nearest, row(picks[-1]), out=nearest)
    return torch.stack(picks, 1)


@torch.no_grad()
def dpp_order(kernel: Tensor, k: int) -> Tensor:
    """Greedy MAP of a determinantal point process (Chen et al., arXiv 1709.05135): [G, k] picks.

    Each step takes the token that raises det(kernel[S, S]) most, by rows of an incomplete Cholesky
    factor: e = (L_j - C_j C) / d_j, then d^2 -= e^2. O(k n) a step. Beyond the kernel's rank,
    gains are rounding noise; such a pick changes no other gain, so that noise cannot grow.

    Args:
        kernel: [G, n, n], symmetric, positive semidefinite.
        k: 1 to n, else `ValueError`.
    """
    _check(kernel, k)
    groups, n, _ = kernel.shape
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    noise = gain.amax(1) * (4 * torch.finfo(kernel.dtype).eps)
    factor = kernel.new_zeros(groups, n, k)
    row, factor_row = _rows(kernel), _rows(factor)
    picks: list[Tensor] = []
    for step in range(k):
        best, pick = gain.max(1)
        picks.append(pick)
        if step == k - 1:
            break
        own = factor_row(pick)[..., None]
        rest = torch.baddbmm(row(pick)[..., None], factor, own, alpha=-1)[..., 0]
        rest *= torch.where(best > noise, best, torch.inf).rsqrt()[:, None]
        factor[..., step] = rest
        gain.addcmul_(rest, rest, value=-1).scatter_(1, pick[:, None], -torch.inf)
    return torch.stack(picks, 1)


@torch.no_grad()
def coverage_order(
    similarity: Tensor,
    k: int,
    *,
    weight: Tensor | None = None,
    combine: Combination = "multiply",
    demand: Tensor | None = None,
) -> Tensor:
    """Greedy coverage, also known as facility location: [G, k] picks.

    A chosen set S covers token i by c_i = max(0, max_{s in S} similarity_si). Adding token j gains
    sum_i demand_i max(0, similarity_ji - c_i); the pick maximises gain_j * weight_j or
    gain_j + weight_j. By its definition a step looks at all n^2 similarities.

    Args:
        similarity: [G, n, n], symmetric.
        k: 1 to n, else `ValueError`.
        weight: [G, n], of each candidate; None leaves the gain alone.
        combine: how the weight enters.
        demand: [G, n], how much it matters that each token is covered; None for ones.
    """
    _check(similarity, k)
    groups, n, _ = similarity.shape
    covered = similarity.new_zeros(groups, n)
    closed = torch.zeros_like(covered)
    row = _rows(similarity)
    lack = torch.empty_like(similarity)
    picks: list[Tensor] = []
    for step in range(k):
        torch.sub(similarity, covered[:, None], out=lack).clamp_(min=0)
        gain = lack.sum(2) if demand is None else (lack @ demand[..., None])[..., 0]
        if weight is not None:
            gain = gain * weight if combine == "multiply" else gain + weight
        pick = (gain + closed).argmax(1)
        picks.append(pick)
        if step < k - 1:
            closed.scatter_(1, pick[:, None], -torch.inf)
            torch.maximum(covered, row(pick), out=covered)
    return torch.stack(picks, 1)
