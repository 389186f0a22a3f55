"""CLIP and SigLIP towers, run up to the layer that is read."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from visiondrop.adapters.base import TowerOutput, capture_projection, tower_heads
from visiondrop.engine.engine import Engine
from visiondrop.engine.tower import run_tower

__all__ = ["run_vit"]


def run_vit(
    tower: Any, pixel_values: Tensor, num_layers: int, engine: Engine | None = None
) -> TowerOutput:
    """Run the first `num_layers` layers of a CLIP or SigLIP tower, keeping the last one's q and k.

    Layers above are not run: LLaVA reads hidden state -2, so its tower's last layer is never
    needed.

    Args:
        engine: what records the tower, None for nothing.
    """
    function = functools.partial(vit_outputs, tower, num_layers)
    outputs = run_tower(engine, function, tower, pixel_values, num_layers)
    scale = float(tower.encoder.layers[num_layers - 1].self_attn.scale)
    return TowerOutput(*outputs, scale)


def vit_outputs(tower: Any, num_layers: int, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `run_vit` gives, without the scale."""
    hidden = tower.embeddings(pixel_values)
    if hasattr(tower, "pre_layrnorm"):
        hidden = tower.pre_layrnorm(hidden)
    layers = tower.encoder.layers[:num_layers]
    attention = layers[-1].self_attn
    store: dict[str, Tensor] = {}
    for layer in layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    handles = [
        capture_projection(attention.q_proj, store, "query"),
        capture_projection(attention.k_proj, store, "key"),
    ]
    try:
        hidden = layers[-1](hidden, attention_mask=None)
    finally:
        for handle in handles:
            handle.remove()
    return hidden, *tower_heads(attention, store["query"], store["key"])
