"""Importance of visual tokens as pure tensor functions.

No attention map of a layer is ever formed: what is needed of it (one row, or the mean of some rows)
is computed from queries and keys, in chunks. Softmax runs in float32 whatever the inputs are.

Shapes: G pictures, H query heads, n visual tokens, N keys, d head size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from visiondrop.kernels import CALLS, column_sums_usable

__all__ = [
    "CausalCorrection",
    "attention_row",
    "cls_logits",
    "column_mean",
    "expand_heads",
    "outlier_shares",
    "top_tokens",
    "uniform_column_mean",
    "wide",
]

CausalCorrection = Literal["off", "expectation", "no_mask", "visible"]

CHUNK_ELEMENTS = 1 << 24
"""Logits formed at a time (64 MB in float32)."""


def wide(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it is already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def expand_heads(key: Tensor, num_heads: int) -> Tensor:
    """Keys [G, H_kv, N, d] of grouped-query attention as seen by the query heads, [G, H, N, d]."""
    groups = num_heads // key.shape[1]
    return key if groups == 1 else key.repeat_interleave(groups, dim=1)


def attention_row(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention of one query to all keys, summed over heads.

    VisionDrop, encoder stage: the CLS query over all 577 keys.

    Args:
        query: [G, H, d], the one query of each picture.
        key: [G, H, N, d].
        scale: 1 / sqrt(d).

    Returns: [G, N] in float32; every row sums to H.
    """
    logits = wide(query[:, :, None] @ key.transpose(-1, -2))[:, :, 0] * scale
    return logits.softmax(-1).sum(1)


def cls_logits(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention logits of CLS to each patch, before the softmax, mean over heads.

    GlobalCom2's score; may be negative.

    Args:
        query, key: [G, H, 1 + n, d], CLS first; scale: 1 / sqrt(d).

    Returns: [G, n] in float32.
    """
    return (wide(torch.einsum("ghd,ghnd->ghn", query[:, :, 0], key[:, :, 1:])) * scale).mean(1)


def column_mean(
    query: Tensor,
    key: Tensor,
    scale: float,
    *,
    causal: bool = True,
    correction: CausalCorrection = "off",
    places: Tensor | None = None,
) -> Tensor:
    """How much the visual queries attend to each visual token: mean over heads and visual queries.

    VisionDrop, LLM stage: softmax(Q K^T / sqrt(d)) of the visual rows over all keys that precede
    the end of the picture (causality hides the rest), no renormalising, visual columns only.

    Args:
        query: [G, H, n, d], queries of the n visual tokens, which are the last n of the keys.
        key: [G, H_kv, N, d] with N >= n and H a multiple of H_kv; the keys up to the picture's end.
        scale: 1 / sqrt(d).
        causal: whether query i may only see keys up to its own (decoders) or all N (encoders).
        correction: what to do about causality, which hides later tokens from earlier queries, so
            that a column's mean falls with its place even where attention is uniform.
            "off": nothing (as released); "expectation": divide each column by its mean under
            uniform attention; "no_mask": score without the mask (the text after the picture stays
            unseen); "visible": divide by the number of queries that can see the column, instead of
            by n.
        places: [n], rising, where the visual tokens stand among the keys, if other tokens (the
            newlines of any-resolution pictures) stand between them; None: they are the last n.

    Returns: [G, n] in float32.
    """
    n, total = query.shape[2], key.shape[2]
    if total < n:
        raise ValueError(
            f"{n} visual queries but only {total} keys: the keys must include their own"
        )
    masked = causal and correction != "no_mask"
    if column_sums_usable(query):
        from visiondrop.kernels.column_sums import column_sums

        CALLS["column_mean:triton"] += 1
        at = places
        if at is None:
            at = torch.arange(total - n, total, device=query.device)
        columns = column_sums(query, key, scale, at, masked)
    else:
        CALLS["column_mean:chunks"] += 1
        if places is None:
            columns = chunked_column_sums(query, key, scale, masked)
        else:
            columns = scattered_column_sums(query, key, scale, masked, places)
    if correction == "visible" and masked:
        return columns / torch.arange(n, 0, -1, device=query.device)
    columns = columns / n
    if correction == "expectation" and masked:
        columns = columns / uniform_column_mean(n, total - n, query.device, places)
    return columns


def chunked_column_sums(query: Tensor, key: Tensor, scale: float, masked: bool) -> Tensor:
    """[G, n], attention to each of the last n keys, summed over the n queries, mean over heads.

    Arguments as for `column_mean`.
    """
    groups, heads, n, _ = query.shape
    total, device = key.shape[2], query.device
    key_t = expand_heads(key, heads).flatten(0, 1).transpose(-1, -2)
    start = total - n
    columns = torch.zeros(
        groups, n, device=device, dtype=torch.promote_types(query.dtype, torch.float32)
    )
    chunk = max(1, CHUNK_ELEMENTS // max(1, groups * heads * total))
    for first in range(0, n, chunk):
        rows = query[:, :, first : first + chunk].flatten(0, 1)
        # One product that scales and masks as it goes: passes over the logits are what costs.
        later, beta = rows.new_empty(1), 0
        if masked:
            later, beta = rows.new_full((rows.shape[1], total), float("-inf")), 1
            later.triu_(start + first + 1)
        logits = wide(torch.baddbmm(later, rows, key_t, beta=beta, alpha=scale))
        seen = logits.softmax(-1)[..., start:]
        columns += seen.view(groups, heads, -1, n).sum((1, 2))
    return columns / heads


def scattered_column_sums(
    query: Tensor, key: Tensor, scale: float, masked: bool, places: Tensor
) -> Tensor:
    """The same of visual tokens that stand at `places` [n] among the N keys."""
    groups, heads, n, _ = query.shape
    total, device = key.shape[2], query.device
    key_t = expand_heads(key, heads).transpose(-1, -2)
    order = torch.arange(total, device=device)
    columns = torch.zeros(groups, n, device=device, dtype=wide(query[:0]).dtype)
    chunk = max(1, CHUNK_ELEMENTS // max(1, groups * heads * total))
    for first in range(0, n, chunk):
        rows = slice(first, first + chunk)
        logits = wide(query[:, :, rows] @ key_t) * scale
        if masked:
            logits = logits.masked_fill(order > places[rows, None], float("-inf"))
        columns += logits.softmax(-1)[..., places].sum((1, 2))
    return columns / heads


def uniform_column_mean(
    n: int, start: int, device: torch.device | None = None, places: Tensor | None = None
) -> Tensor:
    """The column mean of n visual tokens after `start` others if every query spread its attention
    evenly.

    Column j is seen by queries i >= j, and query i spreads over start + i + 1 keys, or over one
    more than stand before its place where `places` [n] are given:
    (1/n) sum_{i>=j} 1 / (start + i + 1). Returns [n] in float32.
    """
    if places is None:
        places = torch.arange(start, start + n, device=device)
    share = 1.0 / (places + 1).double()
    return (share.flip(0).cumsum(0).flip(0) / n).float()


def top_tokens(scores: Tensor, k: int) -> Tensor:
    """Indices [G, k] of the k highest scores [G, n], rising; among equals the earlier token
    wins.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=-1).values


def outlier_shares(scores: Tensor) -> list[float]:
    """Share of each row of `scores` [G, n] above Q3 + 1.5 (Q3 - Q1), percentiles interpolated
    linearly; read back from the device once.
    """
    bounds = torch.tensor([0.25, 0.75], dtype=scores.dtype, device=scores.device)
    low, high = scores.quantile(bounds, dim=1)
    above = scores > (high + 1.5 * (high - low))[:, None]
    return [count / scores.shape[1] for count in above.sum(1).tolist()]
