"""KV entries that somebody other than the method has dropped.

KV-cache compression ("presses" after SnapKV, H2O and others) shortens the keys and values of single
layers once a prompt is read, each head keeping entries of its own. It knows nothing of the blocks
of a reduced prompt, so what layers hold is looked up before every step that goes on from it. Kept
keys carry their positions in them, and a new token's position goes on counting what was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from visiondrop.cache import CacheBlock
from visiondrop.extensions.base import Extension

__all__ = ["blocks_as_held", "refuse_dropped"]


def held_lengths(cache: Any) -> list[int]:
    """Tokens that each layer of a KV cache holds: shapes alone, no device is asked."""
    return [layer.get_seq_length() for layer in cache.layers]


def blocks_as_held(cache: Any, extensions: Sequence[Extension] = ()) -> list[CacheBlock]:
    """The blocks of a pruned cache; where layers of a block hold fewer tokens than it says, a block
    for each run of layers that hold equally many.

    Args:
        extensions: those at work.

    Raises `ValueError` where entries were dropped and rows have padding, of which nobody knows how
    much each head kept; where an extension knows the entries by their columns; and on a layer that
    holds more than its block.
    """
    lengths = held_lengths(cache)
    edges = [*(block.first_layer for block in cache.blocks), len(lengths)]
    out: list[CacheBlock] = []
    for block, (first, end) in zip(cache.blocks, pairwise(edges), strict=True):
        if all(length == block.length for length in lengths[first:end]):
            out.append(block)
            continue
        check(block, first, lengths[first:end], extensions)
        for length, layers in groupby(range(first, end), lengths.__getitem__):
            out.append(CacheBlock(next(layers), None, block.count, length))
    return out


def refuse_dropped(cache: Any, blocks: Sequence[tuple[int, int]]) -> None:
    """Refuse to keep a prefill for later questions that is not whole.

    Args:
        blocks: (first layer, columns).

    Raises `ValueError`.
    """
    for layer, held in enumerate(held_lengths(cache)):
        columns = next(n for first, n in reversed(blocks) if first <= layer)
        if held != columns:
            raise ValueError(
                f"layer {layer} of the KV cache holds {held} of {columns} tokens: KV entries of a "
                "prompt's beginning were dropped, and what is kept of a picture must be whole; "
                "drop them outside the image cache"
            )


def check(
    block: CacheBlock, first: int, lengths: Sequence[int], extensions: Sequence[Extension]
) -> None:
    """Refuse what cannot be gone on with."""
    layer, held = next((first + i, n) for i, n in enumerate(lengths) if n != block.length)
    said = f"layer {layer} of the KV cache holds {held} tokens where the reduced prompt"
    if max(lengths) > block.length:
        raise ValueError(
            f"{said} has {block.length}: it was extended outside this method; start again without "
            "past_key_values"
        )
    if block.mask is not None:
        raise ValueError(
            f"{said} has {block.length} columns, some of them padding: entries were dropped behind "
            "the mask, and how much padding each head kept is unknown; drop KV entries of one "
            "prompt at a time, or of prompts that keep equally many tokens"
        )
    by_column = sorted({type(e).__name__ for e in extensions if e.masks_columns})
    if by_column:
        raise ValueError(
            f"{said} has {block.length}, and {', '.join(by_column)} hides entries by their column; "
            "use this method without dropping KV entries"
        )
