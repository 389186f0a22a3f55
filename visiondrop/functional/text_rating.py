"""Visual tokens rated by the prompt's text, as pure tensor functions.

Shapes: G pictures, H query heads, a text tokens after the picture, n visual tokens, N tokens in
the row, d head size. Source: SparseVLM (arXiv 2410.04417), released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visiondrop.scoring import wide

__all__ = ["position_bias", "rated_by_heads", "rated_by_text", "text_raters"]


def text_raters(visual: Tensor, text: Tensor) -> Tensor:
    """Which text tokens judge: those that the picture points at more than at the average one.

    softmax over the text of V T^T (plain dot products of LLM input embeddings), averaged over the
    visual tokens; raters are strictly above the mean. Where none is (all alike), all judge.

    Args:
        visual: [G, n, D]; text: [G, a, D].

    Returns: [G, a] bool.
    """
    relevance = (wide(visual) @ wide(text).transpose(1, 2)).softmax(-1).mean(1)
    above = relevance > relevance.mean(-1, keepdim=True)
    return above | ~above.any(-1, keepdim=True)


def rated_by_text(attention: Tensor, raters: Tensor) -> Tensor:
    """Attention of the raters to each visual token, mean over heads and raters: [G, n].

    Args:
        attention: [G, H, a, n], rows of all text tokens; raters: [G, a] bool.
    """
    return _mean_over_raters(attention, raters).mean(1)


def rated_by_heads(attention: Tensor, raters: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """As `rated_by_text`, but averaged over the `heads` heads alone that look at the picture most.

    Returns: scores [G, n]; the heads chosen [G, heads], by falling total.
    """
    by_head = _mean_over_raters(attention, raters)
    chosen = by_head.sum(-1).sort(dim=-1, descending=True, stable=True).indices[:, :heads]
    index = chosen[..., None].expand(-1, -1, by_head.shape[-1])
    return by_head.gather(1, index).mean(1), chosen


def _mean_over_raters(attention: Tensor, raters: Tensor) -> Tensor:
    """[G, H, n]; raters differ in number by picture, so they are weights and not indices."""
    weight = raters.to(attention.dtype)
    weight = weight / weight.sum(-1, keepdim=True)
    return torch.einsum("ghan,ga->ghn", attention, weight)


def position_bias(
    cos: Tensor, sin: Tensor, query: slice | Tensor, key: slice | Tensor, scale: float
) -> Tensor:
    """What rotary positions alone do to a logit: that of a query and a key of ones.

    g(i, j) = scale (R_i 1) . (R_j 1) = 2 scale sum_m cos((p_i - p_j) theta_m); may be negative.

    Args:
        cos, sin: [G, N, d] of the row; query, key: places in it; scale: 1 / sqrt(d).

    Returns: [G, queries, keys].
    """
    # R 1 = cos + rotate_half(1) sin has the components cos - sin and cos + sin; in the products'
    # sum the mixed terms cancel.
    cos, sin = wide(cos), wide(sin)
    product = cos[:, query] @ cos[:, key].transpose(1, 2)
    return (product + sin[:, query] @ sin[:, key].transpose(1, 2)) * scale
