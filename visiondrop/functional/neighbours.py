"""Nearest neighbours among visual tokens, and how they are folded into the tokens that stay.

Source: LLaVA-PruMerge (arXiv 2403.15388), released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visiondrop.merging import gather
from visiondrop.scoring import wide

__all__ = ["add_neighbours", "left_over", "nearest"]


def left_over(kept: Tensor, n: int) -> Tensor:
    """The last n - k of the tokens 0..n-1 that are not in `kept` [G, k], rising, [G, n - k].

    Without repetition in `kept` these are all the others. A token kept twice takes the place of one
    of the others, and it is the first of these that are left out (as released).
    """
    taken = torch.zeros(kept.shape[0], n, dtype=torch.bool, device=kept.device)
    taken.scatter_(1, kept, True)
    # A stable sort of the flags puts the kept ones first, without a host round trip.
    order = (~taken).to(torch.uint8).sort(dim=1, stable=True).indices
    return order[:, kept.shape[1] :]


def nearest(
    metric: Tensor, kept: Tensor, others: Tensor, count: int, *, among_kept: bool = True
) -> Tensor:
    """The `count` tokens most similar to each kept one, by cosine.

    Candidates are `others` and, with `among_kept`, all kept tokens but the one itself. A token that
    is kept twice is then a neighbour of its own double.

    Args:
        metric: [G, n, d], for PruMerge the keys over their full width.
        kept: [G, k] and others: [G, p], indices into the n tokens.
        count: how many; all candidates where there are fewer.

    Returns: [G, k, c], indices into the n tokens, most similar first; c is `count`, or the number
    of candidates where there are fewer.
    """
    unit = torch.nn.functional.normalize(wide(metric), dim=-1)
    pool = torch.cat([kept, others], 1) if among_kept else others
    similarity = gather(unit, kept) @ gather(unit, pool).transpose(1, 2)
    candidates = pool.shape[1]
    if among_kept and kept.shape[1]:
        similarity.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
        candidates -= 1
    places = similarity.topk(min(count, candidates), dim=-1).indices
    return pool[:, None].expand(-1, kept.shape[1], -1).gather(2, places)


def add_neighbours(features: Tensor, weight: Tensor, kept: Tensor, neighbours: Tensor) -> Tensor:
    """Each kept token plus the weighted sum (not the mean) of its neighbours.

    feature_i + sum over its neighbours j of weight_j feature_j, with the features as they came.

    Args:
        features: [G, n, D]; weight: [G, n]; kept: [G, k]; neighbours: [G, k, c], see `nearest`.

    Returns: [G, k, D].
    """
    source, weight = wide(features), wide(weight)
    spread = weight.new_zeros(*kept.shape, features.shape[1])
    each = weight[:, None].expand_as(spread).gather(2, neighbours)
    # One product with a sparse [k, n] matrix instead of k x c gathered feature rows.
    spread.scatter_add_(2, neighbours, each)
    return (gather(source, kept) + spread @ source).to(features.dtype)
