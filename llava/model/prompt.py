"""Prompts whose picture markers (-200) become placeholder ids, one per visual token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

Ids = Tensor | Sequence[Tensor] | Sequence[Sequence[int]] | Sequence[int]


@dataclass
class ExpandedPrompt:
    """Left-padded ids as a stock model takes them.

    input_ids, attention_mask: `[B, T]` int64; labels: `[B, T]` or None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None


def split_rows(ids: Ids, attention_mask: Tensor | None = None) -> list[Tensor]:
    """The rows of a batch without their padding.

    ids: `[B, T]`, `[T]`, or a list of B one-dimensional tensors (or lists) of unequal length.
    attention_mask: `[B, T]`, 0 where `ids` is padding. A list of rows needs none.
    """
    if isinstance(ids, Tensor):
        rows = [ids] if ids.dim() == 1 else list(ids)
    else:
        items = [torch.as_tensor(row) for row in ids]
        rows = [torch.stack(items)] if items and items[0].dim() == 0 else items
    for row in rows:
        if row.dim() != 1:
            raise ValueError(
                f"prompt ids must be [batch, length] or a list of one-dimensional rows, but a row "
                f"has shape {tuple(row.shape)}"
            )
    if not rows:
        raise ValueError("the batch of prompts is empty; give at least one row of ids")
    if attention_mask is None:
        return rows
    mask = torch.as_tensor(attention_mask)
    masks = [mask] if mask.dim() == 1 else list(mask)
    shapes = [len(row) for row in rows], [len(m) for m in masks]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"attention_mask has rows of length {shapes[1]}, the prompts have {shapes[0]}; "
            "give one 0 or 1 per id"
        )
    return [row[m.to(row.device).bool()] for row, m in zip(rows, masks, strict=True)]


def count_markers(rows: Sequence[Tensor]) -> int:
    """How many pictures the rows ask for."""
    return sum(int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows)


def expand_prompt(
    rows: Sequence[Tensor],
    tokens_per_picture: Sequence[int],
    image_token_id: int,
    pad_token_id: int,
    labels: Sequence[Tensor] | None = None,
) -> ExpandedPrompt:
    """Writes `tokens_per_picture[i]` placeholders over the i-th marker, in reading order.

    labels: per row, as long as its ids; placeholders and padding get `IGNORE_INDEX`.
    Raises ValueError where markers and pictures differ in number.
    """
    wanted = count_markers(rows)
    if wanted != len(tokens_per_picture):
        raise ValueError(
            f"the prompts hold {wanted} picture marker(s) ({IMAGE_TOKEN_INDEX}) but "
            f"{len(tokens_per_picture)} picture(s) were given; give one picture per marker, in "
            "reading order over the batch"
        )
    counts = iter(tokens_per_picture)
    full_rows: list[Tensor] = []
    full_labels: list[Tensor] = []
    for index, row in enumerate(rows):
        marked = row == IMAGE_TOKEN_INDEX
        repeats = torch.ones_like(row)
        repeats[marked] = torch.tensor(
            [next(counts) for _ in range(int(marked.sum()))], dtype=row.dtype, device=row.device
        )
        full_rows.append(row.masked_fill(marked, image_token_id).repeat_interleave(repeats))
        if labels is not None:
            label = labels[index].masked_fill(marked, IGNORE_INDEX)
            full_labels.append(label.repeat_interleave(repeats))
    length = max(len(row) for row in full_rows)

    def left_pad(values: Sequence[Tensor], fill: int) -> Tensor:
        out = values[0].new_full((len(values), length), fill)
        for target, value in zip(out, values, strict=True):
            target[length - len(value) :] = value
        return out

    return ExpandedPrompt(
        input_ids=left_pad(full_rows, pad_token_id),
        attention_mask=left_pad([torch.ones_like(row) for row in full_rows], 0),
        labels=left_pad(full_labels, IGNORE_INDEX) if labels is not None else None,
    )
