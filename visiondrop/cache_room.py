"""A KV cache layer with room behind its tokens, so that a new token is written in place.

The stock layer concatenates: it copies all it holds for every new token. Here a prefill is copied
once, without room, as by the stock layer; the first step after it copies into a buffer that is
longer, and later steps write behind the last token. `keys` and `values` are the part of the buffer
that counts.

Whoever puts other tensors there (a beam's reordering, a choice of rows, a dropped part) is
followed: they are the layer's from then on, are never written to, and are copied with room at the
next step. A tensor read from `keys` keeps its values when the layer grows, but not when tokens are
cropped and others written in their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from visiondrop.kernels import CALLS

__all__ = ["LEAST_ROOM", "ROOM_SHARE", "RoomLayer", "room_for"]

LEAST_ROOM = 64
"""Columns of room that are made at least."""
ROOM_SHARE = 8
"""The room is this part of the length, where that is more: lengths grow geometrically."""


def room_for(length: int) -> int:
    """Columns to leave behind `length` tokens."""
    return max(LEAST_ROOM, length // ROOM_SHARE)


class RoomLayer(DynamicLayer):
    """`DynamicLayer` that grows in place.

    Where gradients are recorded it concatenates, as autograd needs the tensors of earlier steps.

    Attributes:
        keys, values: [B, H_kv, n, d], of the n tokens held; None before the first.
        length: n, where they lie in `room`.
        room: buffers [B, H_kv, capacity, d] of keys and values, None for tensors without room.
    """

    def __init__(self) -> None:
        self.room: list[Tensor | None] = [None, None]
        self.bare: list[Tensor | None] = [None, None]
        self.length = 0
        super().__init__()

    @classmethod
    def holding(cls, keys: Tensor, values: Tensor, length: int) -> RoomLayer:
        """A layer on buffers [B, H_kv, capacity, d] that nobody else writes to, of which the first
        `length` columns count.
        """
        layer = cls()
        layer.lazy_initialization(keys, values)
        layer.move_in(keys, values, length)
        return layer

    # ------------------------------------------------------------------ what is held

    @property
    def keys(self) -> Tensor | None:
        """[B, H_kv, n, d]; None before the first update."""
        return self.part(0)

    @keys.setter
    def keys(self, tensor: Tensor | None) -> None:
        self.put(0, tensor)

    @property
    def values(self) -> Tensor | None:
        """As `keys`."""
        return self.part(1)

    @values.setter
    def values(self, tensor: Tensor | None) -> None:
        self.put(1, tensor)

    def part(self, side: int) -> Tensor | None:
        """Keys (0) or values (1)."""
        room = self.room[side]
        return self.bare[side] if room is None else room[:, :, : self.length]

    def put(self, side: int, tensor: Tensor | None) -> None:
        """Another tensor in the place of keys (0) or values (1)."""
        self.bare[side], self.room[side] = tensor, None

    def move_in(self, keys: Tensor, values: Tensor, length: int) -> None:
        """Go on in these buffers, whose first `length` columns are this layer's tokens."""
        self.bare, self.room, self.length = [None, None], [keys, values], length

    def move_out(self) -> None:
        """Leave the buffers to others: the tokens are copied, without room."""
        for side, room in enumerate(self.room):
            if room is not None:
                self.put(side, room[:, :, : self.length].clone())

    # ------------------------------------------------------------------ growing

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, H_kv, t, d] each, and return all tokens."""
        new = key_states, value_states
        if torch.is_grad_enabled() or not all(map(self.takes, (0, 1), new)):
            return super().update(key_states, value_states, *args, **kwargs)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if all(writable(room, end) for room in self.room):
            CALLS["cache:in_place"] += 1
        else:
            CALLS["cache:grown"] += 1
            capacity = end + room_for(end)
            self.move_in(self.longer(0, capacity), self.longer(1, capacity), start)
        for room, states in zip(self.room, new, strict=True):
            assert room is not None
            room[:, :, start:end] = states
        self.length = end
        keys, values = self.keys, self.values
        assert keys is not None and values is not None
        return keys, values

    def takes(self, side: int, states: Tensor) -> bool:
        """Whether there are tokens, and `states` are more of their kind: what else a concatenation
        can make of them, or refuse, is left to it.
        """
        held = self.part(side) if self.is_initialized else None
        if held is None or held.dim() != 4 or not held.shape[2]:
            return False
        like = held.dtype == states.dtype and held.device == states.device
        same = held.shape[:2] == states.shape[:2] and held.shape[3] == states.shape[3]
        return like and same and held.shape[2] == self.get_seq_length()

    def longer(self, side: int, capacity: int) -> Tensor:
        """A copy of keys (0) or values (1) in a buffer of `capacity` columns."""
        held = self.part(side)
        assert held is not None
        room = held.new_empty(*held.shape[:2], capacity, held.shape[3])
        room[:, :, : held.shape[2]] = held
        return room

    # ------------------------------------------------------------------ the rest of a layer

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length if self.room[0] is not None else super().get_seq_length()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last |`tokens_to_remove`| tokens (a number below 0); others will be written
        over them.
        """
        if tokens_to_remove < 0 and all(room is not None for room in self.room):
            self.length = max(0, self.length + tokens_to_remove)
        else:
            super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Hold nothing."""
        self.keys = self.values = None
        self.is_initialized, self.length = False, 0

    def __copy__(self) -> RoomLayer:
        """A layer that holds the same tokens, in tensors of its own where they lie in a buffer."""
        twin = type(self)()
        twin.__dict__.update(self.__dict__, bare=list(self.bare), room=list(self.room))
        twin.move_out()
        return twin


def writable(room: Tensor | None, end: int) -> bool:
    """Whether columns up to `end` can be written here and now."""
    if room is None or room.shape[2] < end:
        return False
    # Tensors that were made in inference mode cannot be changed outside of it.
    return torch.is_inference_mode_enabled() or not room.is_inference()
