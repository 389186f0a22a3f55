"""What a method gets to see inside the LLM: the visual tokens of a picture, and on demand the row
around them.

G is the number of pictures in the group. Rows are without padding and end with the prompt: tokens
generated later (`use_cache=False`) are not shown, so that a choice never changes while decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from visiondrop.scoring import CHUNK_ELEMENTS, expand_heads, wide
from visiondrop.transfer import to_device

__all__ = ["DecoderView", "RowAttention"]

Places = Sequence[int] | slice | Tensor


@dataclass
class RowAttention:
    """The attention of one decoder layer over whole rows of N tokens, by the query rows asked for.

    Attributes:
        hidden: [G, N, D], what the layer reads.
        cos, sin: [G, N, d], RoPE at the present positions.
        project: (hidden, cos, sin, what) -> heads after norm and RoPE; what is "query" or "key".
        scale: 1 / sqrt(d).
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    project: Callable[[Tensor, Tensor, Tensor, str], Tensor]
    scale: float

    def _index(self, places: Places) -> Tensor:
        device = self.hidden.device
        if isinstance(places, slice):
            return torch.arange(self.hidden.shape[1], device=device)[places]
        return to_device(torch.as_tensor(places), device)

    @cached_property
    def key(self) -> Tensor:
        """[G, H_kv, N, d], keys of all tokens after RoPE."""
        return self.project(self.hidden, self.cos, self.sin, "key")

    def query(self, places: Places) -> Tensor:
        """[G, H, r, d], queries of the r tokens at `places` after RoPE."""
        at = self._index(places)
        return self.project(self.hidden[:, at], self.cos[:, at], self.sin[:, at], "query")

    def rows(self, places: Places) -> Tensor:
        """[G, H, r, N], attention of the r tokens at `places` over the row: causal, post-softmax,
        in float32 (float64 in a float64 model). Memory is r rows, so keep r small.
        """
        at = self._index(places)
        query = self.query(at)
        key = expand_heads(self.key, query.shape[1])
        logits = wide(query @ key.transpose(-1, -2)) * self.scale
        later = torch.arange(key.shape[2], device=at.device)[None] > at[:, None]
        return logits.masked_fill(later, float("-inf")).softmax(-1)

    def mean_row(self, places: Places) -> Tensor:
        """[G, N], `rows` meaned over heads and over the r tokens at `places`, at least one. In
        chunks: memory is a few rows, however many are asked for.
        """
        at = self._index(places)
        groups, total = self.hidden.shape[:2]
        heads = self.query(at[:1]).shape[1]
        chunk = max(1, CHUNK_ELEMENTS // max(1, groups * heads * total))
        parts = [self.rows(part).mean(1).sum(1) for part in at.split(chunk)]
        return torch.stack(parts).sum(0) / len(at)


@dataclass
class DecoderView:
    """The visual tokens of a picture as decoder layer `layer` is about to read them.

    Attributes:
        layer: 0-based decoder layer.
        hidden: [G, n, D], hidden states of the n visual tokens in their present order.
        sizes: [G, n], patches that each token stands for.
        project: computes (query [G, H, n, d] of the visual tokens, key [G, H_kv, N, d] of all N
            tokens up to the picture's end), both after RoPE at the present positions.
        scale: 1 / sqrt(d).
        make_keys: makes `keys`, the sample key of each picture, for seeded methods.
        identity: [G, n], patch id of each token (a merged one has its reference's).
        grid: (rows, columns) of a whole picture; full: visual tokens that entered layer 0.
        score: [G, n], what an earlier stage gave each token to carry (`Reduction.score`), or None.
        row: what `reads_text`, `looks_back` and `uses_input` ask for; None otherwise.
        places: [n], where the visual tokens stand among the N, if the newlines of an any-resolution
            picture, which a method does not see, stand between them; None: they are the last n.
    """

    layer: int
    hidden: Tensor
    sizes: Tensor
    project: Callable[[], tuple[Tensor, Tensor]]
    scale: float
    make_keys: Callable[[], list[str]]
    identity: Tensor
    grid: tuple[int, int]
    full: int
    score: Tensor | None = None
    row: RowView | None = field(default=None, repr=False)
    places: Tensor | None = None

    @cached_property
    def keys(self) -> list[str]:
        """One string per picture that names its sample."""
        return self.make_keys()

    @cached_property
    def _projected(self) -> tuple[Tensor, Tensor]:
        return self.project()

    @property
    def query(self) -> Tensor:
        """[G, H, n, d], queries of the visual tokens after RoPE."""
        return self._projected[0]

    @property
    def key(self) -> Tensor:
        """[G, H_kv, N, d], keys of all tokens up to the picture's end after RoPE."""
        return self._projected[1]

    @property
    def visual_key(self) -> Tensor:
        """[G, H_kv, n, d], keys of the visual tokens."""
        places = slice(-self.hidden.shape[1], None) if self.places is None else self.places
        return self.key[:, :, places]

    # ------------------------------------------------------------------ the row around them

    @property
    def _row(self) -> RowView:
        if self.row is None:
            raise ValueError(
                "this view ends with the picture: set reads_text, looks_back or uses_input on the "
                "method's class to see the row around it"
            )
        return self.row

    @property
    def start(self) -> int:
        """Place of the first visual token in the row."""
        return self._row.start

    @property
    def end(self) -> int:
        """Place after the last visual token."""
        return self._row.start + self.hidden.shape[1]

    @property
    def length(self) -> int:
        """Tokens of the row's prompt, without padding."""
        return self._row.hidden.shape[1]

    @property
    def row_hidden(self) -> Tensor:
        """[G, N, D], hidden states of the whole row."""
        return self._row.hidden

    @property
    def this(self) -> RowAttention:
        """Attention of layer `layer`, which is about to run."""
        return self._row.this

    @property
    def last(self) -> RowAttention:
        """Attention of layer `layer` - 1, which just ran (class attribute `looks_back`)."""
        if self._row.last is None:
            raise ValueError("set looks_back on the method's class, and no stage before layer 1")
        return self._row.last

    @property
    def input_visual(self) -> Tensor:
        """[G, n0, D], the picture's tokens as they entered layer 0 (`uses_input`)."""
        return self._input[0]

    @property
    def input_text(self) -> Tensor:
        """[G, a, D], input embeddings of the text tokens after the picture (`uses_input`)."""
        return self._input[1]

    @property
    def _input(self) -> tuple[Tensor, Tensor]:
        if self._row.input is None:
            raise ValueError("set uses_input on the method's class to see input embeddings")
        return self._row.input

    @property
    def text_places(self) -> Tensor:
        """[a], places of the text tokens after the picture in the present row, rising: those of
        `input_text`.
        """
        return self._row.text_places

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The decoder's last norm."""
        return self._row.norm(hidden)


@dataclass
class RowView:
    """The row around a picture; see `DecoderView`."""

    start: int
    hidden: Tensor
    text_places: Tensor
    this: RowAttention
    last: RowAttention | None
    input: tuple[Tensor, Tensor] | None
    norm: Callable[[Tensor], Tensor]
