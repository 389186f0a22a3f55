"""HoloV: every part of the picture gets a share of the tokens, by attention and variety."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from visiondrop.adapters.base import Geometry
from visiondrop.functional.crops import Shape, members, quotas, varied_scores
from visiondrop.merging import Reduction, gather, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.views import ProjectedView


@dataclass
class HoloV(PictureBudget):
    """HoloV (Zou et al., NeurIPS 2025, arXiv 2510.02912): a quota of tokens for each crop.

    Crops are parts of the one grid of patches, not of the picture in pixels. In a crop of m patches
    with projected features e, v_j is the variance of the cosines of j with the crop's others
    (/ (m - 1), the zero in j's own place counted in, as released), a_j the attention of CLS, mean
    over heads, in the layer that makes the features. Scores s_j = 1000 a_j + beta v_j * mean(1000
    |a|) / (mean |v| + 1e-6); a crop's quota is floor(tokens * w), w its share of the sum of crop
    means of s, and the crops of greatest w get one more until `tokens` are given out. A crop keeps
    its quota of patches by falling a. To the LLM: crop by crop, in that order; nothing is merged.

    The defaults are the released code, where 1. crops are runs of the raster order, 2. the scaling
    cancels: a crop's mean score is its mean attention times 1 + beta, but for the 1e-6, and 3. a
    quota beyond a crop's size is lost to zero vectors. 3. is not followed: what is over goes to the
    other crops, greatest w first. Without CLS, a is the attention of all patches (their mean row):
    our own stand-in.

    Args:
        tokens: how many patches stay.
        crops: number of crops, at most half the patches.
        beta: weight of the variance.
        shape: "runs" of the raster order, of equal length but for one (released), or "windows" of
            the grid.
        rank: patches of a crop by "attention" (released) or by "score" s_j.
        order: patches go to the LLM "by_crop" (released) or in "raster" order.
    """

    name = "holov"
    title = "HoloV"
    paper = "arXiv 2510.02912"
    where = "before the LLM"
    signal = "quota per crop, variance-modulated attention"
    before = "projected"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        str(n): {"tokens": n} for n in (192, 128, 64)
    }

    tokens: int = 64
    crops: int = 16
    beta: float = 0.09
    shape: Shape = "runs"
    rank: Literal["attention", "score"] = "attention"
    order: Literal["by_crop", "raster"] = "by_crop"
    positions: Positions = "renumbered"

    def check(self, geometry: Geometry) -> None:
        """Refuse budgets, crops and weights that cannot be."""
        super().check(geometry)
        most = geometry.num_patches // 2
        if type(self.crops) is not int or not 1 <= self.crops <= most:
            raise ValueError(f"{self.name}: crops={self.crops}; give 1 to {most}, half the patches")
        if not self.beta >= 0:
            raise ValueError(f"{self.name}: beta={self.beta} is a weight; give 0 or more")
        members(geometry.grid, self.crops, self.shape)

    def projected_stage(self, view: ProjectedView) -> Reduction:
        """Scores, quotas, the best of each crop."""
        n, device = view.features.shape[1], view.features.device
        index = members(view.grid, self.crops, self.shape).to(device)
        groups, valid = len(view.features), index < n
        crop = index.flatten().expand(groups, -1)
        blank = torch.nn.functional.pad(view.features, (0, 0, 0, 1))
        features = gather(blank, crop).unflatten(1, index.shape)
        attention = torch.nn.functional.pad(view.tower.saliency, (0, 1))
        attention = attention.gather(1, crop).unflatten(1, index.shape)

        scores = varied_scores(features, attention * 1e3, valid, self.beta)
        size = valid.sum(1)
        quota = quotas(scores.sum(2) / size, size, self.tokens)
        ranked = attention if self.rank == "attention" else scores
        places = ranked.masked_fill(~valid, -torch.inf).sort(dim=-1, descending=True, stable=True)[
            1
        ]
        # A crop that is kept whole stays in raster order.
        whole = (quota >= size)[..., None]
        places = torch.where(whole, torch.arange(index.shape[1], device=device), places)
        best = index.expand(groups, -1, -1).gather(2, places).flatten(1)
        taken = torch.arange(index.shape[1], device=device) < quota[..., None]
        first = taken.flatten(1).to(torch.uint8).sort(dim=1, descending=True, stable=True)[1]
        kept = best.gather(1, first[:, : self.tokens])
        if self.order == "raster":
            kept = kept.sort(dim=1).values
        return keep_only(view.features, view.sizes, kept)
