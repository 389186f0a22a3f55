"""Selection by duplication against a few pivots, as pure tensor functions on G pictures.

Source: DART (arXiv 2502.11494), released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visiondrop.scoring import wide

__all__ = ["least_similar", "set_order"]

RUN = 9
"""Slots that a Python set looks at one after the other before it jumps."""


def _probes(keys: Tensor, slots: int) -> Tensor:
    """[G, k, p], the slots that a Python set of `slots` slots tries for small ints, in turn; -1
    where none is tried.
    """
    mask, at, rest, tried = slots - 1, keys % slots, keys, []
    run = torch.arange(RUN + 1, device=keys.device)
    # Once an int's 30 bits are used up (6 jumps), the jumps i -> 5 i + 1 meet ever new slots, and
    # at most k of them are taken.
    for _ in range(7 + keys.shape[1]):
        near = at[..., None] + run
        tried.append(torch.where((run == 0) | (at[..., None] + RUN <= mask), near, -1))
        rest = rest >> 5
        at = (at * 5 + 1 + rest) & mask
    return torch.cat(tried, -1)


def _insert(table: Tensor, probes: Tensor, place: Tensor) -> Tensor:
    """The table [G, slots] (places in the list of keys, -1 free) with `place` [G, 1] put in."""
    tried = probes.gather(1, place[..., None].expand(-1, -1, probes.shape[-1])).squeeze(1)
    free = (tried >= 0) & (table.gather(1, tried.clamp(min=0)) < 0)
    first = free.to(torch.uint8).argmax(1, keepdim=True)
    return table.scatter(1, tried.gather(1, first), place)


def set_order(keys: Tensor) -> Tensor:
    """The order in which a Python set, built from a list of small ints, gives them back.

    CPython's hash table: 8 slots to begin with, grown to the power of two above four times the
    entries as soon as 5 entries >= 3 (slots - 1); an int's first slot is itself modulo the table's
    size. Runs on the device, without a round trip.

    Args:
        keys: [G, k], distinct ints from 0 to 2^30, in the order of insertion.

    Returns: [G, k], places in `keys`.
    """
    slots, probes = 8, _probes(keys, 8)
    table = keys.new_full((keys.shape[0], slots), -1)
    for column in range(keys.shape[1]):
        table = _insert(table, probes, keys.new_full((keys.shape[0], 1), column))
        entries = column + 1
        if entries * 5 >= (slots - 1) * 3:
            while slots <= entries * 4:
                slots *= 2
            probes, order = _probes(keys, slots), _occupied(table, entries)
            table = keys.new_full((keys.shape[0], slots), -1)
            for place in order.split(1, dim=1):
                table = _insert(table, probes, place)
    return _occupied(table, keys.shape[1])


def _occupied(table: Tensor, entries: int) -> Tensor:
    """[G, entries], what stands in the table's taken slots, in slot order."""
    first = (table < 0).to(torch.uint8).sort(dim=1, stable=True).indices[:, :entries]
    return table.gather(1, first)


def least_similar(
    tokens: Tensor, pivots: Tensor, taken: Tensor, counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """For each pivot in turn, the tokens not yet taken with the lowest cosine similarity to it.

    Args:
        tokens: [G, n, D]; pivots: [G, p, D], in the order in which they choose.
        taken: [G, n] bool, tokens that are not to be had.
        counts: how many tokens each of the p pivots takes.

    Returns: the choice [G, sum(counts)], by pivot; taken [G, n] with it.
    """
    unit = torch.nn.functional.normalize(wide(tokens), dim=-1)
    similarity = unit @ torch.nn.functional.normalize(wide(pivots), dim=-1).transpose(1, 2)
    chosen = []
    for pivot, count in enumerate(counts):
        open_to = similarity[..., pivot].masked_fill(taken, torch.inf)
        choice = open_to.sort(dim=-1, stable=True).indices[:, :count]
        taken = taken.scatter(1, choice, True)
        chosen.append(choice)
    return torch.cat(chosen, 1), taken
