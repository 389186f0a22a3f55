"""HiRED: a budget for each partition of a picture, spent on what CLS attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.scoring import top_tokens
from visiondrop.views import EncoderView


@dataclass
class HiRED(PictureBudget):
    """HiRED (Arif et al., AAAI 2025, arXiv 2408.10945), training-free and text-free.

    A picture of one tile (LLaVA-1.5), as released: score_j = sum over heads of
    softmax(q_CLS K^T / sqrt(d))_j in the layer that makes the features; the best
    int(n * token_budget_rate) of n patches stay, in spatial order. That is FasterVLM's choice; what
    HiRED adds, a budget for each partition (`partition_budgets`), is for any-resolution pictures,
    on which this class does not run yet.

    Args:
        tokens: patches kept; `HiRED.from_rate` takes the released code's `token_budget_rate`, whose
            0.2 is 115 of 576 (the default).
        positions: "renumbered" from 0 (released), or "original".
    """

    name = "hired"
    title = "HiRED"
    paper = "arXiv 2408.10945"
    where = "encoder"
    signal = "CLS attention, budget per partition"
    needs = ("cls",)
    presets = {
        "rate0.2": {"tokens": 115},
        "rate0.4": {"tokens": 230},
        **{str(n): {"tokens": n} for n in (192, 128, 64)},
    }

    tokens: int = 115
    positions: Positions = "renumbered"

    @classmethod
    def from_rate(cls, token_budget_rate: float, geometry: Geometry) -> HiRED:
        """The released code's count, int(n * token_budget_rate)."""
        return cls(tokens=int(geometry.num_patches * token_budget_rate))

    def encoder_stage(self, view: EncoderView) -> Reduction:
        """Keep the best patches of G pictures: [G, tokens, D]."""
        kept = top_tokens(view.cls_attention, self.tokens) + int(view.has_cls)
        return keep_only(view.features, view.sizes, kept)


def partition_budgets(
    attention: Tensor,
    grid: TileGrid,
    token_budget_rate: float = 0.2,
    alpha: float = 0.5,
    rule: Literal["released", "paper"] = "released",
) -> list[int]:
    """How many tokens the thumbnail and each crop of an any-resolution picture may keep.

    Of all int(T n rate) tokens of T tiles with n patches, the thumbnail gets int(total * alpha), at
    most n; the rest is shared among the crops by how much the thumbnail shows there, judged by the
    CLS attention of an early tower layer; each share is rounded down and at most n.
    "paper": a crop's weight is the attention summed over its part of the thumbnail. "released": the
    int(n (1 - alpha)) best patches are marked, and a crop's weight counts the marks in its run of
    n / crops patches in reading order (runs, not the crop's rectangle: a strip of the thumbnail).

    Checked against an independent loop; the released rule was read from the code, not run.

    Args:
        attention: [n], CLS attention of the thumbnail in tower layer 0, summed over heads.

    Returns: the budgets of the thumbnail and of each crop.
    """
    n, crops = attention.shape[0], grid.crops
    total = int((crops + 1) * n * token_budget_rate)
    thumbnail = min(int(total * alpha), n)
    rest = min(total - thumbnail, crops * n)
    if rule == "paper":
        weight = grid.crop_sums(attention)
    else:
        if n % crops:
            raise ValueError(
                f"the released rule cuts {n} patches into {crops} equal runs, which do not come "
                'out even; use rule="paper"'
            )
        marks = torch.zeros_like(attention)
        marks[top_tokens(attention[None], int(n * (1 - alpha)))[0]] = 1
        weight = marks.view(crops, -1).sum(1)
    shares = (weight / weight.sum() * rest).long().clamp(max=n)
    return [thumbnail, *shares.tolist()]
