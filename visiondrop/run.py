"""The state of one forward pass; nothing of it outlives the pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from visiondrop.cache import MASK_CACHE, CacheBlock
from visiondrop.layout import Row, padding_mask
from visiondrop.stages import LayerInput
from visiondrop.trace import SampleTrace, StageTrace
from visiondrop.transfer import to_device

__all__ = ["Block", "Run", "Uncached", "block_angles", "block_mask", "row_positions"]


@dataclass
class Block:
    """What the layers between two stages are handed."""

    first_layer: int
    mask: Tensor | None
    positions: Tensor
    cos_sin: tuple[Tensor, Tensor]


@dataclass
class Run:
    """One forward pass.

    Attributes:
        prefill: whether it is a prefill with pictures, or goes on from one.
        cache: the pruned KV cache, None without one.
        rows: the present layout; visual (and by picture), lengths, newlines, padding: per block so
            far, per row.
        stages: records per row.
        places: [B, S] places in the unpruned sequence, None where positions are renumbered.
        planes: [P, B, S0], with M-RoPE, the positions of each row's tokens by their places there;
            None where places are positions.
        blocks: the blocks after the first (prefill), or all of them (decode).
        columns: columns of the unpruned input; real: real tokens among them, per row.
        new_mask: [B, columns] of a decode step, None where all are real.
        tail: tokens at each row's end that were generated (only without a cache).
        before: what the layer before the next stage read, for methods that look back.
        entry: the packed input embeddings and their layout, for methods that use them.
        passed: tiles through the vision tower and tokens through the projector, per row.
    """

    prefill: bool
    cache: Any
    rows: list[Row] = field(default_factory=list)
    visual: list[list[int]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    by_picture: list[list[list[int]]] = field(default_factory=list)
    newlines: list[list[int]] = field(default_factory=list)
    stages: list[list[StageTrace]] = field(default_factory=list)
    padding: list[Tensor | None] = field(default_factory=list)
    places: Tensor | None = None
    planes: Tensor | None = None
    blocks: list[Block] = field(default_factory=list)
    columns: int = 0
    real: list[int] = field(default_factory=list)
    new_mask: Tensor | None = None
    tail: int = 0
    before: LayerInput | None = None
    entry: tuple[Tensor, list[Row]] | None = None
    passed: list[tuple[int, int]] = field(default_factory=list)

    def note_layout(self, device: torch.device) -> None:
        """The present rows are those of a new block."""
        self.padding.append(padding_mask(self.rows, device))
        self.visual.append([row.visual for row in self.rows])
        self.lengths.append([row.length for row in self.rows])
        self.by_picture.append([[s.length for s in row.segments] for row in self.rows])
        self.newlines.append([sum(s.newline_count for s in row.segments) for row in self.rows])

    def store_blocks(self, device: torch.device) -> None:
        """Write the blocks of a finished prefill onto its cache."""
        firsts = [0, *(block.first_layer for block in self.blocks)]
        self.cache.blocks = [
            CacheBlock(first, padding, to_device(torch.tensor(lengths), device), max(lengths))
            for first, padding, lengths in zip(firsts, self.padding, self.lengths, strict=True)
        ]
        self.cache.logical = self.columns
        self.cache.logical_count = to_device(torch.tensor(self.real), device)

    def samples(self, decoder: Any, num_layers: int, hidden: torch.dtype) -> list[SampleTrace]:
        """The rows with pictures, for the trace of a prefill.

        Args:
            hidden: type of the hidden states. Weights may be of another (8 bits), and under
                autocast keys and values are, which the cache then says.
        """
        config = decoder.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers = [] if self.cache is None else self.cache.layers
        item = next((getattr(layer, "dtype", hidden) for layer in layers), hidden).itemsize
        per_token = 2 * config.num_key_value_heads * size * item
        edges = [0, *(block.first_layer for block in self.blocks), num_layers]
        spans = [b - a for a, b in zip(edges, edges[1:], strict=False)]

        def by_layer(values: list[list[Any]], row: int) -> list[Any]:
            return [v[row] for v, span in zip(values, spans, strict=True) for _ in range(span)]

        return [
            SampleTrace(
                row.segments[0].key,
                by_layer(self.visual, r),
                by_layer(self.lengths, r),
                per_token,
                self.stages[r],
                by_layer(self.newlines, r),
                [segment.grid for segment in row.segments],
                [list(counts) for counts in zip(*by_layer(self.by_picture, r), strict=True)],
                [segment.shape for segment in row.segments],
                *self.passed[r],
            )
            for r, row in enumerate(self.rows)
            if row.segments
        ]


@dataclass
class Uncached:
    """A generation without a cache, which runs the whole row again for every new token.

    Attributes:
        prompt: [B, S] ids of its first pass; tail: tokens generated since.
    """

    prompt: Tensor
    tail: int = 0

    @classmethod
    def follow(cls, before: Uncached | None, ids: Tensor) -> Uncached:
        """The generation that a pass over `ids` belongs to: the last one where it goes on from its
        prompt by one token more, a new one otherwise.
        """
        if before is not None:
            length = before.prompt.shape[1]
            longer = ids.shape[1] == length + before.tail + 1
            if longer and torch.equal(ids[:, :length], before.prompt):
                return cls(before.prompt, before.tail + 1)
        return cls(ids)


def block_mask(
    decoder: Any,
    hidden: Tensor,
    padding: Tensor | None,
    cache: Any,
    layer: int,
    first: bool = False,
) -> Tensor | None:
    """The attention mask of the block that starts at `layer`, in the attention's own form.

    Args:
        first: whether `hidden` are the first tokens that the block sees, with nothing cached.
    """
    if decoder.config._attn_implementation == "sdpa":
        if padding is not None:
            return padded_causal_mask(padding, hidden.shape[1])
        if first:
            return None  # sdpa is causal by itself, which `create_causal_mask` finds out at length
    return create_causal_mask(
        config=decoder.config,
        inputs_embeds=hidden,
        attention_mask=padding,
        position_ids=None,
        layer_idx=layer,
        **{MASK_CACHE: cache},
    )


def padded_causal_mask(padding: Tensor, queries: int) -> Tensor:
    """[B, 1, q, N] bool, the causal mask of the last q of N tokens, without the padded ones.

    What `create_causal_mask` gives sdpa, but for one question: it asks the device whether there is
    any padding, and the host waits for the answer at each stage and each new token.

    Args:
        padding: [B, N] bool, false at padding.
    """
    total = padding.shape[1]
    keys = torch.arange(total, device=padding.device)
    seen = keys <= keys[total - queries :, None]
    return seen & padding.bool()[:, None, None, :]


def row_positions(run: Run, device: torch.device) -> Tensor:
    """[B, S], with M-RoPE [P, B, S], positions of the present packing."""
    if run.places is not None and run.planes is not None:
        places = run.places.to(run.planes.device)
        return run.planes.gather(2, places.expand(run.planes.shape[0], -1, -1))
    if run.places is not None:
        return run.places
    padding, lengths = run.padding[-1], run.lengths[-1]
    if padding is None:
        return torch.arange(max(lengths), device=device).expand(len(lengths), -1)
    return (padding.long().cumsum(1) - 1).clamp(min=0)


def block_angles(
    decoder: Any, run: Run, hidden: Tensor, positions: Tensor, cos_sin: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """RoPE (cos, sin), [B or 1, S, d] each, of the block that a stage opens.

    Rows without padding count from 0 before the stage and after it, so theirs are the beginning of
    `cos_sin`, which the stage's layer would have read. RoPE that depends on the length does not
    allow it.
    """
    counted = run.places is None and run.planes is None
    whole = run.padding[-2] is None and run.padding[-1] is None
    if counted and whole and getattr(decoder.rotary_emb, "rope_type", None) == "default":
        return cos_sin[0][:, : hidden.shape[1]], cos_sin[1][:, : hidden.shape[1]]
    made: tuple[Tensor, Tensor] = decoder.rotary_emb(hidden, position_ids=positions)
    return made
