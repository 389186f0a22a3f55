"""What the tests of engines share: a recording that is no program, a count of what was compiled,
and what two prefills have in common.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from visiondrop.engine import Engine
from visiondrop.engine.capture import Function


class Held:
    """As a recording: inputs and outputs that stay in place. It calls the function again instead
    of playing anything, which takes no time to make; what cannot be recorded it does not find.

    CUDA graphs share memory, so that one may overwrite what another gave. Here each always does.
    """

    alive: weakref.WeakSet[Held] = weakref.WeakSet()

    def __init__(self, function: Function, inputs: Sequence[Tensor], *_: Any):
        self.function, self.inputs = function, tuple(inputs)
        self.outputs = tuple(t.clone() for t in function(*self.inputs))
        self.alive.add(self)

    def replay(self) -> None:
        for other in self.alive - {self}:
            for held in other.outputs:
                held.fill_(float("nan"))
        for held, new in zip(self.outputs, self.function(*self.inputs), strict=True):
            held.copy_(new)


def spoil(engine: Engine) -> None:
    """Every value that recordings hold from the last sample becomes NaN."""
    for recording in engine._recordings.values():
        for tensor in (*recording.inputs, *recording.outputs):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
    for slot in engine.slots.values():
        for pair in slot.pairs:
            for buffer in pair:
                buffer.fill_(float("nan"))


def compiled_graphs() -> int:
    """How many graphs `torch.compile` has made in this process."""
    return counters["stats"]["unique_graphs"]


def cached(cache: Any) -> list[Tensor]:
    """Of each layer the keys and values [n, H_kv, d] of real tokens, row behind row."""
    out = []
    for i, layer in enumerate(cache.layers):
        block = next(b for b in reversed(cache.blocks) if b.first_layer <= i)
        for states in (layer.keys, layer.values):
            held = states.transpose(1, 2)[:, : block.length]
            out.append(held.flatten(0, 1) if block.mask is None else held[block.mask])
    return out


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any], atol: float = 1e-5) -> None:
    """Two (output, trace) of one prefill agree in logits, kept tokens and cache."""
    torch.testing.assert_close(one[0].logits, other[0].logits, atol=atol, rtol=1e-5)
    assert one[1].to_dict() == other[1].to_dict()
    pairs = zip(cached(one[0].past_key_values), cached(other[0].past_key_values), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)
