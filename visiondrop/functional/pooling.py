"""Average pooling of visual tokens, in their sequence or over their grid."""

from __future__ import annotations

import torch
from torch import Tensor

from visiondrop.merging import Reduction
from visiondrop.scoring import wide

__all__ = ["average_windows", "pooled_length", "window_edges"]


def pooled_length(length: int, stride: float) -> int:
    """Windows over `length` tokens: `length // stride` for a whole stride (a remainder is dropped,
    as `AvgPool1d` does), else the rounded quotient; at least 1.
    """
    if float(stride).is_integer():
        return max(1, length // int(stride))
    return max(1, round(length / stride))


def window_edges(length: int, stride: float) -> tuple[list[int], list[int]]:
    """First and last + 1 token of each window.

    A whole stride gives `AvgPool1d(stride)`, any other `AdaptiveAvgPool1d`, whose window i of m is
    floor(i n / m) .. ceil((i + 1) n / m) and may share a token with its neighbours.
    """
    count = pooled_length(length, stride)
    if float(stride).is_integer() and stride <= length:
        step = int(stride)
        return [i * step for i in range(count)], [(i + 1) * step for i in range(count)]
    first = [i * length // count for i in range(count)]
    return first, [-(-(i + 1) * length // count) for i in range(count)]


def membership(length: int, stride: float) -> Tensor:
    """[windows, length] bool, which tokens a window averages."""
    first, last = (torch.tensor(edges)[:, None] for edges in window_edges(length, stride))
    place = torch.arange(length)
    return (place >= first) & (place < last)


def average_windows(
    features: Tensor, sizes: Tensor, stride: float, grid: tuple[int, int] | None = None
) -> Reduction:
    """Average pooling of [G, n, D] by `stride` along the sequence, or by `stride` x `stride` over
    the `grid` (rows, columns) of n tokens.

    Source: LLaVolta (arXiv 2406.20092). A new token takes the place (and, where positions are kept,
    the position) of its window's middle token, the lower of two: the floor of the mean of the
    positions, as in the released code. Over a grid it is the middle of the middle row. Tokens that
    no window covers are dropped; one that two windows share is counted with the first.
    """
    n, device = features.shape[1], features.device
    lengths = (n,) if grid is None else grid
    parts = [membership(length, stride) for length in lengths]
    middles = [
        torch.tensor([(a + b - 1) // 2 for a, b in zip(*window_edges(length, stride), strict=True)])
        for length in lengths
    ]
    inside, source = parts[0], middles[0]
    if grid is not None:
        inside = (parts[0][:, None, :, None] & parts[1][None, :, None, :]).reshape(-1, n)
        source = (middles[0][:, None] * grid[1] + middles[1]).flatten()
    covered, owner = inside.any(0), inside.to(torch.uint8).argmax(0)
    target = torch.where(covered, owner, -1).to(device).expand(features.shape[0], -1)
    inside, source = inside.to(device), source.to(device).expand(features.shape[0], -1)

    values = wide(features)
    weight = inside.to(values.dtype)
    out = (weight @ values / weight.sum(1)[:, None]).to(features.dtype)
    counted = torch.where(target >= 0, sizes, 0)
    new_sizes = torch.zeros_like(source).scatter_add(1, target.clamp(min=0), counted)
    alone = inside.sum(1) == 1
    return Reduction(out, source, target.contiguous(), new_sizes, ~alone.expand_as(source))
