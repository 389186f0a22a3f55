"""The vision tower as one recording: pictures of one size and number, always the same layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from visiondrop.engine.engine import Engine
from visiondrop.engine.prefill import hooked, unfit
from visiondrop.kernels import CALLS

__all__ = ["run_tower"]

Outputs = tuple[Tensor, Tensor, Tensor]
"""Features, queries, keys."""


def run_tower(
    engine: Engine | None,
    function: Callable[[Tensor], Outputs],
    tower: Any,
    pixel_values: Tensor,
    what: Hashable,
) -> Outputs:
    """`function(pixel_values)`, from a recording where there is an engine that records.

    Args:
        pixel_values: [B, 3, h, w].
        what: all else that `function` depends on.

    Returns: tensors of the caller's own, which no later replay overwrites.
    """
    if engine is None:
        return function(pixel_values)
    if engine.graphs == "off" or unfit(tower, pixel_values) or hooked(engine, tower):
        CALLS["tower:plain"] += 1
        return function(pixel_values)
    shape, attention = tuple(pixel_values.shape), tower.config._attn_implementation
    recording = id(tower), what, shape, pixel_values.dtype, pixel_values.device, attention

    def fill(inputs: tuple[Tensor, ...]) -> None:
        inputs[0].copy_(pixel_values)

    out = engine.run("tower", recording, function, lambda: [pixel_values.new_zeros(shape)], fill)
    features, query, key = (t.clone() for t in out)
    return features, query, key
