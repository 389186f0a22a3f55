"""InternViT, the vision tower of InternVL, run up to the layer that is read."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from visiondrop.adapters.base import TowerOutput, capture_projection
from visiondrop.engine.engine import Engine
from visiondrop.engine.tower import run_tower
from visiondrop.parallel import all_heads

__all__ = ["run_internvit"]


def run_internvit(
    tower: Any,
    pixel_values: Tensor,
    num_layers: int,
    last_norm: bool,
    engine: Engine | None = None,
) -> TowerOutput:
    """Run the first `num_layers` layers, keeping the last one's queries and keys.

    Args:
        pixel_values: [B, 3, h, w].
        last_norm: whether the tower's own norm comes behind (an identity in most checkpoints).
        engine: what records the tower, None for nothing.
    """
    function = functools.partial(internvit_outputs, tower, num_layers, last_norm)
    outputs = run_tower(engine, function, tower, pixel_values, (num_layers, last_norm))
    return TowerOutput(*outputs, float(tower.encoder.layer[num_layers - 1].attention.scale))


def internvit_outputs(
    tower: Any, num_layers: int, last_norm: bool, pixel_values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `run_internvit` gives, without the scale."""
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
    return hidden, query, key
