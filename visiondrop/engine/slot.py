"""Keys and values that stay where they are: what recorded decode steps read and write.

A recording has fixed addresses, so the KV cache of whichever generation is running has to lie in
the engine's own buffers, a slot. A generation's tokens are copied there once, at its first recorded
step; its layers then are views of the slot, and stay an ordinary cache that anybody can read. When
another cache needs the slot, the first one gets its tokens back in tensors of its own.

A tensor that was read from `layer.keys` before is a view of the slot, too: clone what is to outlive
its cache's turn.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visiondrop.cache_room import RoomLayer

__all__ = ["AHEAD", "GRAIN", "Slot", "capacity_for"]

AHEAD = 128
"""New tokens for which a new slot has room at least."""
AHEAD_SHARE = 4
"""The room is this part of the length, where that is more: slots that are outgrown grow faster."""
GRAIN = 256
"""Capacities are multiples of this, so that samples of other lengths fit the same slot."""

_serials = itertools.count()


def capacity_for(end: int) -> int:
    """Columns of a new slot whose first step reads `end`."""
    return -(-(end + max(AHEAD, end // AHEAD_SHARE)) // GRAIN) * GRAIN


class Slot:
    """Buffers of all decoder layers for one batch size.

    Args:
        cache: whose layers say what shapes, dtype and device are needed.
        capacities: columns of each block.

    Attributes:
        serial: tells recordings of this slot from others.
        pairs: of each decoder layer keys and values, [B, H_kv, capacity, d] each.
        block_of: of each decoder layer the index of its block.
        columns: [n] int64, of each block the column that the next token is written to.
        offsets: [n, B] int64, what has to be added for its position.
        real: of each block [B, capacity] bool, false at left padding.
        state: which blocks the small tensors were written for, as the host knows them; None where
            they have to be written.
    """

    def __init__(self, cache: Any, capacities: Sequence[int]):
        self.serial = next(_serials)
        self.capacities = tuple(capacities)
        firsts = [block.first_layer for block in cache.blocks]
        self.block_of = [
            max(b for b, first in enumerate(firsts) if first <= index)
            for index in range(len(cache.layers))
        ]
        # Written to in and out of inference mode.
        with torch.inference_mode(False):
            self.pairs = [
                tuple(
                    torch.empty(
                        (*held.shape[:2], capacities[b], held.shape[3]),
                        dtype=held.dtype,
                        device=held.device,
                    )
                    for held in (layer.keys, layer.values)
                )
                for b, layer in zip(self.block_of, cache.layers, strict=True)
            ]
            first = self.pairs[0][0]
            rows, device = first.shape[0], first.device
            self.columns = torch.zeros(len(firsts), dtype=torch.long, device=device)
            self.offsets = torch.zeros(len(firsts), rows, dtype=torch.long, device=device)
            self.real = [
                torch.ones(rows, capacity, dtype=torch.bool, device=device)
                for capacity in capacities
            ]
            # What the decoder's own forward makes of these nobody reads.
            self.no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
            self.no_position = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.state: list[tuple[int, int]] | None = None
        self._tenants: list[weakref.ref[RoomLayer]] = []

    def fits(self, ends: Sequence[int]) -> bool:
        """Whether a step that reads these columns of the blocks finds them here."""
        return all(end <= held for end, held in zip(ends, self.capacities, strict=True))

    def holds(self, cache: Any) -> bool:
        """Whether the layers of `cache` grow here."""
        return all(
            layer.room[0] is pair[0] and layer.room[1] is pair[1]
            for layer, pair in zip(cache.layers, self.pairs, strict=True)
        )

    def take_in(self, cache: Any, original: bool) -> None:
        """Let `cache` go on in these buffers; what lies there already is not copied.

        Args:
            original: whether positions are those of the unpruned sequence.
        """
        own = {id(layer) for layer in cache.layers}
        for ref in self._tenants:
            other = ref()
            if other is not None and id(other) not in own:
                self.move_out(other)
        for layer, pair in zip(cache.layers, self.pairs, strict=True):
            if self.moved(layer, pair):
                self.state = None
        self._tenants = [weakref.ref(layer) for layer in cache.layers]
        if self.state != state_of(cache):
            self.write(cache, original)

    def move_out(self, layer: RoomLayer) -> None:
        """Give a layer tensors of its own, where it is still here."""
        here = {id(buffer) for pair in self.pairs for buffer in pair}
        if any(id(room) in here for room in layer.room):
            layer.move_out()

    def moved(self, layer: RoomLayer, pair: tuple[Tensor, ...]) -> bool:
        """Copy a layer's tokens here and let it grow here; false where it does already."""
        if layer.room[0] is pair[0] and layer.room[1] is pair[1]:
            return False
        length = layer.get_seq_length()
        held = [layer.part(side) for side in (0, 1)]
        for side, buffer in enumerate(pair):
            tokens = held[side]
            assert tokens is not None
            if tokens.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr():
                tokens = tokens.clone()  # a part of this very buffer, maybe at another place
            buffer[:, :, :length].copy_(tokens)
        layer.move_in(pair[0], pair[1], length)
        return True

    def write(self, cache: Any, original: bool) -> None:
        """Tell the device where a cache's next token goes. Nothing is read back."""
        for b, block in enumerate(cache.blocks):
            first = cache.logical_count if original else block.count
            self.columns[b].fill_(block.length)
            self.offsets[b].copy_(first - block.length)
            self.real[b].fill_(True)
            if block.mask is not None:
                self.real[b][:, : block.length].copy_(block.mask)
        for b, pair in zip(self.block_of, self.pairs, strict=True):
            for buffer in pair:
                # What another sample left there is hidden, but a weight of 0 does not silence NaN.
                buffer[:, :, cache.blocks[b].length :].zero_()
        self.state = state_of(cache)

    def advance(self, cache: Any) -> None:
        """One token was written to each row."""
        self.columns.add_(1)
        for block in cache.blocks:
            block.extend(None, 1)
        for layer in cache.layers:
            layer.length += 1
        self.state = state_of(cache)


def state_of(cache: Any) -> list[tuple[int, int]]:
    """What a cache's next columns, positions and masks depend on."""
    return [(block.length, block.changes) for block in cache.blocks]
