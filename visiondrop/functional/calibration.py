"""Attention as judged by the tokens that attract it: VFlowOpt's calibrated attention."""

from __future__ import annotations

from torch import Tensor

from visiondrop.scoring import CHUNK_ELEMENTS, column_mean, expand_heads, wide

__all__ = ["calibrated_attention", "calibrating_tokens"]


def calibrating_tokens(received: Tensor, threshold: float) -> Tensor:
    """[G, T] bool: tokens that receive more than `threshold` times the mean attention, and always
    the one that receives most.

    Args:
        received: [G, T], mean over heads and queries of the attention to each token.
    """
    above = received > threshold * received.mean(-1, keepdim=True)
    return above.scatter(1, received.argmax(-1, keepdim=True), True)


def calibrated_attention(query: Tensor, key: Tensor, scale: float, threshold: float) -> Tensor:
    """How much the calibrating tokens attend to each token: mean over heads and those tokens.

    With threshold 0 every token calibrates, and this is the plain column mean.

    Args:
        query, key: [G, H, T, d] of one encoder layer (every query sees every key).

    Returns: [G, T] in float32; every row sums to 1.
    """
    judges = calibrating_tokens(column_mean(query, key, scale, causal=False), threshold)
    groups, heads, total, _ = query.shape
    key_t = expand_heads(key, heads).transpose(-1, -2)
    out = judges.new_zeros(groups, total, dtype=wide(query[:0]).dtype)
    chunk = max(1, CHUNK_ELEMENTS // max(1, groups * heads * total))
    for first in range(0, total, chunk):
        rows = wide(query[:, :, first : first + chunk] @ key_t) * scale
        weight = judges[:, None, first : first + chunk].to(out.dtype)
        out += (weight @ rows.softmax(-1).mean(1))[:, 0]
    return out / judges.sum(-1, keepdim=True)
