"""The beginning of a prompt, kept: keys and values of each decoder layer after a prefill.

A prefix is one row without padding. Its layers differ in length from block to block, as the method
left them. Rows are cut out of the cache of a prefill (`cut_prefixes`) and put together to the cache
of a batch of questions (`join_prefixes`), where each row may go on from another prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from visiondrop.cache import CacheBlock, PrunedMixin, is_pruned, make_pruned
from visiondrop.cache_room import LEAST_ROOM, RoomLayer
from visiondrop.kv_dropping import refuse_dropped
from visiondrop.trace import SampleTrace

__all__ = ["Prefix", "cut_prefixes", "join_prefixes", "left_pad"]


@dataclass(eq=False)
class Prefix:
    """One kept beginning of a prompt.

    Attributes:
        key: what tells prefixes apart (see `ImageCache.build`).
        ids: [S] ids of the unpruned prompt, on the host.
        layers: keys and values of each decoder layer, [H_kv, n, d] each, n as in its block.
        blocks: (first decoder layer, tokens held) of each block, from layer 0 on.
        positions: the next token's position where positions are those of the unpruned prompt.
        sample: what the method did, with the token ledger; None for a prefix without pictures.
        owner: the cache that it belongs to, see `ImageCache.owner`.
        state: [1, ...] each, what else the prefill left on its KV cache for this row
            (`PrunedMixin.state`: with M-RoPE, by how much positions differ from counts).
    """

    key: str
    ids: Tensor
    layers: list[tuple[Tensor, Tensor]]
    blocks: list[tuple[int, int]]
    positions: int
    sample: SampleTrace | None = None
    owner: str = ""
    state: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Tokens of the unpruned prompt."""
        return int(self.ids.shape[0])

    @property
    def kv_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)

    def held(self, layer: int) -> int:
        """Tokens that decoder layer `layer` holds."""
        return next(length for first, length in reversed(self.blocks) if first <= layer)


def cut_prefixes(
    cache: Any,
    keys: Sequence[str],
    ids: Sequence[Tensor],
    samples: Sequence[SampleTrace | None],
    owner: str,
) -> list[Prefix]:
    """The rows of a finished prefill, without their padding, as copies.

    Args:
        cache: of the prefill; one that no method reduced (text alone) counts as one block.
        keys, ids, samples: of each row; owner: of all, see `Prefix`.

    Raises `ValueError` where a layer does not hold what the prefill left it.
    """
    if is_pruned(cache):
        refuse_dropped(cache, [(block.first_layer, block.length) for block in cache.blocks])
        blocks = [(block.first_layer, block.count.tolist()) for block in cache.blocks]
        positions, state = cache.logical_count.tolist(), cache.state
    else:
        positions = [len(row) for row in ids]
        refuse_dropped(cache, [(0, max(positions))])
        blocks, state = [(0, positions)], {}
    out = []
    for r, key in enumerate(keys):
        layout = [(first, int(counts[r])) for first, counts in blocks]
        own = {name: rows[r : r + 1].clone() for name, rows in state.items()}
        position = int(positions[r])
        prefix = Prefix(key, ids[r].cpu(), [], layout, position, samples[r], owner, own)
        for index, layer in enumerate(cache.layers):
            first = layer.keys.shape[-2] - prefix.held(index)
            pair = (layer.keys[r, :, first:], layer.values[r, :, first:])
            prefix.layers.append((pair[0].clone(), pair[1].clone()))
        out.append(prefix)
    return out


def join_prefixes(prefixes: Sequence[Prefix], config: Any, room: int = LEAST_ROOM) -> PrunedMixin:
    """The KV cache of a batch whose rows go on from these prefixes, left-padded.

    Args:
        prefixes: one per row.
        config: of the decoder.
        room: columns to leave for what will come.
    """
    cache = make_pruned(DynamicCache(config=config))
    device = prefixes[0].layers[0][0].device
    for index in range(len(cache.layers)):
        width = max(prefix.held(index) for prefix in prefixes)
        keys, values = (pile([p.layers[index][i] for p in prefixes], width, room) for i in (0, 1))
        cache.layers[index] = RoomLayer.holding(keys, values, width)
    for first in sorted({first for prefix in prefixes for first, _ in prefix.blocks}):
        counts = torch.tensor([prefix.held(first) for prefix in prefixes], device=device)
        width = max(prefix.held(first) for prefix in prefixes)
        mask = None
        if any(prefix.held(first) < width for prefix in prefixes):
            mask = torch.arange(width, device=device)[None] >= width - counts[:, None]
        cache.blocks.append(CacheBlock(first, mask, counts, width))
    cache.state = join_states(prefixes)
    cache.logical = max(map(len, prefixes))
    cache.logical_count = torch.tensor([prefix.positions for prefix in prefixes], device=device)
    return cache


def join_states(prefixes: Sequence[Prefix]) -> dict[str, Tensor]:
    """What prefills left beside keys and values, one row each; zeros where one left nothing."""
    like = {name: rows for prefix in prefixes for name, rows in prefix.state.items()}
    return {
        name: torch.cat([p.state.get(name, torch.zeros_like(rows)) for p in prefixes])
        for name, rows in like.items()
    }


def pile(rows: Sequence[Tensor], width: int, room: int) -> Tensor:
    """[B, H, width + room, d] of rows [H, n, d], which end at `width`, after zeros."""
    first = rows[0]
    out = first.new_empty(len(rows), first.shape[0], width + room, first.shape[2])
    for place, row in zip(out, rows, strict=True):
        place[:, : width - row.shape[1]] = 0
        place[:, width - row.shape[1] : width] = row
    return out


def left_pad(rows: Sequence[Tensor], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [B, T] of rows of unequal length, and their mask [B, T]."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for r, row in enumerate(rows):
        ids[r, width - len(row) :] = row
        mask[r, width - len(row) :] = 1
    return ids, mask
