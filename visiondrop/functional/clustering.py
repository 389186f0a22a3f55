"""Clustering of visual tokens as pure tensor functions. G pictures of n tokens each."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from visiondrop.merging import Reduction, complement, gather
from visiondrop.scoring import wide

__all__ = ["after_cls", "cluster_and_merge", "spherical_kmeans"]


def spherical_kmeans(points: Tensor, centres: int, iterations: int) -> Tensor:
    """Cluster by cosine similarity, deterministically.

    Seeds are the points 0, s, 2s, ... with s = max(1, n // centres); a seed stays in its own
    cluster, so that none runs empty. Each iteration assigns every point to the nearest centre
    (the lower one of equals) and moves each centre to the direction of the mean of its points'
    unit vectors.

    Args:
        points: [G, n, D]; centres: c, at most n; iterations: assignments made, at least 1.

    Returns: [G, n] cluster of each point, 0..c-1.
    """
    groups, n, _ = points.shape
    unit = torch.nn.functional.normalize(wide(points), dim=-1)
    seeds = torch.arange(centres, device=points.device) * max(1, n // centres)
    centre = unit[:, seeds]
    assigned = torch.zeros(groups, n, dtype=torch.long, device=points.device)
    for _ in range(iterations):
        assigned = (unit @ centre.transpose(1, 2)).argmax(-1)
        assigned[:, seeds] = torch.arange(centres, device=points.device)
        one_hot = torch.nn.functional.one_hot(assigned, centres).to(unit.dtype)
        centre = torch.nn.functional.normalize(one_hot.transpose(1, 2) @ unit, dim=-1)
    return assigned


def cluster_and_merge(
    features: Tensor, sizes: Tensor, scores: Tensor, kept: Tensor, centres: int, iterations: int
) -> Reduction:
    """Keep the tokens `kept`; cluster the others and merge each cluster by its scores.

    A cluster becomes sum(score x feature) / sum(score) over its tokens and stands for its seed; the
    merged tokens follow the kept ones, in the order of their seeds.

    Args:
        features: [G, n, D]; sizes, scores (positive): [G, n]; kept: [G, k], rising.
        centres: clusters, at most n - k and at least 1; iterations: see `spherical_kmeans`.
    """
    n, k = features.shape[1], kept.shape[1]
    rest = complement(kept, n)
    seeds = rest[:, torch.arange(centres, device=rest.device) * max(1, (n - k) // centres)]
    assigned = spherical_kmeans(gather(features, rest), centres, iterations)
    weight = wide(gather(scores, rest)).clamp(min=torch.finfo(torch.float32).tiny)
    one_hot = torch.nn.functional.one_hot(assigned, centres).to(weight.dtype)
    weighted = (one_hot * weight[..., None]).transpose(1, 2)
    weighted = weighted / weighted.sum(-1, keepdim=True)
    merged = (weighted @ wide(gather(features, rest))).to(features.dtype)
    merged_size = torch.zeros_like(seeds).scatter_add_(1, assigned, gather(sizes, rest))

    target = torch.empty_like(sizes)
    target.scatter_(1, kept, torch.arange(k, device=kept.device).expand_as(kept))
    target.scatter_(1, rest, k + assigned)
    fresh = torch.arange(k + centres, device=kept.device) >= k
    return Reduction(
        torch.cat([gather(features, kept), merged], 1),
        torch.cat([kept, seeds], 1),
        target,
        torch.cat([gather(sizes, kept), merged_size], 1),
        fresh.expand(kept.shape[0], -1).clone(),
    )


def after_cls(reduction: Reduction, has_cls: bool) -> Reduction:
    """A reduction of patches as one of the patches and the CLS token before them, which is dropped
    where there is one.
    """
    if not has_cls:
        return reduction
    target = torch.nn.functional.pad(reduction.target, (1, 0), value=-1)
    return dataclasses.replace(reduction, source=reduction.source + 1, target=target)
