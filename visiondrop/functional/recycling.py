"""Pruning with recycling: what is dropped comes back as one token per cell of a coarse grid.

Source: VFlowOpt (arXiv 2508.05211). The number of tokens left is exact here: dropping one token
more lowers it by one, or by nothing where that token is the first of its cell to go, so that every
count down to the number of occupied cells is met.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from visiondrop.merging import Reduction, gather, keep_only
from visiondrop.scoring import wide

__all__ = ["prune_lowest", "recycle_lowest"]


def ranks_from_below(importance: Tensor) -> Tensor:
    """[G, n], 0 for the least important token; among equals the later one is lower."""
    return importance.sort(dim=1, descending=True, stable=True).indices.flip(1).argsort(1)


def prune_lowest(
    features: Tensor,
    sizes: Tensor,
    importance: Tensor,
    tokens: int,
    recycling: tuple[Tensor, int] | None = None,
) -> Reduction:
    """`tokens` of [G, n, D] by importance [G, n], which goes on with them (`Reduction.score`).

    Args:
        recycling: the cell of each token, [n] or [G, n], and the number of cells; None drops
            without recycling.
    """
    if recycling is None:
        kept = ranks_from_below(importance) >= importance.shape[1] - tokens
        out = keep_only(features, sizes, _places(kept, tokens))
    else:
        cell, cells = recycling
        cell = cell.to(importance.device).expand_as(importance)
        out = recycle_lowest(features, sizes, importance, cell, cells, tokens)
    return replace(out, score=gather(importance, out.source))


def recycle_lowest(
    features: Tensor, sizes: Tensor, importance: Tensor, cell: Tensor, cells: int, tokens: int
) -> Reduction:
    """Drop the least important tokens; those of one cell become one token, their mean weighted by
    importance, at the place of the most important of them. `tokens` are left in all, in order.

    Negative weights count as 0; where all of a cell's are 0 the mean is plain.

    Args:
        features: [G, n, D]; sizes: [G, n]; importance: [G, n].
        cell: [G, n], 0 .. cells - 1; tokens: from the number of occupied cells to n.
    """
    total = importance.shape[1]
    if not min(cells, total) <= tokens <= total:
        raise ValueError(
            f"{tokens} tokens asked for of {total} with recycling into {cells} cells: at least one "
            f"token a cell is left; ask for {min(cells, total)} to {total}, or for a coarser grid"
        )
    rank = ranks_from_below(importance)
    order = rank.argsort(1)
    # Tokens left after dropping the 1, 2, ... lowest: one for each kept, one for each cell begun.
    first = rank.new_full((rank.shape[0], cells), total).scatter_reduce(1, cell, rank, "amin")
    begins = gather(gather(first, cell) == rank, order)
    left = total - torch.arange(1, total + 1, device=rank.device) + begins.cumsum(1)
    dropped = rank < (left > tokens).sum(1, keepdim=True) + int(tokens < total)

    last = rank.new_full((rank.shape[0], cells), -1).scatter_reduce(
        1, cell, torch.where(dropped, rank, -1), "amax"
    )
    anchor = dropped & (gather(last, cell) == rank)
    weight = wide(importance).clamp(min=0) * dropped
    barren = torch.zeros_like(last, dtype=weight.dtype).scatter_add(1, cell, weight) == 0
    weight = torch.where(gather(barren, cell) & dropped, 1.0, weight)
    members = torch.nn.functional.one_hot(cell, cells).to(weight.dtype) * weight[..., None]
    members = members / members.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    recycled = members.transpose(1, 2) @ wide(features)
    group = torch.zeros_like(last).scatter_add(1, cell, torch.where(dropped, sizes, 0))
    count = torch.zeros_like(last).scatter_add(1, cell, dropped.long())

    kept = _places(~dropped | anchor, tokens)
    own_cell, fresh = gather(cell, kept), gather(anchor, kept)
    out = torch.where(
        fresh[..., None], gather(recycled, own_cell), wide(gather(features, kept))
    ).to(features.dtype)
    out_sizes = torch.where(fresh, gather(group, own_cell), gather(sizes, kept))
    merged = fresh & (gather(count, own_cell) > 1)

    slot = torch.zeros_like(rank).scatter(
        1, kept, torch.arange(tokens, device=kept.device).expand_as(kept)
    )
    home = gather(order, gather(last, cell).clamp(min=0))
    target = torch.where(dropped, gather(slot, home), slot)
    return Reduction(out, kept, target, out_sizes, merged)


def _places(kept: Tensor, tokens: int) -> Tensor:
    """[G, tokens], places of the `tokens` true ones of [G, n], rising."""
    return kept.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :tokens]
