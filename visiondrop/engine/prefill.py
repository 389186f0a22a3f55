"""The prefill in blocks: all layers between two stages as one function of fixed shapes.

A stage works on values (which tokens, how many rows) and stays outside; between two of them the
layers do the same for every sample of a length. Rows are padded on their right to a bucket's end.
Causal attention never looks right, so the padding changes nothing before it and needs no mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from visiondrop.cache import cache_name
from visiondrop.engine.compiling import Step, layer_steps
from visiondrop.engine.engine import Engine

if TYPE_CHECKING:
    from visiondrop.decoder import Mechanism
    from visiondrop.run import Run

__all__ = ["LayerBlock", "hooked", "prefill_blocks", "unfit"]


def prefill_blocks(
    mechanism: Mechanism, engine: Engine, run: Run, kwargs: dict[str, Any]
) -> list[nn.Module] | None:
    """What takes the place of the decoder's layers for one prefill; None where it has to run layer
    by layer.

    Args:
        kwargs: of the decoder's forward.
    """
    decoder = mechanism.decoder
    config, embeds = decoder.config, kwargs["inputs_embeds"]
    for output in ("output_hidden_states", "output_attentions"):
        if kwargs.get(output, getattr(config, output, False)):
            return None
    plain = (
        config._attn_implementation != "sdpa"
        or getattr(config, "sliding_window", None) is not None
        or unfit(decoder, embeds)
        or hooked(engine, mechanism.layers, mechanism.before_layer)
    )
    if plain:
        return None
    cuts = {0, *mechanism.stage_layers}
    if mechanism.method.looks_back:
        cuts |= {layer - 1 for layer in mechanism.stage_layers if layer > 0}
    edges = [*sorted(cuts), len(mechanism.layers)]
    return [
        LayerBlock(mechanism, engine, run, first, last)
        for first, last in zip(edges, edges[1:], strict=False)
    ]


def unfit(module: nn.Module, given: Tensor) -> bool:
    """Whether a pass over `given` does what no recording holds: dropout, autocast, or keeping what
    a backward pass needs.
    """
    kind = given.device.type
    if module.training or (
        torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    ):
        return True
    if not torch.is_grad_enabled():
        return False
    return given.requires_grad or any(p.requires_grad for p in module.parameters())


def hooked(engine: Engine, module: nn.Module, ours: Callable[..., Any] | None = None) -> bool:
    """Whether someone's hooks are on a module or in it, which a recording would not call again.

    Those of `ours` do not count, nor do those that transformers leaves behind after it was asked
    for hidden states once: they do nothing in a pass that is not asked for them.
    """
    # Walking through hundreds of modules for every sample would take longer than looking at them.
    parts = engine.compiled(("modules", id(module)), lambda: list(module.modules()))
    for part in parts:
        if part._forward_hooks or part._forward_pre_hooks:
            for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
                asked = getattr(hook, "__name__", "") == "output_capturing_hook"
                if not asked and (ours is None or getattr(hook, "func", None) != ours):
                    return True
    return False


class LayerBlock(nn.Module):
    """The layers `first` to `last` - 1, called by the decoder's forward as if they were one."""

    def __init__(self, mechanism: Mechanism, engine: Engine, run: Run, first: int, last: int):
        super().__init__()
        # In a tuple, so that they are not registered as this module's own.
        self.parts = mechanism, engine, run
        self.first, self.last = first, last

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """[B, S', D] behind the layers, S' after the stage before the first of them; their keys
        and values go to the cache.
        """
        mechanism, engine, run = self.parts
        args, kwargs = mechanism.before_layer(self.first, self, args, kwargs)
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        batch, length, _ = hidden.shape
        end, padding = engine.bucket(length), run.padding[-1]
        layers = mechanism.layers[self.first : self.last]

        config = mechanism.decoder.config
        shared = engine.graphs != "off"
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kept = len(layers), 2, batch, config.num_key_value_heads, end, size
        values = (hidden, cos, sin) if padding is None else (hidden, cos, sin, padding.bool())

        def make_inputs() -> Sequence[Tensor]:
            with torch.inference_mode(False):
                shapes = [(t.shape[0], end, *t.shape[2:]) for t in values]
                inputs = [
                    torch.zeros(shape, dtype=t.dtype, device=t.device)
                    for shape, t in zip(shapes, values, strict=True)
                ]
                if shared:
                    inputs.append(engine.scratch(math.prod(kept), hidden).view(kept))
            return inputs

        def fill(inputs: tuple[Tensor, ...]) -> None:
            for held, value in zip(inputs, values, strict=False):
                held[:, :length].copy_(value)
                # A longer sample's rest might hold NaN, which a weight of 0 does not silence.
                held[:, length:].zero_()

        name = cache_name(kwargs)
        key = (
            self.first, self.last, batch, end, padding is not None, hidden.dtype,
            config._attn_implementation, cos.shape[0],
        )  # fmt: skip
        steps = functools.partial(layer_steps, engine, layers, name, key[2:])
        function = block_function(steps, padding is not None, shared)
        out, *states = engine.run("prefill", key, function, make_inputs, fill)
        cache = kwargs.get(name)
        if cache is not None:
            for i, (k, v) in enumerate(
                states[0] if shared else zip(states[::2], states[1::2], strict=True)
            ):
                # Views of what the next run overwrites: the cache copies what it is given.
                cache.update(k[:, :, :length], v[:, :, :length], self.first + i)
        return out[:, :length].clone()


def block_function(
    make_steps: Callable[[], list[Step]], masked: bool, shared: bool
) -> Callable[..., Sequence[Tensor]]:
    """(hidden [B, b, D], cos, sin, where `masked` which are real [B, b], where `shared` memory for
    keys and values) -> (hidden, that memory), or where it is not shared (hidden, and of each layer
    key and value).

    Args:
        make_steps: called when the function is run, not when it is replayed.
    """

    def function(hidden: Tensor, cos: Tensor, sin: Tensor, *rest: Tensor) -> Sequence[Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            mask, held = (causal_mask(rest[0]) if masked else None), []
            for i, step in enumerate(make_steps()):
                hidden, key, value = step(hidden, cos, sin, mask)
                if shared:
                    rest[-1][i, 0].copy_(key)
                    rest[-1][i, 1].copy_(value)
                else:
                    held += [key, value]
            return (hidden, rest[-1]) if shared else (hidden, *held)

    return function


def causal_mask(real: Tensor) -> Tensor:
    """[B, 1, b, b] bool from [B, b]: earlier real tokens and oneself, so that no row of padding has
    nothing to see, which would make NaN.
    """
    at = torch.arange(real.shape[1], device=real.device)
    itself = at == at[:, None]
    return ((at <= at[:, None]) & real[:, None, None, :]) | itself
