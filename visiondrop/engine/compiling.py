"""A decoder layer as a function of tensors, as it is or compiled: one compiled code for all layers.

Weights are arguments of the compiled function, so that layers which differ in nothing else share
it. Were it closed over a layer, PyTorch would compile again for each, as its number is among what
it checks.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from visiondrop.engine.engine import Engine, EngineError

__all__ = ["Step", "layer_steps", "refuse_quantised"]

Step = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]
"""(hidden [B, b, D], cos, sin [B or 1, b, d], mask [B, 1, b, b] or None) -> (hidden, key and value
[B, H_kv, b, d])."""


class Passing:
    """In the place of a KV cache: notes what one layer wants to keep, and keeps nothing else."""

    def update(self, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """As `Cache.update`, of an empty cache."""
        self.key, self.value = key, value
        return key, value


def layer_steps(
    engine: Engine, layers: Sequence[nn.Module], cache_name: str, shapes: Hashable
) -> list[Step]:
    """One function per layer.

    Args:
        cache_name: what the layers call their KV cache.
        shapes: all that a compiled code depends on beside the layer.
    """
    if not engine.compile:
        return [functools.partial(run_layer, layer.forward, cache_name) for layer in layers]
    return [
        engine.compiled(
            (id(layer), cache_name, shapes),
            functools.partial(compiled_step, engine, layer, cache_name, shapes),
        )
        for layer in layers
    ]


def run_layer(
    forward: Callable[..., Any],
    name: str,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A stock layer on an empty cache."""
    held = Passing()
    given = {name: held, "use_cache": True, "position_embeddings": (cos, sin)}
    hidden = forward(hidden, attention_mask=mask, position_ids=None, **given)
    return hidden, held.key, held.value


def compiled_step(engine: Engine, layer: nn.Module, name: str, shapes: Hashable) -> Step:
    """The layer's weights, handed to the compiled code of all layers like it."""
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    make = functools.partial(compile_template, layer, name, engine.backend)
    compiled = engine.compiled((likeness(layer), name, shapes), make)
    return functools.partial(compiled, state)


def likeness(layer: nn.Module) -> Hashable:
    """Equal for layers that differ in their weights and their number alone."""
    found: list[Hashable] = []
    for name, part in layer.named_modules():
        plain = {
            k: v
            for k, v in vars(part).items()
            if isinstance(v, (bool, int, float, str)) and k != "layer_idx" and k[0] != "_"
        }
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        found.append((name, type(part), tuple(sorted(plain.items()))))
        found += [(key, tuple(t.shape), t.stride(), t.dtype) for key, t in own]
    return tuple(found)


def refuse_quantised(layers: Iterable[nn.Module]) -> None:
    """Raise `EngineError` on weights that are no numbers of their own."""
    for layer in layers:
        for name, weight in layer.named_parameters():
            if not weight.is_floating_point():
                raise EngineError(
                    f"{name} of {type(layer).__name__} is quantised, and such layers are not "
                    "compiled: use Engine('cuda') without compile"
                )


def without_weights(module: nn.Module) -> nn.Module:
    """A copy without weights and without hooks: PyTorch checks both at every call, and compiles
    again where they are others.
    """
    bare = copy.copy(module)
    for name in vars(bare):
        if name.endswith("_hooks") and isinstance(vars(bare)[name], dict):
            vars(bare)[name] = OrderedDict()
    bare._parameters = {
        name: None if t is None else nn.Parameter(t.detach().to("meta"), requires_grad=False)
        for name, t in module._parameters.items()
    }
    bare._buffers = {
        name: None if t is None else t.to("meta") for name, t in module._buffers.items()
    }
    bare._modules = {
        name: None if part is None else without_weights(part)
        for name, part in module._modules.items()
    }
    return bare


def compile_template(layer: nn.Module, name: str, backend: str) -> Callable[..., Any]:
    """Compiled, the layer's function with weights as its first argument."""
    bare = without_weights(layer)

    def step(state: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Any) -> Any:
        held = Passing()
        given = {name: held, "use_cache": True, "position_embeddings": (cos, sin)}
        given |= {"attention_mask": mask, "position_ids": None}
        out = functional_call(bare, state, (hidden,), given)
        return out, held.key, held.value

    # PyTorch counts compilations by the code of a function, and stops at few: a copy of it for
    # every shape, each of which is compiled once.
    own = types.FunctionType(
        step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__
    )
    return torch.compile(own, backend=backend, dynamic=False, fullgraph=True)
