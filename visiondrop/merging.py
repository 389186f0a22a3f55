"""Contextual merging as pure tensor functions: which token goes into which, and what comes out.

`Reduction` is what every method returns for a group of pictures that hold equally many visual
tokens: the new tokens and, as provenance, where each old token went.

Source: VisionDrop, "Contextual merging" (as in VisionZip, arXiv 2412.04467), released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from visiondrop.scoring import wide

__all__ = [
    "MergeRule",
    "Placement",
    "Reduction",
    "assign",
    "complement",
    "concatenate",
    "gather",
    "keep_all",
    "keep_only",
    "merge",
    "per_picture",
    "reduce_tokens",
]

MergeRule = Literal["sum", "mean", "size-weighted"]
Placement = Literal["appended", "in_place"]


@dataclass
class Reduction:
    """Outcome of one stage for G pictures of n tokens each, reduced to m tokens.

    Attributes:
        features: [G, m, D], the new tokens in their order.
        source: [G, m], the old token whose place and identity each new token takes.
        target: [G, n], the new token (0..m-1) that each old token became or went into, -1 if
            dropped.
        sizes: [G, m], how many patches each new token stands for (dropped ones are not counted).
        contextual: [G, m], true where the new token is a contextual (merged) one.
        score: [G, m], a value that travels with each token to the later stages; None without one.
    """

    features: Tensor
    source: Tensor
    target: Tensor
    sizes: Tensor
    contextual: Tensor
    score: Tensor | None = None


def per_picture(
    reductions: Reduction | list[Reduction | None] | None, count: int
) -> list[Reduction | None]:
    """What a stage returned for `count` pictures, one by one (G = 1 each)."""
    if reductions is None:
        return [None] * count
    if isinstance(reductions, list):
        if len(reductions) != count:
            raise ValueError(f"{len(reductions)} reductions for {count} pictures: give one each")
        return reductions
    whole = (getattr(reductions, f.name) for f in fields(Reduction))
    parts = zip(*([None] * count if t is None else t.split(1) for t in whole), strict=True)
    return [Reduction(*tensors) for tensors in parts]


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [G, k] of `tokens` [G, n, ...]."""
    index = index.reshape(*index.shape, *(1,) * (tokens.dim() - 2))
    return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))


def complement(index: Tensor, n: int) -> Tensor:
    """The other n - k of the tokens 0..n-1, rising, for rising distinct `index` [G, k]."""
    taken = torch.zeros(index.shape[0], n, dtype=torch.bool, device=index.device)
    taken.scatter_(1, index, True)
    # A stable sort of the flags puts the free ones first without a host round trip.
    return taken.to(torch.uint8).sort(dim=1, stable=True).indices[:, : n - index.shape[1]]


def assign(metric: Tensor, references: Tensor, members: Tensor) -> Tensor:
    """The reference (0..c-1) with the highest cosine similarity for each member, [G, m].

    Args:
        metric: [G, n, d], for VisionDrop the keys averaged over heads.
        references: [G, c] and members: [G, m], indices into the n tokens.
    """
    unit = torch.nn.functional.normalize(wide(metric), dim=-1)
    return (gather(unit, members) @ gather(unit, references).transpose(1, 2)).argmax(-1)


def merge(
    features: Tensor,
    sizes: Tensor,
    references: Tensor,
    members: Tensor,
    assigned: Tensor,
    rule: MergeRule = "sum",
) -> tuple[Tensor, Tensor]:
    """Fold members into their references.

    "sum" (released): reference + mean(members); "mean": plain mean of reference and members;
    "size-weighted": mean weighted by how many patches each token stands for already. A reference
    without members stays as it is.

    Args:
        features: [G, n, D]; sizes: [G, n]; references [G, c]; members, assigned: [G, m].

    Returns: merged features [G, c, D] and their sizes [G, c].
    """
    c = references.shape[1]
    centre, extra = gather(features, references), gather(features, members)
    centre_size, extra_size = gather(sizes, references), gather(sizes, members)
    out_size = centre_size.scatter_add(1, assigned, extra_size)
    weight = extra_size if rule == "size-weighted" else torch.ones_like(extra_size)
    centre, extra = wide(centre), wide(extra)
    one_hot = torch.nn.functional.one_hot(assigned, c).to(extra.dtype) * weight[..., None]
    total = one_hot.transpose(1, 2) @ extra
    count = one_hot.sum(1)[..., None]
    if rule == "sum":
        merged = centre + total / count.clamp(min=1)
    else:
        own = centre_size[..., None] if rule == "size-weighted" else 1
        merged = (centre * own + total) / (count + own)
    return merged.to(features.dtype), out_size


def keep_only(features: Tensor, sizes: Tensor, kept: Tensor) -> Reduction:
    """Drop all but the tokens `kept` [G, k] (rising)."""
    n = features.shape[1]
    target = torch.full((kept.shape[0], n), -1, dtype=torch.long, device=kept.device)
    slots = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    target.scatter_(1, kept, slots)
    plain = torch.zeros_like(kept, dtype=torch.bool)
    return Reduction(gather(features, kept), kept, target, gather(sizes, kept), plain)


def keep_all(features: Tensor, sizes: Tensor) -> Reduction:
    """All tokens [G, n, D] as they are."""
    places = torch.arange(features.shape[1], device=features.device).expand_as(sizes)
    return Reduction(features, places, places, sizes, torch.zeros_like(places, dtype=torch.bool))


def concatenate(parts: Sequence[Reduction]) -> Reduction:
    """One reduction (G = 1) of several runs of tokens that stand one behind the other."""
    sources, targets, came, went = [], [], 0, 0
    for part in parts:
        sources.append(part.source + came)
        targets.append(torch.where(part.target < 0, -1, part.target + went))
        came, went = came + part.target.shape[1], went + part.source.shape[1]
    scores = [part.score for part in parts]
    return Reduction(
        torch.cat([part.features for part in parts], 1),
        torch.cat(sources, 1),
        torch.cat(targets, 1),
        torch.cat([part.sizes for part in parts], 1),
        torch.cat([part.contextual for part in parts], 1),
        None if any(score is None for score in scores) else torch.cat(scores, 1),  # type: ignore[arg-type]
    )


def reduce_tokens(
    features: Tensor,
    sizes: Tensor,
    metric: Tensor,
    dominant: Tensor,
    contextual: int,
    *,
    rule: MergeRule = "sum",
    placement: Placement = "appended",
) -> Reduction:
    """Keep the dominant tokens, fold the rest into `contextual` ones.

    The rest is taken in its order; references are its members 0, s, 2s, ... with
    s = max(1, rest // contextual), the first `contextual` of these; every other one goes to the
    reference with the most similar metric.

    Args:
        features: [G, n, D]; sizes: [G, n]; metric: [G, n, d]; dominant: [G, k], rising.
        contextual: how many contextual tokens, at most n - k; 0 drops the rest.
        placement: "appended" puts the contextual tokens behind the dominant ones in reference order
            (released); "in_place" puts each where its reference stood.
    """
    if contextual == 0:
        return keep_only(features, sizes, dominant)
    n, k = features.shape[1], dominant.shape[1]
    rest = complement(dominant, n)
    if contextual > rest.shape[1]:
        raise ValueError(
            f"{contextual} contextual tokens asked for where {rest.shape[1]} tokens remain beside "
            f"{k} dominant ones of {n}"
        )
    step = max(1, rest.shape[1] // contextual)
    centre_places = torch.arange(contextual, device=rest.device) * step
    references = rest[:, centre_places]
    is_member = torch.ones(rest.shape[1], dtype=torch.bool)
    is_member[torch.arange(contextual) * step] = False
    members = rest[:, is_member.nonzero().squeeze(1).to(rest.device)]
    assigned = assign(metric, references, members)
    merged, merged_size = merge(features, sizes, references, members, assigned, rule)

    source = torch.cat([dominant, references], 1)
    slot = torch.arange(source.shape[1], device=source.device).expand_as(source)
    out = torch.cat([gather(features, dominant), merged], 1)
    out_size = torch.cat([gather(sizes, dominant), merged_size], 1)
    fresh = torch.zeros_like(source, dtype=torch.bool)
    fresh[:, k:] = True
    if placement == "in_place":
        order = source.argsort(dim=1)
        source, out, out_size = gather(source, order), gather(out, order), gather(out_size, order)
        fresh = gather(fresh, order)
        slot = order.argsort(dim=1)
    target = torch.empty(source.shape[0], n, dtype=torch.long, device=source.device)
    target.scatter_(1, torch.cat([dominant, references], 1), slot)
    target.scatter_(1, members, gather(slot, k + assigned))
    return Reduction(out, source, target, out_size, fresh)
