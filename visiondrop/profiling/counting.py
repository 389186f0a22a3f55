"""FLOPs of a prefill by torch's own counter, by part, and of what a method spends on choosing.

`torch.utils.flop_counter` counts the matrix products, convolutions and attentions that are really
called. It does not know the attention of CPUs, which would count as nothing; it is registered here.
The formula (`flops.py`) knows nothing of this file: that both agree says something about each.

    with SkipProducts():
        counted = count_prefill(weightless_model(config), inputs, method)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from visiondrop.profiling.flops import Flops
from visiondrop.profiling.presets import fill_with_noise, noise_blocks
from visiondrop.reducer import Reducer
from visiondrop.trace import SampleTrace

__all__ = [
    "CPU_ATTENTION",
    "STAGES",
    "Counted",
    "SkipProducts",
    "around_stages",
    "count_prefill",
    "flop_counter",
]

_FOR_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
CPU_ATTENTION = {
    _FOR_CPU: lambda q, k, v, *args, out_shape=None, **kwargs: sdpa_flop_count(q, k, v)
}
"""The CPU's fused attention for torch's counter: q k^T and its product with v, the full square."""

STAGES = (
    *("encoder_stage", "projected_stage", "tower_block", "prompt_stage", "picture_stage"),
    "llm_stage",
)
"""Where a method chooses."""


def flop_counter() -> FlopCounterMode:
    """Torch's counter with the attention of CPUs."""
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)


class SkipProducts(TorchDispatchMode):
    """Inside, what the counter counts is not computed: its result is noise of the right shape.

    Everything else runs on real numbers, so that methods which read values (sort, compare, cluster)
    run as they do. Enter it before the counter, which then still sees every call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._skipped = {*flop_registry, _FOR_CPU}
        self._blocks = noise_blocks("cpu")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in self._skipped:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
        return tree_map_only(torch.Tensor, self._noise, func(*args, **kwargs))

    def _noise(self, shape: torch.Tensor) -> torch.Tensor:
        out = torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype)
        if out.numel():
            fill_with_noise(out, self._blocks)
        return out


def around_stages(
    method: Reducer, before: Callable[[], Any], after: Callable[[Any], None]
) -> Reducer:
    """A copy of `method` that calls `after(before())` around each of its stages, the outermost ones
    where one stage calls another.

    Its class is a subclass, so that what the mechanism derives from the method (for the tiles of a
    picture, for pictures that share a budget) is watched as well.
    """
    depth = 0

    def wrapped(stage: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            state = before() if depth == 0 else None
            depth += 1
            try:
                return stage(self, *args, **kwargs)
            finally:
                depth -= 1
                if depth == 0:
                    after(state)

        return call

    cls = type(method)
    watched = type(cls.__name__, (cls,), {name: wrapped(getattr(cls, name)) for name in STAGES})
    out = copy.copy(method)
    object.__setattr__(out, "__class__", watched)
    return out


@dataclass(frozen=True)
class Counted:
    """What the counter saw in one prefill.

    Attributes:
        parts: of the model; stages: what the method spends at its stages; sharing: what belongs to
            neither, which is what the mechanism spends on sharing a budget among tiles.
        samples: one a row, by the mechanism's own record; empty for the stock model.
    """

    parts: Flops
    stages: int
    sharing: int
    samples: list[SampleTrace]

    @property
    def choosing(self) -> int:
        """All that choosing takes."""
        return self.stages + self.sharing


@torch.inference_mode()
def count_prefill(
    model: Any,
    inputs: dict[str, Any],
    method: Reducer | None,
    *,
    logits_to_keep: int = 1,
    **options: Any,
) -> Counted:
    """Count one prefill with its cache.

    Args:
        inputs: of the model's forward.
        method: None for the stock model.
        logits_to_keep: positions at which the LM head runs; 0 for all.
        options: of `method(model, ...)`: `keys`, `questions`.
    """
    counter = flop_counter()
    chosen = dict.fromkeys(("total", "tower", "projector", "decoder", "lm_head"), 0)

    def after(before: dict[str, int]) -> None:
        for part, now in _by_part(counter).items():
            chosen[part] += now - before[part]

    if method is not None:
        method = around_stages(method, lambda: _by_part(counter), after)
    with nullcontext() if method is None else method(model, **options) as trace:
        with counter:
            model(**inputs, use_cache=True, logits_to_keep=logits_to_keep)
    found = _by_part(counter)
    # A stage runs inside a layer's hook: what it spends there is no part of the model.
    own = {part: found[part] - chosen[part] for part in found}
    total = own.pop("total")
    samples = [] if trace is None else list(trace.samples)
    return Counted(Flops(**own), chosen["total"], total - sum(own.values()), samples)


def _by_part(counter: FlopCounterMode) -> dict[str, int]:
    """FLOPs so far; the mechanism runs the tower layer by layer, so its parts are looked for."""
    out = dict.fromkeys(("total", "tower", "projector", "decoder", "lm_head"), 0)
    names = {"vision_tower": "tower", "multi_modal_projector": "projector"}
    names |= {"language_model": "decoder", "lm_head": "lm_head"}
    counts = counter.flop_counts
    out["total"] = sum(counts["Global"].values()) if "Global" in counts else 0
    known = set(counts)
    for name, ops in list(counts.items()):
        path = name.split(".")
        part = next((names[p] for p in path if p in names), None)
        above = (".".join(path[:i]) for i in range(1, len(path)))
        # Counts of a module hold those of the modules in it: the topmost of a part is enough.
        if part and not any(a in known and set(a.split(".")) & set(names) for a in above):
            out[part] += sum(ops.values())
    return out
