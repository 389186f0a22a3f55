"""VisPruner: tokens that CLS attends to, and of the others those that resemble no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from visiondrop.adapters.base import Geometry
from visiondrop.functional.bipartite import drop_duplicates
from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.views import EncoderView


@dataclass
class VisPruner(PictureBudget):
    """VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818).

    Score a_j = mean over heads of softmax(q_CLS K^T / sqrt(d))_j in the layer that makes the
    features, [G, n]. Important: the int(tokens * important_ratio) best. Diverse: the rest, best
    first, is thinned out in rounds: even places are compared with odd places by the cosine of
    features, the `step` most similar of the even ones go (`bipartite.drop_duplicates`). Both kinds
    are sent to the LLM in raster order; nothing is merged.

    The released code stops with an error where 576 - important is odd and where a round would drop
    more than the even places hold; here the even places then hold one more, and as many go as there
    are. Everything else is its behaviour. A swap of two nearly equal similarities anywhere changes
    all later rounds: the last bits of the features decide. Checked against the released code: all
    selections with a float64 model; with float32 the important set, and all of it where the
    released code itself keeps the same patches in both precisions.

    Args:
        tokens: how many patches stay (`visual_token_num`).
        important_ratio: share of these chosen by attention.
        step: tokens dropped in each round.
    """

    name = "vispruner"
    title = "VisPruner"
    paper = "arXiv 2412.01818"
    where = "encoder"
    signal = "CLS attention + duplicate removal"
    needs = ("cls",)
    before = "encoder"
    tiled = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        str(n): {"tokens": n} for n in (192, 128, 64, 32)
    }

    tokens: int = 64
    important_ratio: float = 0.5
    step: int = 8
    positions: Positions = "renumbered"

    def check(self, geometry: Geometry) -> None:
        """Refuse budgets, shares and steps that cannot be."""
        super().check(geometry)
        if not 0 <= self.important_ratio <= 1:
            raise ValueError(
                f"{self.name}: important_ratio={self.important_ratio} is a share; give 0 to 1"
            )
        if self.step < 1:
            raise ValueError(f"{self.name}: step={self.step}; a round drops at least 1 token")

    def encoder_stage(self, view: EncoderView) -> Reduction | None:
        """Choose the important ones, thin out the rest, drop."""
        ranked = view.cls_attention.sort(dim=-1, descending=True, stable=True).indices
        important = int(self.tokens * self.important_ratio)
        diverse = drop_duplicates(
            view.patches, ranked[:, important:], self.tokens - important, self.step
        )
        kept = torch.cat([ranked[:, :important], diverse], 1).sort(dim=1).values
        return keep_only(view.features, view.sizes, kept + int(view.has_cls))
