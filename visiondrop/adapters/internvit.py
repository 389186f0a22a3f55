"""InternViT, the vision tower of InternVL, run up to the layer that is read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visiondrop.adapters.base import TowerOutput, capture_projection
from visiondrop.parallel import all_heads

__all__ = ["run_internvit"]


def run_internvit(
    tower: Any, pixel_values: Tensor, num_layers: int, last_norm: bool
) -> TowerOutput:
    """Run the first `num_layers` layers, keeping the last one's queries and keys.

    Args:
        pixel_values: [B, 3, h, w].
        last_norm: whether the tower's own norm comes behind (an identity in most checkpoints).
    """
    hidden = tower.embeddings(pixel_values)
    layers = tower.encoder.layer[:num_layers]
    for layer in layers[:-1]:
        hidden = layer(hidden)
    attention = layers[-1].attention
    store: dict[str, Tensor] = {}
    # Behind the norms of queries and keys, which are identities in most checkpoints.
    handles = [
        capture_projection(attention.q_norm, store, "query"),
        capture_projection(attention.k_norm, store, "key"),
    ]
    try:
        hidden = layers[-1](hidden)
    finally:
        for handle in handles:
            handle.remove()
    if last_norm:
        hidden = tower.layernorm(hidden)
    sizes = attention.num_heads, attention.head_dim
    query = all_heads(attention.q_proj, store["query"], *sizes)
    key = all_heads(attention.k_proj, store["key"], *sizes)
    return TowerOutput(hidden, query, key, float(attention.scale))
