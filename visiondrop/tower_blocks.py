"""A vision tower whose tokens are merged between its blocks.

Attention gets the logarithm of each token's size added, so that a merged token weighs as much as
the tokens that it stands for (proportional attention, ToMe, arXiv 2210.09461, equation 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visiondrop.adapters.base import TowerOutput, capture_projection, tower_heads
from visiondrop.merging import Reduction
from visiondrop.views import TowerBlockView

__all__ = ["MergedTower", "run_merging_vit"]


@dataclass
class MergedTower:
    """Outcome of a merging tower for B pictures of T tokens, T' of which are left.

    Attributes:
        output: features [B, T', D] and the last block's projections (of the tokens before its own
            merge).
        source: [B, T'], the original token that each remaining one is named by.
        target: [B, T], the remaining token that each original one went into, -1 if dropped.
        sizes: [B, T'], original tokens that each stands for.
    """

    output: TowerOutput
    source: Tensor
    target: Tensor
    sizes: Tensor


def run_merging_vit(
    tower: Any,
    pixel_values: Tensor,
    num_layers: int,
    has_cls: bool,
    block: Callable[[TowerBlockView], Reduction | None],
) -> MergedTower:
    """Run the first `num_layers` layers of a CLIP or SigLIP tower, merging in each.

    Args:
        pixel_values: [B, 3, h, w].
        block: called between attention and MLP of every layer; None merges nothing there.
    """
    hidden = tower.embeddings(pixel_values)
    if hasattr(tower, "pre_layrnorm"):
        hidden = tower.pre_layrnorm(hidden)
    batch, count = hidden.shape[:2]
    source = torch.arange(count, device=hidden.device).expand(batch, -1)
    target, sizes, bias = source, torch.ones_like(source), None
    store: dict[str, Tensor] = {}
    for index, layer in enumerate(tower.encoder.layers[:num_layers]):
        attention = layer.self_attn
        handles = [
            capture_projection(attention.q_proj, store, "query"),
            capture_projection(attention.k_proj, store, "key"),
        ]
        try:
            attended = attention(layer.layer_norm1(hidden), attention_mask=bias)[0]
        finally:
            for handle in handles:
                handle.remove()
        hidden = hidden + attended
        query, key = tower_heads(attention, store["query"], store["key"])
        reduction = block(TowerBlockView(index, num_layers, hidden, key, sizes, has_cls))
        if reduction is not None:
            hidden, sizes = reduction.features.to(hidden.dtype), reduction.sizes
            source = source.gather(1, reduction.source)
            went = reduction.target.gather(1, target.clamp(min=0))
            target = torch.where(target < 0, target, went)
            bias = sizes.to(hidden.dtype).log()[:, None, None].expand(-1, 1, hidden.shape[1], -1)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    output = TowerOutput(hidden, query, key, float(attention.scale))
    return MergedTower(output, source, target, sizes)
