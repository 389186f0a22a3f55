"""Where the visual tokens of a batch are, on the host.

All lengths are known before any selection is (budgets are static), so a reduction re-packs a batch
with one gather and never waits for the device. Rows are packed left-padded: the last token stands
in the last column.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from visiondrop.pictures import Portion
from visiondrop.trace import Grid
from visiondrop.transfer import to_device

__all__ = ["Row", "Segment", "pack", "padding_mask"]


@dataclass
class Segment:
    """The visual tokens of one picture within a row.

    Attributes:
        start: place of the first, counted from the row's first real token.
        length: how many.
        picture: index of the picture in its prompt.
        identity: [length] patch ids (CLS -1; a merged token has its reference's).
        sizes: [length] patches that each stands for.
        key: the sample's key.
        full: visual tokens of the picture that entered decoder layer 0 (`encoder.Picture.full`).
        score: [length], what an earlier stage gave each token to carry, see `Reduction`.
        grid, newlines, share: of an any-resolution picture or a video, see `encoder.Picture`.
        shape: of a picture of native resolution, see `encoder.Picture`.
        portion: of the counts of LLM stages, see `encoder.Picture`.
    """

    start: int
    length: int
    picture: int
    identity: Tensor
    sizes: Tensor
    key: str | None
    full: int
    score: Tensor | None = None
    grid: Grid | None = None
    newlines: np.ndarray | None = None
    share: float = 1.0
    shape: tuple[int, int, int] | None = None
    portion: Portion | None = None

    @property
    def newline_count(self) -> int:
        """Newlines among the tokens, whether methods see them or not."""
        if self.newlines is not None:
            return int(self.newlines.sum())
        return 0 if self.grid is None else int((self.identity >= self.grid.first_newline).sum())


@dataclass
class Row:
    """One sample: its real tokens and the pictures among them."""

    length: int
    segments: list[Segment] = field(default_factory=list)

    @property
    def visual(self) -> int:
        """Visual tokens of the row."""
        return sum(segment.length for segment in self.segments)


def padding_mask(rows: list[Row], device: torch.device) -> Tensor | None:
    """[B, S] bool, false at left padding; None where all rows are equally long."""
    lengths = [row.length for row in rows]
    width = max(lengths)
    if min(lengths) == width:
        return None
    columns = np.arange(width)[None]
    return to_device(torch.from_numpy(columns >= width - np.array(lengths)[:, None]), device)


def pack(pool: Tensor, index: list[np.ndarray]) -> Tensor:
    """Rows of `pool` [M, ...] picked by `index` (one array per sample), left-padded: [B, S, ...].

    Padding repeats the pool's first row; masks hide it.
    """
    width = max(len(i) for i in index)
    table = np.zeros((len(index), width), dtype=np.int64)
    for row, picked in enumerate(index):
        table[row, width - len(picked) :] = picked
    rows = to_device(torch.from_numpy(table.reshape(-1)), pool.device)
    return pool.index_select(0, rows).view(*table.shape, *pool.shape[1:])
