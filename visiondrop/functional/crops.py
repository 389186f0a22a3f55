"""Crops of the grid of patches, their tokens' scores, and how a budget is shared among them.

Shapes: G pictures, C crops of at most m of the n patches. Source: HoloV, arXiv 2510.02912.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from visiondrop.scoring import wide

__all__ = ["Shape", "members", "quotas", "varied_scores"]

Shape = Literal["runs", "windows"]
EPSILON = 1e-6


def members(grid: tuple[int, int], crops: int, shape: Shape) -> Tensor:
    """[crops, m], the patches of each crop, rising; the number of patches fills shorter ones."""
    rows, columns = grid
    patches = torch.arange(rows * columns)
    if shape == "runs":
        parts = list(patches.tensor_split(crops))
    else:
        down = next(d for d in range(math.isqrt(crops), 0, -1) if crops % d == 0)
        if down > rows or crops // down > columns:
            raise ValueError(
                f"crops={crops} windows, {down} x {crops // down}, do not fit a grid of {rows} x "
                f"{columns} patches"
            )
        bands = patches.view(grid).tensor_split(down)
        parts = [w.flatten() for b in bands for w in b.tensor_split(crops // down, dim=1)]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=rows * columns)


def varied_scores(features: Tensor, attention: Tensor, valid: Tensor, beta: float) -> Tensor:
    """attention_j + beta * (variance of j's cosines within its crop, on attention's scale).

    Args:
        features: [G, C, m, D]; attention: [G, C, m]; both zero where not `valid` [C, m].

    Returns: [G, C, m], zero where not valid.
    """
    x = wide(features)
    x = x / (x.norm(dim=-1, keepdim=True) + EPSILON)
    apart = ~torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
    similar = (x @ x.transpose(-1, -2)) * apart
    size = valid.sum(1)[:, None]
    mean = similar.sum(-1) / (size - 1)
    inside = valid[:, None] & valid[..., None]
    spread = ((similar - mean[..., None]).square() * inside).sum(-1) / (size - 1)
    scale = attention.abs().sum(-1) / size[:, 0] / (spread.sum(-1) / size[:, 0] + EPSILON)
    return attention + beta * spread * scale[..., None]


def quotas(scores: Tensor, size: Tensor, tokens: int) -> Tensor:
    """[G, C] tokens of each crop, `tokens` in all and none above `size` [C], by `scores` [G, C]."""
    weight = scores / (scores.sum(1, keepdim=True) + EPSILON)
    given = (weight * tokens).floor().long()
    order = weight.sort(dim=1, descending=True, stable=True).indices
    place = order.argsort(dim=1)
    given = given + (place < tokens - given.sum(1, keepdim=True))
    given = torch.minimum(given, size)
    room = (size - given).gather(1, order)
    over = tokens - given.sum(1, keepdim=True) - (room.cumsum(1) - room)
    return given + torch.minimum(over.clamp(min=0), room).gather(1, place)
