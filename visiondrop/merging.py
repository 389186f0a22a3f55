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
    if count == 1:
        return [reductions]
    whole = (getattr(reductions, f.name) for f in fields(Reduction))
    parts = zip(*([None] * count if t is None else t.split(1) for t in whole), strict=True)
    return [Reduction(*tensors) for tensors in parts]


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [G, k] of `tokens` [G, n, ...]."""
    if tokens.shape[0] == 1:  # of one picture whole rows are copied, 13 times as fast on a CPU
        return tokens.index_select(1, index[0])
    index = index.reshape(*index.shape, *(1,) * (tokens.dim() - 2))
    return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))


def complement(index: Tensor, n: int) -> Tensor:
    """The other n - k of the tokens 0..n-1, rising, for rising distinct `index` [G, k]."""
    taken = torch.zeros(index.shape[0], n, dtype=torch.uint8, device=index.device)
    taken.scatter_(1, index, 1)
    # A stable sort of the flags puts the free ones first without a host round trip.
    return taken.sort(dim=1, stable=True).indices[:, : n - index.shape[1]]


def assign(metric: Tensor, references: Tensor) -> Tensor:
    """The reference (0..c-1) with the highest cosine similarity for each token, [G, n].

    Args:
        metric: [G, n, d], for VisionDrop the keys averaged over heads.
        references: [G, c], indices into the n tokens.
    """
    metric = wide(metric)
    own = gather(metric, references)
    unit = own / torch.linalg.vector_norm(own, dim=-1, keepdim=True).clamp_min(1e-12)
    # Dividing by a token's own length would change no choice.
    return torch.bmm(metric, unit.transpose(1, 2)).argmax(-1)


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
    centre_size, extra_size = gather(sizes, references), gather(sizes, members)
    merged = fold(
        gather(features, references), gather(features, members), assigned, rule,
        centre_size, extra_size,
    )  # fmt: skip
    return merged, centre_size.scatter_add(1, assigned, extra_size)


def fold(
    centre: Tensor,
    extra: Tensor,
    assigned: Tensor,
    rule: MergeRule,
    centre_size: Tensor,
    extra_size: Tensor,
) -> Tensor:
    """The merged features [G, c, D] of `merge`, of references and members taken out already.

    Args:
        centre: [G, c, D]; extra: [G, m, D]; centre_size, extra_size: [G, c] and [G, m].
        assigned: [G, m], the reference of each of `extra`; those with -1 go nowhere.
    """
    dtype, centre, extra = centre.dtype, wide(centre), wide(extra)
    slots = torch.arange(centre.shape[1], device=centre.device)
    weight = (assigned[:, None] == slots[:, None]).to(extra.dtype)  # [G, c, m]
    if rule == "size-weighted":
        weight = weight * extra_size[:, None]
    count = weight.sum(-1, keepdim=True)
    if rule == "sum":
        merged = torch.baddbmm(centre, weight / count.clamp(min=1), extra)
    else:
        own = centre_size[..., None] if rule == "size-weighted" else 1
        merged = (centre * own + weight @ extra) / (count + own)
    return merged.to(dtype)


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
    references = rest[:, : contextual * step : step]
    source = torch.cat([dominant, references], 1)
    # What stays goes nowhere; so all tokens are folded as they lie, and members are never copied.
    assigned = assign(metric, references).scatter_(1, source, -1)
    out = gather(features, source)
    sizes_of = gather(sizes, references) if rule == "size-weighted" else sizes
    merged = fold(out[:, k:], features, assigned, rule, sizes_of, sizes)
    out = torch.cat([out[:, :k], merged], 1)
    slots = torch.arange(source.shape[1], device=source.device)
    slot, fresh = slots.expand_as(source), (slots >= k).expand_as(source)
    target = (assigned + k).scatter_(1, source, slot)
    if placement == "in_place":
        order = source.argsort(dim=1)
        source, out, fresh = gather(source, order), gather(out, order), gather(fresh, order)
        target = gather(order.argsort(dim=1), target)
    out_size = torch.zeros_like(source, dtype=sizes.dtype).scatter_add_(1, target, sizes)
    return Reduction(out, source, target, out_size, fresh)
