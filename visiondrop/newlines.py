"""Newlines of any-resolution pictures at an LLM stage: hidden from the method, then put back.

A method sees the visual tokens without the newlines between them. What it keeps in order stays
between the newlines that stay; what it sends behind (merged tokens) comes after all of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from visiondrop.layout import Segment
from visiondrop.merging import Reduction
from visiondrop.transfer import to_device

__all__ = ["restore", "visible"]


def visible(segment: Segment, device: torch.device) -> Tensor | None:
    """[n], the places within the segment that a method sees; None where it sees all."""
    if segment.newlines is None:
        return None
    return to_device(torch.from_numpy(np.flatnonzero(~segment.newlines)), device)


def restore(
    segment: Segment, reduction: Reduction, hidden: Tensor, rule: str, in_place: bool
) -> tuple[Reduction, np.ndarray]:
    """A reduction (G = 1) of the visible tokens as one of the whole segment.

    Args:
        hidden: [length, D], the segment's hidden states.
        rule: "row" keeps a newline while a token of its row stays in order before it, "none"
            drops all, "pool" keeps all.
        in_place: whether merged tokens stand in their reference's place, see `Reducer.in_place`.

    Returns: the reduction, and which of its tokens are newlines, [m] bool.
    """
    assert segment.newlines is not None and segment.grid is not None
    seen, lines = np.flatnonzero(~segment.newlines), np.flatnonzero(segment.newlines)
    rows = segment.grid.row_of(segment.identity).cpu().numpy()
    source = reduction.source[0].cpu().numpy()
    ordered = source if in_place else source[~reduction.contextual[0].cpu().numpy()]
    ordered = seen[ordered]
    if rule == "none":
        lines = lines[:0]
    elif rule == "row":
        stays = [bool(((rows[ordered] == rows[line]) & (ordered < line)).any()) for line in lines]
        lines = lines[np.array(stays, dtype=bool)]
    count = len(source)
    at = np.searchsorted(ordered, lines)  # how many tokens in order come before each newline
    order = np.insert(np.arange(count), at, count + np.arange(len(lines)))

    device = reduction.source.device
    pick, line = (to_device(torch.from_numpy(t), device) for t in (order, lines))
    shown = to_device(torch.from_numpy(seen), device)
    moved = pick.argsort()

    def insert(tokens: Tensor, own: Tensor) -> Tensor:
        return torch.cat([tokens, own.to(tokens.dtype)])[pick][None]

    target = torch.full((segment.length,), -1, dtype=torch.long, device=device)
    went = reduction.target[0]
    target[shown] = torch.where(went < 0, -1, moved[went.clamp(min=0)])
    target[line] = moved[count:]
    whole = Reduction(
        insert(reduction.features[0], hidden[line]),
        insert(shown[reduction.source[0]], line),
        target[None],
        insert(reduction.sizes[0], torch.ones_like(line)),
        insert(reduction.contextual[0], torch.zeros_like(line)),
    )
    if reduction.score is not None:
        whole.score = insert(reduction.score[0], torch.zeros_like(line))
    return whole, order >= count
