"""Towers whose projector makes one LLM token of several patches, seen token by token.

What a method keeps or merges there is the token that the LLM sees, so that is what it is shown:
features are decoder embeddings, and what the tower says of patches (attention, keys) is averaged
over the patches that become one token. Softmax comes first, then the average: a token's score is
the mean of its patches' scores, each among all patches of the picture (or of the video's frame).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from visiondrop.views import EncoderView

__all__ = ["MergedView", "pool_patches"]


def pool_patches(values: Tensor, groups: Tensor) -> Tensor:
    """Mean over the patches of each token: [..., p] to [..., n].

    Args:
        values: one for each of the tower's p patches (CLS left out).
        groups: [n, k], the patches of each token; tokens in the order in which the LLM sees them.
    """
    return values[..., groups.to(values.device)].mean(-1)


class MergedView(EncoderView):
    """G pictures (or tiles, or frames) of n tokens each, k patches to a token.

    `features` [G, n, D'] are decoder embeddings, `grid` is that of the tokens, and no token stands
    for CLS (`has_cls` is false), whether the tower has one or not. `saliency`, `patch_attention`
    and, where the tower has a CLS, `cls_attention` are [G, n]; `key` is [G, H, n, d]. There are no
    queries of tokens.

    Args:
        features: [G, n, D'].
        patches: the tower's own view of the same pictures, patch by patch; its features are not
            read, and may be None.
        groups: [n, k], see `pool_patches`.
        grid: (rows, columns) of tokens.
    """

    def __init__(
        self, features: Tensor, patches: EncoderView, groups: Tensor, grid: tuple[int, int]
    ) -> None:
        self.features, self.grid, self.has_cls = features, grid, False
        self.tower, self.groups, self.scale = patches, groups, patches.scale
        self.make_keys, self.make_questions = patches.make_keys, patches.make_questions
        self.pixels = patches.pixels

    def _none_of_tokens(self, what: str) -> Any:
        raise ValueError(
            f"{what} asked for, but this model makes one visual token of "
            f"{self.groups.shape[1]} patches, which have none in common; saliency, "
            "patch_attention and key are there for tokens"
        )

    @property
    def query(self) -> Tensor:  # type: ignore[override]
        """Refused: the queries of several patches have no meaningful mean."""
        return self._none_of_tokens("queries were")

    @property
    def following(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Refused, as `query`."""
        return self._none_of_tokens("the next tower layer's queries and keys were")

    @property
    def first(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Refused, as `query`."""
        return self._none_of_tokens("the first tower layer's queries and keys were")

    @cached_property
    def key(self) -> Tensor:  # type: ignore[override]
        """[G, H, n, d], the tower's keys, averaged over each token's patches."""
        key = self.tower.key[:, :, int(self.tower.has_cls) :]
        return key[:, :, self.groups.to(key.device)].mean(-2)

    @cached_property
    def cls_attention(self) -> Tensor:  # type: ignore[override]
        """[G, n], attention of the tower's CLS, where it has one."""
        return pool_patches(self.tower.cls_attention, self.groups)

    @cached_property
    def patch_attention(self) -> Tensor:  # type: ignore[override]
        """[G, n], the mean of all patches' attention."""
        return pool_patches(self.tower.patch_attention, self.groups)

    @cached_property
    def saliency(self) -> Tensor:  # type: ignore[override]
        """[G, n], that of CLS where the tower has one, else of all patches."""
        return pool_patches(self.tower.saliency, self.groups)
