"""What a method gets to see before the LLM: tensors of a group of pictures with equally many
tokens.

A method never meets the model, masks, caches or padding. G is the number of pictures in the group.
What a method does not touch is not computed. Inside the LLM: `visiondrop.decoder_views`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from visiondrop.decoder_views import DecoderView, RowAttention
from visiondrop.scoring import attention_row, column_mean

__all__ = [
    "DecoderView",
    "EncoderView",
    "ProjectedView",
    "PromptView",
    "RowAttention",
    "TowerBlockView",
]


def _missing(what: str) -> Callable[[], object]:
    def refuse() -> object:
        raise ValueError(what)

    return refuse


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
        make_keys: makes `keys`, the sample key of each picture, for seeded methods.
        make_following: makes `following`.
        pixels: [G, 3, h, w], the pictures as the tower read them (normalised).
        make_questions: makes `questions`.
        make_first: makes `first`.
    """

    features: Tensor
    query: Tensor
    key: Tensor
    scale: float
    has_cls: bool
    grid: tuple[int, int]
    make_keys: Callable[[], list[str]]
    make_following: Callable[[], tuple[Tensor, Tensor]] = field(
        default=_missing("this tower has no layer above the one that is read"),  # type: ignore[assignment]
        repr=False,
    )
    pixels: Tensor | None = field(default=None, repr=False)
    make_questions: Callable[[], list[str]] = field(
        default=_missing("no questions are known here; call trace.set_questions([...])"),  # type: ignore[assignment]
        repr=False,
    )
    make_first: Callable[[], tuple[Tensor, Tensor]] = field(
        default=_missing("the first layer of this tower cannot be read here"),  # type: ignore[assignment]
        repr=False,
    )

    @cached_property
    def keys(self) -> list[str]:
        """One string per picture that names its sample."""
        return self.make_keys()

    @cached_property
    def questions(self) -> list[str]:
        """The raw question on each picture; `ValueError` where `trace.set_questions` was not
        called.
        """
        return self.make_questions()

    @cached_property
    def following(self) -> tuple[Tensor, Tensor]:
        """(query, key), [G, H, T, d] each, of the tower layer that reads `features`: the last one
        in LLaVA. With bias, unscaled.
        """
        return self.make_following()

    @cached_property
    def first(self) -> tuple[Tensor, Tensor]:
        """(query, key), [G, H, T, d] each, of the tower's first layer, with bias, unscaled."""
        return self.make_first()

    @property
    def num_patches(self) -> int:
        """Tokens without CLS."""
        return self.features.shape[1] - int(self.has_cls)

    @property
    def patches(self) -> Tensor:
        """[G, n, D], `features` without CLS."""
        return self.features[:, int(self.has_cls) :]

    @cached_property
    def cls_attention(self) -> Tensor:
        """[G, n], attention of CLS to each patch, softmax over all T keys, mean over heads."""
        if not self.has_cls:
            raise ValueError("this vision tower has no CLS token whose attention could be read")
        row = attention_row(self.query[:, :, 0], self.key, self.scale)
        return row[:, 1:] / self.query.shape[1]

    @cached_property
    def saliency(self) -> Tensor:
        """[G, n], `cls_attention`; without CLS the mean of all patches' attention instead."""
        return self.cls_attention if self.has_cls else self.patch_attention

    @cached_property
    def patch_attention(self) -> Tensor:
        """[G, n], attention of the patches to each patch, softmax over all T keys, mean over heads
        and patches.
        """
        query = self.query[:, :, int(self.has_cls) :]
        return column_mean(query, self.key, self.scale, causal=False)

    @property
    def sizes(self) -> Tensor:
        """[G, T] ones: every token stands for itself."""
        return torch.ones(self.features.shape[:2], dtype=torch.long, device=self.features.device)


@dataclass
class ProjectedView:
    """The patches of pictures as decoder embeddings, after the projector.

    Attributes:
        features: [G, n, D'], patches only, in raster order.
        tower: what the vision tower gave for them.
    """

    features: Tensor
    tower: EncoderView

    @property
    def sizes(self) -> Tensor:
        """[G, n] ones."""
        return torch.ones(self.features.shape[:2], dtype=torch.long, device=self.features.device)

    @property
    def keys(self) -> list[str]:
        """One string per picture that names its sample."""
        return self.tower.keys

    @property
    def questions(self) -> list[str]:
        """The raw question on each picture."""
        return self.tower.questions

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.tower.grid

    @property
    def pixels(self) -> Tensor | None:
        """[G, 3, h, w], normalised."""
        return self.tower.pixels


@dataclass
class TowerBlockView:
    """A block of the vision tower, between attention and MLP.

    Attributes:
        layer: 0-based tower layer; depth: layers that will be run in all.
        hidden: [G, T, D], after the attention's residual; CLS first where there is one.
        key: [G, H, T, d], this block's keys, with bias, unscaled.
        sizes: [G, T], patches that each token stands for.
        has_cls: whether token 0 is CLS.
    """

    layer: int
    depth: int
    hidden: Tensor
    key: Tensor
    sizes: Tensor
    has_cls: bool


@dataclass
class PromptView:
    """All pictures of one prompt, or all frames of one video, as decoder embeddings, in order.

    Attributes:
        pictures: n_i x D' each; sizes: [n_i] each.
        grid: (rows, columns) of patches of a whole picture.
        pixels: [3, h, w] each, normalised; None where they were encoded elsewhere.
        keys: the sample key of each picture.
        has_cls: whether the first token of each picture is its CLS.
        video: whether these are the frames of one video, which share a method's counts.
    """

    pictures: list[Tensor]
    sizes: list[Tensor]
    grid: tuple[int, int]
    pixels: list[Tensor | None]
    keys: list[str]
    has_cls: bool = False
    video: bool = False
