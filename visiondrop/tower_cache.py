"""Vision-tower outputs kept by picture, so that a picture with many questions is encoded once.

What the tower computes depends on the picture alone: every question, method and budget may share
it.
Exact: the very tensors of the first pass are used again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from visiondrop.adapters.base import TowerOutput

__all__ = ["TowerCache"]


class TowerCache:
    """A least-recently-used store of tower outputs.

    Args:
        max_bytes: limit of what is held; 0 shares within a batch only.

    Attributes:
        hits, misses: pictures taken from the store, and pictures encoded.
    """

    def __init__(self, max_bytes: int = 0):
        self.max_bytes = max_bytes
        self.hits = self.misses = self.held_bytes = 0
        self._held: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()
        self._scale = 1.0

    def encode(
        self, names: list[str], pixel_values: Tensor, run: Callable[[Tensor], TowerOutput]
    ) -> TowerOutput:
        """The tower's output for pictures [B, 3, h, w], running it for new names only.

        Args:
            names: what tells pictures apart, one per picture; equal names mean equal pixels.
            run: the tower.

        Raises `ValueError` where names and pictures differ in number.
        """
        count = pixel_values.shape[0]
        if not names or count % len(names):
            raise ValueError(
                f"{len(names)} picture names for {count} pictures: give one name per picture, in "
                "reading order (trace.set_pictures), or none"
            )
        repeat = count // len(names)
        names = [name for name in names for _ in range(repeat)]
        new = [i for i, n in enumerate(names) if n not in self._held and n not in names[:i]]
        batch = {name: self._held[name] for name in names if name in self._held}
        for name in batch:
            self._held.move_to_end(name)
        if new:
            out = run(pixel_values if len(new) == count else pixel_values[new])
            self._scale = out.scale
            for row, i in enumerate(new):
                batch[names[i]] = (out.features[row], out.query[row], out.key[row])
                self._keep(names[i], batch[names[i]])
        self.hits += count - len(new)
        self.misses += len(new)
        features, query, key = (
            torch.stack(t) for t in zip(*map(batch.__getitem__, names), strict=True)
        )
        return TowerOutput(features, query, key, self._scale)

    def _keep(self, name: str, tensors: tuple[Tensor, ...]) -> None:
        size = sum(t.numel() * t.element_size() for t in tensors)
        if size > self.max_bytes:
            return
        # A row is a view of its batch: only a copy lets go of the others.
        self._held[name] = tuple(t.clone() for t in tensors)
        self.held_bytes += size
        while self.held_bytes > self.max_bytes:
            _, old = self._held.popitem(last=False)
            self.held_bytes -= sum(t.numel() * t.element_size() for t in old)
