"""A decode step as one recording: all decoder layers, for one new token in each row.

A step launches some hundred kernels that each run shorter than Python takes to launch them. As one
function of fixed shapes it is launched at once. What changes from step to step lies in tensors that
stay where they are (`visiondrop.engine.slot`): the token's hidden state, the columns it is written
to, its positions, the padding.

A step reads each block up to a common padding behind its length, so that what is read is less than
the engine's `waste` longer than the tokens, on the mean of the layers. Blocks grow together, so one
recording serves as many steps as a bucket is wide, and those of later samples: a new one is made
where the mean length enters a bucket that was not met with this method, batch size and differences
between the blocks' lengths, and after a longer generation has moved the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from visiondrop.cache import cache_name
from visiondrop.cache_room import RoomLayer
from visiondrop.engine.engine import Engine
from visiondrop.engine.prefill import hooked
from visiondrop.engine.slot import Slot, capacity_for

if TYPE_CHECKING:
    from visiondrop.decoder import Mechanism
    from visiondrop.run import Run

__all__ = ["DecodeStep", "decode_step", "ends_of", "slot_for"]

SLOTS = 4
"""Slots that are kept, of different batch sizes or block borders; the one longest unused goes."""

SERVED = {
    "inputs_embeds", "input_ids", "attention_mask", "position_ids", "past_key_values", "cache",
    "use_cache", "cache_position", "return_dict",
}  # fmt: skip
"""Arguments of the decoder's forward that a recorded step answers."""


def decode_step(
    mechanism: Mechanism, engine: Engine, run: Run, kwargs: dict[str, Any]
) -> DecodeStep | None:
    """What takes the place of the decoder's layers for one step; None where it has to run layer by
    layer.

    Args:
        kwargs: of the decoder's forward.
    """
    if engine.graphs == "off" or run.columns != 1 or run.new_mask is not None:
        return None
    cache, decoder = run.cache, mechanism.decoder
    if not served(decoder, kwargs) or not lies_ready(cache, len(mechanism.layers)):
        return None
    if any(watched(layer, mechanism.before_layer) for layer in mechanism.layers):
        return None
    ends = ends_of(cache, engine)
    slot = slot_for(cache, engine, ends)
    begins = not slot.holds(cache)
    if begins and hooked(engine, mechanism.layers, mechanism.before_layer):
        return None
    slot.take_in(cache, mechanism.original)
    return DecodeStep(mechanism, engine, run, slot, ends)


def served(decoder: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a recording answers a forward with these arguments."""
    config, device = decoder.config, kwargs["inputs_embeds"].device.type
    asked = [value for name, value in kwargs.items() if name not in SERVED]
    asked += [getattr(config, f"output_{what}", False) for what in ("hidden_states", "attentions")]
    # Rotary embeddings of these kinds ask the device how long the sequence is.
    rope = str(getattr(decoder.rotary_emb, "rope_type", "default"))
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return not (
        any(value is not None and value is not False for value in asked)
        or config._attn_implementation not in ("sdpa", "eager")
        or "dynamic" in rope
        or rope == "longrope"
        or torch.is_grad_enabled()
        or autocast
        or decoder.training
    )


def lies_ready(cache: Any, layers: int) -> bool:
    """Whether all layers grow in place and hold what their blocks say."""
    edges = [*(block.first_layer for block in cache.blocks[1:]), layers]
    index = 0
    for block, edge in zip(cache.blocks, edges, strict=True):
        while index < edge:
            layer = cache.layers[index] if index < len(cache.layers) else None
            if type(layer) is not RoomLayer or layer.get_seq_length() != block.length:
                return False
            index += 1
    return len(cache.layers) == layers


def watched(layer: nn.Module, ours: Callable[..., Any]) -> bool:
    """Whether someone else's hook is on a layer: it would not be called. As `prefill.hooked`, but
    without the layer's parts, so that it can be asked at each step.
    """
    hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    return any(
        getattr(hook, "func", None) != ours
        and getattr(hook, "__name__", "") != "output_capturing_hook"
        for hook in hooks
    )


def ends_of(cache: Any, engine: Engine) -> tuple[int, ...]:
    """How many columns of each block the next step reads."""
    lengths = [block.length + 1 for block in cache.blocks]
    edges = [*(block.first_layer for block in cache.blocks), len(cache.layers)]
    spans = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    mean = sum(n * span for n, span in zip(lengths, spans, strict=True)) // sum(spans)
    return tuple(n + engine.bucket(mean) - mean for n in lengths)


def slot_for(cache: Any, engine: Engine, ends: Sequence[int]) -> Slot:
    """The slot that fits a cache; a new one where none is large enough."""
    like = cache.layers[0].keys
    key = (
        tuple(block.first_layer for block in cache.blocks),
        *(like.shape[0], like.dtype, like.device),
    )
    slot = engine.slots.pop(key, None)
    if slot is None or not slot.fits(ends):
        before = (0,) * len(ends) if slot is None else slot.capacities
        if slot is not None:
            forget(engine, slot)
        slot = Slot(cache, [max(old, capacity_for(e)) for old, e in zip(before, ends, strict=True)])
        while len(engine.slots) >= SLOTS:
            forget(engine, engine.slots.pop(next(iter(engine.slots))))
    engine.slots[key] = slot  # the last one used stands last
    return slot


def forget(engine: Engine, slot: Slot) -> None:
    """Let go of the recordings on a slot; a cache that lies there keeps its buffers."""
    engine.forget("decode", lambda key: key[0] == slot.serial)


class DecodeStep(nn.Module):
    """All decoder layers, called by the decoder's forward as if they were one.

    Attributes:
        given: arguments of the decoder's forward that spare it a mask and positions of its own.
    """

    def __init__(
        self, mechanism: Mechanism, engine: Engine, run: Run, slot: Slot, ends: tuple[int, ...]
    ):
        super().__init__()
        # In a tuple, so that the decoder is not registered as this module's part.
        self.parts = mechanism, engine, run, slot
        self.ends = ends
        self.given = {"attention_mask": slot.no_mask, "position_ids": slot.no_position}

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """[B, 1, D] behind the last layer; the next call overwrites it. The cache has one token
        more.
        """
        mechanism, engine, run, slot = self.parts
        padded = any(block.mask is not None for block in run.cache.blocks)
        name, decoder = cache_name(kwargs), mechanism.decoder
        like = (
            tuple(hidden_states.shape),
            hidden_states.dtype,
            decoder.config._attn_implementation,
        )

        def make_inputs() -> Sequence[Tensor]:
            device = hidden_states.device
            return [torch.zeros(hidden_states.shape, dtype=hidden_states.dtype, device=device)]

        def fill(inputs: tuple[Tensor, ...]) -> None:
            inputs[0].copy_(hidden_states)

        out = engine.run(
            "decode",
            (slot.serial, self.ends, padded, *like),
            step_function(decoder, list(mechanism.layers), slot, self.ends, padded, name),
            make_inputs,
            fill,
        )
        slot.advance(run.cache)
        return out[0]


class Written:
    """What layers take for a KV cache while a step is recorded."""

    def __init__(self, slot: Slot, ends: Sequence[int]):
        self.slot, self.ends = slot, ends

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write [B, H_kv, 1, d] each to the block's column; what the layer reads, up to its end."""
        b = self.slot.block_of[layer_idx]
        column, end = self.slot.columns[b : b + 1], self.ends[b]
        keys, values = self.slot.pairs[layer_idx]
        keys.index_copy_(2, column, key_states)
        values.index_copy_(2, column, value_states)
        return keys[:, :, :end], values[:, :, :end]


def step_function(
    decoder: Any,
    layers: Sequence[Any],
    slot: Slot,
    ends: Sequence[int],
    padded: bool,
    name: str,
) -> Callable[[Tensor], Sequence[Tensor]]:
    """hidden [B, 1, D] -> the same behind all layers. Run again before `Slot.advance`, it writes
    the same to the same places.
    """

    def function(hidden: Tensor) -> Sequence[Tensor]:
        batch, blocks = hidden.shape[0], len(ends)
        written = Written(slot, ends)
        positions = slot.columns[:, None] + slot.offsets
        cos, sin = decoder.rotary_emb(hidden, position_ids=positions.reshape(-1, 1))
        cos, sin = (t.reshape(blocks, batch, 1, -1) for t in (cos, sin))
        masks = [
            additive_mask(slot.columns[b], slot.real[b] if padded else None, end, hidden.dtype)
            for b, end in enumerate(ends)
        ]
        for index, layer in enumerate(layers):
            b = slot.block_of[index]
            # Not called: hooks would run while recording, and not when it is played.
            out = layer.forward(
                hidden,
                attention_mask=masks[b],
                position_embeddings=(cos[b], sin[b]),
                position_ids=None,
                use_cache=True,
                **{name: written},
            )
            hidden = out if isinstance(out, Tensor) else out[0]
        return (hidden,)

    return function


ALIGNED = 8
"""Rows of a mask start at multiples of this many elements, as fused attention wants them."""


def additive_mask(column: Tensor, real: Tensor | None, end: int, dtype: torch.dtype) -> Tensor:
    """[B or 1, 1, 1, end], 0 at what the token in `column` sees, and the least number elsewhere.

    Args:
        column: [] int64; real: [B, capacity] bool, false at padding.
    """
    width = -(-end // ALIGNED) * ALIGNED
    seen = (torch.arange(width, device=column.device) <= column)[None]
    if real is not None:
        seen = seen & real[:, :width]
    mask = torch.zeros(seen.shape, dtype=dtype, device=column.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None, None, :end]
