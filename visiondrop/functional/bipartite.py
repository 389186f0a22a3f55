"""Bipartite matching: tokens split alternately in two sets, the first compared with the second.

Source: ToMe (arXiv 2210.09461) merges the most similar pairs; VisPruner (arXiv 2412.01818) drops
their first halves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visiondrop.merging import Placement, Reduction, gather
from visiondrop.scoring import wide

__all__ = ["best_pairs", "drop_duplicates", "even_merges", "merge_pairs", "most_merges"]


def best_pairs(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Rank the tokens of set a by how much they resemble their best partner in set b.

    Args:
        similarity: [G, a, b].

    Returns: order [G, a], places in a, most similar first (the earlier among equals); partner
    [G, a], for each place in a its best one in b.
    """
    best = similarity.max(-1)
    return best.values.sort(dim=-1, descending=True, stable=True).indices, best.indices


def merge_pairs(
    features: Tensor,
    sizes: Tensor,
    metric: Tensor,
    merges: int,
    *,
    protected: int = 0,
    placement: Placement = "appended",
) -> Reduction:
    """One step of ToMe: the `merges` most similar pairs become their size-weighted means.

    Tokens at even places form set a, those at odd places set b. The tokens of a are ranked by the
    cosine to their best partner in b; the first `merges` of them go into that partner, which keeps
    its identity. Several may go into the same one.

    Args:
        features: [G, T, D]; sizes: [G, T], patches that each token stands for; metric: [G, T, d],
            for ToMe the keys averaged over heads.
        merges: how many; at most `most_merges` of the tokens that are not protected.
        protected: how many leading tokens (CLS) are never merged and never merged into; 0 or 1.
        placement: "appended" puts set b behind what is left of set a (released); "in_place" keeps
            every token where it stood.
    """
    count = features.shape[1]
    if protected not in (0, 1):
        raise ValueError(f"protected={protected}: token 0 alone can be protected, as CLS is")
    if merges > most_merges(count - protected):
        raise ValueError(
            f"{merges} pairs to be merged where {count} tokens ({protected} protected) make "
            f"{most_merges(count - protected)} at most"
        )
    unit = torch.nn.functional.normalize(wide(metric), dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    if protected:
        similarity[:, 0] = float("-inf")
    order, partner = best_pairs(similarity)
    gone, stay = order[:, :merges], order[:, merges:].sort(dim=1).values

    device = features.device
    set_b = torch.arange(1, count, 2, device=device).expand(features.shape[0], -1)
    source = torch.cat([2 * stay, set_b], 1)
    if placement == "in_place":
        source = source.sort(dim=1).values
    slots = torch.arange(source.shape[1], device=device).expand_as(source)
    target = torch.zeros(features.shape[0], count, dtype=torch.long, device=device)
    target.scatter_(1, source, slots)
    target.scatter_(1, 2 * gone, target.gather(1, 2 * partner.gather(1, gone) + 1))

    out_size = torch.zeros_like(source, dtype=sizes.dtype).scatter_add_(1, target, sizes)
    plain, own_size = gather(features, source), sizes.gather(1, source)
    total = wide(plain) * own_size[..., None]
    moved = wide(gather(features, 2 * gone)) * sizes.gather(1, 2 * gone)[..., None]
    total.scatter_add_(1, target.gather(1, 2 * gone)[..., None].expand_as(moved), moved)
    joined = out_size != own_size
    mean = (total / out_size[..., None]).to(features.dtype)
    # What nothing was merged into stays bit for bit.
    out = torch.where(joined[..., None], mean, plain)
    return Reduction(out, source, target, out_size, joined)


def most_merges(tokens: int) -> int:
    """Pairs that `tokens` unprotected tokens can make in one step."""
    return tokens // 2


def even_merges(before: int, after: int, steps: int) -> list[int]:
    """Merges per step that lead from `before` tokens to `after`, as even as halving allows.

    A step merges half of its tokens at the very most, so late steps may have to do less; what they
    leave is shared by the others.

    Raises `ValueError` where even halving at every step does not get there.
    """
    if not 1 <= after <= before:
        raise ValueError(f"{after} tokens cannot be merged out of {before}; give 1 to {before}")
    out, here, left = [], after, before - after
    for step in range(steps, 0, -1):
        # m merges need as many tokens to remain: going backwards, at most what is here.
        merges = min(here, left // step if step > 1 else left)
        out.append(merges)
        here, left = here + merges, left - merges
    if left:
        least = before
        for _ in range(steps):
            least -= most_merges(least)
        raise ValueError(
            f"{steps} steps of merging cannot bring {before} tokens down to {after}: a step halves "
            f"them at most, so {least} are the least"
        )
    return out[::-1]


def drop_duplicates(features: Tensor, order: Tensor, keep: int, step: int = 8) -> Tensor:
    """VisPruner's removal of duplicates, round by round, until `keep` tokens are left.

    In each round the tokens at even places of the present order are compared with those at odd
    places; the `step` with the most similar partner are dropped. The next order is: what is left of
    the even ones, most similar first, then the odd ones in their old order.

    Args:
        features: [G, n, D].
        order: [G, R], tokens in their present order, indices into the n.
        keep: how many of the R stay.

    Returns: [G, keep], in the final order.
    """
    if keep == 0:
        return order[:, :0]
    n = features.shape[1]
    # The order within a round decides who meets whom in the next, so that one swap of two nearly
    # equal similarities changes all that follows: they are computed in float64 whatever the model.
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    similarity = (unit @ unit.transpose(1, 2)).flatten(1)
    while (left := order.shape[1]) > keep:
        even, odd = order[:, ::2], order[:, 1::2]
        pairs = similarity.gather(1, (even[:, :, None] * n + odd[:, None]).flatten(1))
        ranked, _ = best_pairs(pairs.view(*even.shape, odd.shape[1]))
        gone = min(step, left - keep, even.shape[1])
        order = torch.cat([even.gather(1, ranked[:, gone:]), odd], 1)
    return order
