"""Density-peak clustering of tokens by their nearest neighbours (DPC-kNN), on G pictures at once.

Source: Du et al. 2016 (DPC-KNN); as in SparseVLM's token recycling (arXiv 2410.04417), released
code.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from visiondrop.merging import Reduction, gather
from visiondrop.scoring import wide

__all__ = ["dpc_knn", "golden_ratio_noise", "merge_clusters", "recycle", "seeded_noise"]

NOISE = 1e-6
"""Weight of the noise that breaks ties of density."""
GOLDEN_RATIO = 0.6180339887498949


def golden_ratio_noise(n: int, device: torch.device | None = None) -> Tensor:
    """[n] in [0, 1): the fractional parts of 0, g, 2g, ... with the golden ratio g = 0.618..."""
    return (torch.arange(n, device=device, dtype=torch.float64) * GOLDEN_RATIO) % 1.0


def seeded_noise(n: int, seeds: list[str], device: torch.device | None = None) -> Tensor:
    """[G, n] uniform in [0, 1), a row from each of G seeds; the same on every device."""
    rows = []
    for seed in seeds:
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
        rows.append(torch.rand(n, generator=torch.Generator().manual_seed(number)))
    return torch.stack(rows).to(device)


def dpc_knn(tokens: Tensor, clusters: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cluster centres and every token's cluster.

    With distances |x_i - x_j| / sqrt(D): density_i = exp(-mean of the squared distances to the
    `clusters` nearest tokens, i itself among them) + 1e-6 noise_i; delta_i = distance to the
    nearest token of strictly higher density, or the largest distance of all where there is none;
    the centres are the `clusters` tokens with the highest density_i delta_i.

    Args:
        tokens: [G, n, D].
        clusters: c, 1 to n.
        noise: [G, n] or [n] in [0, 1], breaks ties of density; None for none. Mutual nearest
            neighbours tie exactly where c = 2.

    Returns: centres [G, c], tokens by falling density x delta; assigned [G, n] in 0..c-1: the
        nearest centre (the first of equals), centres their own.

    Raises `ValueError` on more clusters than tokens.
    """
    groups, n, width = tokens.shape
    if not 1 <= clusters <= n:
        raise ValueError(f"{clusters} clusters asked for where {n} tokens are; 1 to {n} can be")
    x = wide(tokens)
    # Not by matrix products: those leave a rounding error on the diagonal and break symmetry.
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / width**0.5
    nearest = distance.topk(clusters, dim=-1, largest=False).values
    density = (-nearest.square().mean(-1)).exp()
    if noise is not None:
        density = density + NOISE * noise.to(density)
    denser = density[:, None, :] > density[:, :, None]
    farthest = distance.amax((1, 2), keepdim=True)
    delta = torch.where(denser, distance, farthest).amin(-1)
    # Not a stable sort: without noise, exact ties fall as they do in the released code.
    centres = (density * delta).topk(clusters, dim=-1).indices
    to_centres = distance.gather(1, centres[..., None].expand(-1, -1, n))
    assigned = to_centres.argmin(1)
    own = torch.arange(clusters, device=tokens.device).expand(groups, -1)
    return centres, assigned.scatter(1, centres, own)


def merge_clusters(tokens: Tensor, assigned: Tensor, clusters: int) -> Tensor:
    """Plain mean of each cluster's tokens, sum / (count + 1e-6) as released: [G, c, D].

    Args:
        tokens: [G, n, D]; assigned: [G, n] in 0..c-1.
    """
    x = wide(tokens)
    member = torch.nn.functional.one_hot(assigned, clusters).to(x.dtype).transpose(1, 2)
    return ((member @ x) / (member.sum(-1, keepdim=True) + 1e-6)).to(tokens.dtype)


def recycle(
    features: Tensor,
    sizes: Tensor,
    ranked: Tensor,
    kept: int,
    candidates: int,
    clusters: int,
    noise: Tensor | None = None,
) -> Reduction:
    """Keep the best tokens in their order; cluster the next best and put the clusters' means
    behind, in the order of their centres; drop the rest.

    Args:
        features: [G, n, D]; sizes: [G, n].
        ranked: [G, n], tokens from the best to the worst.
        kept, candidates: how many tokens are kept, how many after them are clustered.
        noise: see `dpc_knn`, over the candidates from the best to the worst.

    Returns: a reduction to kept + clusters tokens; a merged one takes its centre's place.
    """
    groups, n = ranked.shape
    rising = ranked[:, :kept].sort(dim=-1).values
    pool = ranked[:, kept : kept + candidates]
    tokens = gather(features, pool)
    centres, assigned = dpc_knn(tokens, clusters, noise)
    merged_sizes = sizes.new_zeros(groups, clusters)
    merged_sizes = merged_sizes.scatter_add(1, assigned, gather(sizes, pool))
    slot = torch.arange(kept, device=pool.device).expand(groups, -1)
    target = torch.full((groups, n), -1, dtype=torch.long, device=pool.device)
    is_merged = torch.arange(kept + clusters, device=pool.device) >= kept
    return Reduction(
        torch.cat([gather(features, rising), merge_clusters(tokens, assigned, clusters)], 1),
        torch.cat([rising, gather(pool, centres)], 1),
        target.scatter(1, rising, slot).scatter(1, pool, kept + assigned),
        torch.cat([gather(sizes, rising), merged_sizes], 1),
        is_merged.expand(groups, -1),
    )
