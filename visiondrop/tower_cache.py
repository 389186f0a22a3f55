"""Vision-tower outputs kept by picture, so that a picture with many questions is encoded once.

What the tower computes depends on the picture alone: every question, method and budget may share
it.
Exact: the very tensors of the first pass are used again.  Rounding depends on which pictures pass
the tower together; with `alone`, that does not depend on what the store happens to hold.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from visiondrop.adapters.base import TowerOutput

__all__ = ["TowerCache"]


class TowerCache:
    """A least-recently-used store of tower outputs, of one model: names tell pictures apart, not
    towers.

    Args:
        max_bytes: limit of what is held; 0 shares within a batch only.
        alone: names of pictures that come in several batches; None where nobody says. These pass
            the tower one by one, the others of a batch together or not at all: a picture's output
            is then the same, bit for bit, in whatever order batches come and whatever was held.
        hold_all: false to hold those of `alone` only, as no others come again.

    Attributes:
        hits, misses: pictures taken from the store, and pictures encoded.
    """

    def __init__(
        self,
        max_bytes: int = 0,
        alone: frozenset[str] | None = None,
        hold_all: bool = True,
    ):
        self.max_bytes, self.alone, self.hold_all = max_bytes, alone, hold_all
        self.hits = self.misses = self.held_bytes = 0
        self._held: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()
        self._scale = 1.0

    def encode(
        self,
        names: list[str],
        pixel_values: Tensor,
        run: Callable[[Tensor], TowerOutput],
        owners: list[str] | None = None,
    ) -> TowerOutput:
        """The tower's output for pictures [B, 3, h, w], running it for new names only.

        Args:
            names: what tells pictures apart, one per picture; equal names mean equal pixels.
            run: the tower.
            owners: for tiles, the picture that each is of, by the names of `alone`: the tiles of
                such a picture pass the tower together. The names themselves by default.

        Raises `ValueError` where names and pictures differ in number.
        """
        count = pixel_values.shape[0]
        if not names or count % len(names):
            raise ValueError(
                f"{len(names)} picture names for {count} pictures: give one name per picture, in "
                "reading order (trace.set_pictures), or none"
            )
        repeat = count // len(names)
        owners = [name for name in owners or names for _ in range(repeat)]
        names = [name for name in names for _ in range(repeat)]
        passes = self._passes(names, owners)
        batch = {name: self._held[name] for name in names if name in self._held}
        for name in batch:
            self._held.move_to_end(name)
        for new in passes:
            out = run(pixel_values if len(new) == count else pixel_values[new])
            self._scale = out.scale
            for row, i in enumerate(new):
                batch[names[i]] = (out.features[row], out.query[row], out.key[row])
                self._keep(names[i], owners[i], batch[names[i]])
        encoded = sum(map(len, passes))
        self.hits += count - encoded
        self.misses += encoded
        features, query, key = (
            torch.stack(t) for t in zip(*map(batch.__getitem__, names), strict=True)
        )
        return TowerOutput(features, query, key, self._scale)

    def _passes(self, names: list[str], owners: list[str]) -> list[list[int]]:
        """The rows that have to pass the tower, pass by pass."""
        first = [i for i, name in enumerate(names) if name not in names[:i]]
        new = {i for i in first if names[i] not in self._held}
        if self.alone is None:
            return [sorted(new)] if new else []
        groups: dict[str | None, list[int]] = {None: []}
        for i in first:
            groups.setdefault(owners[i] if owners[i] in self.alone else None, []).append(i)
        return [rows for rows in groups.values() if not new.isdisjoint(rows)]

    def _keep(self, name: str, owner: str, tensors: tuple[Tensor, ...]) -> None:
        if name in self._held or not (self.hold_all or owner in (self.alone or ())):
            return
        size = sum(t.numel() * t.element_size() for t in tensors)
        if size > self.max_bytes:
            return
        # A row is a view of its batch: only a copy lets go of the others.
        self._held[name] = tuple(t.clone() for t in tensors)
        self.held_bytes += size
        while self.held_bytes > self.max_bytes:
            _, old = self._held.popitem(last=False)
            self.held_bytes -= sum(t.numel() * t.element_size() for t in old)
