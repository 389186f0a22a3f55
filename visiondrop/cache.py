"""A KV cache whose layers differ in length.

After a reduction the layers of each decoder block hold another number of tokens. All that a later
step needs to know of that lives here, on the cache and not on the model, so that two interleaved
generations on one model do not mix.

Two lengths are kept apart. The *logical* length counts the tokens of the unpruned sequence; it is
what `generate()` slices inputs and numbers positions by. The *physical* length of a layer is what
it holds; masks are made from it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, StaticCache
from transformers.masking_utils import create_causal_mask

from visiondrop.cache_room import RoomLayer, room_for

__all__ = ["CacheBlock", "PrunedCache", "make_pruned"]


class CacheBlock:
    """The layers between two stages, which hold the same tokens.

    Attributes:
        first_layer: index of the block's first decoder layer.
        length: columns, padding included.
        changes: how often something else than real columns at the end has changed it.
    """

    def __init__(self, first_layer: int, mask: Tensor | None, count: Tensor, length: int):
        self.first_layer, self.length, self.changes = first_layer, length, 0
        self._mask, self._count, self._added = mask, count, 0

    @property
    def mask(self) -> Tensor | None:
        """[B, length] bool, false at left padding; None where no row is padded."""
        return None if self._mask is None else self._mask[:, : self.length]

    @property
    def count(self) -> Tensor:
        """[B] real tokens of each row; with renumbered positions also the next position."""
        return self._count + self._added if self._added else self._count

    def extend(self, new: Tensor | None, length: int) -> None:
        """Append `length` columns; `new` [B, length] bool is their mask, None where all are
        real.
        """
        held, self.length = self.mask, self.length + length
        if new is not None:
            self.changes += 1
            self._count = self._count + new.sum(1)
            if held is None:
                held = new.new_ones(new.shape[0], self.length - length)
            self._mask = torch.cat([held, new], 1)
            return
        self._added += length
        if held is not None and self._mask is not None and self._mask.shape[1] < self.length:
            # The mask's room is true: what is appended later needs no writing.
            room = held.new_ones(held.shape[0], length + room_for(self.length))
            self._mask = torch.cat([held, room], 1)

    def select(self, index: Tensor) -> None:
        """Reorder, repeat or pick rows."""
        self.changes += 1
        self._count = self._count[index.to(self._count.device)]
        if self._mask is not None:
            self._mask = self._mask[index.to(self._mask.device)]

    def crop(self, columns: int) -> None:
        """Forget the last `columns` columns."""
        self.changes += 1
        mask, self.length = self.mask, self.length - columns
        if mask is None:
            self._added -= columns
        else:
            self._count = self._count - mask[:, -columns:].sum(1)
            self._mask = mask[:, :-columns]


class PrunedMixin:
    """Adds blocks and the logical length to a cache class whose layers grow by concatenation.

    `state` holds what a method needs while decoding (masks, vectors), tensors with one row per
    sequence.
    """

    layers: list[Any]
    blocks: list[CacheBlock]
    logical: int
    logical_count: Tensor
    armed: bool
    state: dict[str, Tensor]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the unpruned sequence seen so far (see the module's text for why)."""
        return self.logical

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """What layer `layer_idx` holds: masks are made from it."""
        return self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """Append to layer `layer_idx`. Refused outside the context that made the cache."""
        if not self.armed:
            raise RuntimeError(
                "this KV cache was pruned by a visual-token reduction and its layers differ in "
                "length; go on with it only inside `with method(model):`, or start again without "
                "it"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)  # type: ignore[misc]

    def select_rows(self, index: Tensor) -> None:
        """Rows of everything that is kept beside the layers."""
        for block in self.blocks:
            block.select(index)
        self.logical_count = self.logical_count[index.to(self.logical_count.device)]
        self.state = {name: rows[index.to(rows.device)] for name, rows in self.state.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: rows take the state of the beams they go on from."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        rows = torch.arange(self.logical_count.shape[0]).repeat_interleave(repeats)
        self.select_rows(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.select_rows(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens (assisted decoding).

        A positive number is the logical length to keep, as older transformers have it.
        """
        remove = -tokens_to_remove if tokens_to_remove <= 0 else self.logical - tokens_to_remove
        if remove <= 0:
            return
        super().crop(-remove)  # type: ignore[misc]
        before = self.blocks[0].count
        for block in self.blocks:
            block.crop(remove)
        self.logical -= remove
        self.logical_count = self.logical_count - (before - self.blocks[0].count)

    def reset(self) -> None:
        """Empty the cache; it is then as good as new."""
        super().reset()  # type: ignore[misc]
        self.blocks, self.logical, self.state = [], 0, {}


class PrunedCache(PrunedMixin, DynamicCache):
    """`DynamicCache` whose layers differ in length."""


MASK_CACHE = (
    "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
)
"""What `create_causal_mask` calls it."""


def is_pruned(cache: Any) -> bool:
    """Whether `cache` holds a reduced sequence."""
    return isinstance(cache, PrunedMixin) and bool(cache.blocks)


def make_pruned(cache: Cache) -> PrunedMixin:
    """Upgrade an empty cache in place, so that whoever handed it in keeps hold of the same object.

    Raises `ValueError` for static and sliding-window caches.
    """
    if isinstance(cache, StaticCache) or getattr(cache, "is_compileable", False):
        raise ValueError(
            f"{type(cache).__name__} holds every layer at one fixed length; visual-token reduction "
            "needs a cache that grows: use cache_implementation=None (DynamicCache)"
        )
    if any(getattr(layer, "is_sliding", False) for layer in getattr(cache, "layers", [])):
        raise ValueError(
            "sliding-window layers forget tokens by their distance, which reduction changes; set "
            "text_config.sliding_window=None"
        )
    if not isinstance(cache, PrunedMixin):
        kind = type(cache)
        cache.__class__ = (
            PrunedCache
            if kind is DynamicCache
            else type(f"Pruned{kind.__name__}", (PrunedMixin, kind), {"__module__": __name__})
        )
    assert isinstance(cache, PrunedMixin)
    if type(cache) is PrunedCache:
        give_room(cache)
    cache.blocks, cache.logical, cache.armed, cache.state = [], 0, False, {}
    cache.logical_count = torch.zeros(0, dtype=torch.long)
    return cache


def give_room(cache: PrunedCache) -> None:
    """Let the layers of an empty cache grow in place; those that are quantised, or moved to the
    host between steps, stay.
    """
    if getattr(cache, "offloading", False):
        return
    cache.layers = [RoomLayer() if type(each) is DynamicLayer else each for each in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = RoomLayer


def cache_name(kwargs: dict[str, Any]) -> str:
    """What a forward calls its KV cache: "cache" from transformers 5.24 on, "past_key_values"
    before.
    """
    return "cache" if "cache" in kwargs else "past_key_values"
