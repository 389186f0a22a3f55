"""What a method gets to see at a stage: tensors of a group of pictures with equally many tokens.

A method never meets the model, masks, caches or padding. G is the number of pictures in the group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["DecoderView", "EncoderView"]


@dataclass
class EncoderView:
    """The vision tower's output, before the projector.

    Attributes:
        features: [G, T, D], the hidden states that the projector would read; CLS first where there
            is one.
        query, key: [G, H, T, d], projections (with bias, unscaled) of the layer that made
            `features`.
        scale: 1 / sqrt(d).
        has_cls: whether token 0 is CLS.
        grid: (rows, columns) of patches.
        keys: the sample key of each picture, for seeded methods.
    """

    features: Tensor
    query: Tensor
    key: Tensor
    scale: float
    has_cls: bool
    grid: tuple[int, int]
    make_keys: Callable[[], list[str]]

    @cached_property
    def keys(self) -> list[str]:
        """One string per picture that names its sample."""
        return self.make_keys()

    @property
    def num_patches(self) -> int:
        """Tokens without CLS."""
        return self.features.shape[1] - int(self.has_cls)

    @property
    def sizes(self) -> Tensor:
        """[G, T] ones: every token stands for itself."""
        return torch.ones(self.features.shape[:2], dtype=torch.long, device=self.features.device)


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
        keys: the sample key of each picture, for seeded methods.
    """

    layer: int
    hidden: Tensor
    sizes: Tensor
    project: Callable[[], tuple[Tensor, Tensor]]
    scale: float
    make_keys: Callable[[], list[str]]

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
        return self.key[:, :, -self.hidden.shape[1] :]
