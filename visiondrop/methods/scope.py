"""SCOPE: patches that CLS attends to and that stand for what no kept patch stands for yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from visiondrop.adapters.base import Geometry
from visiondrop.functional.diversity import Combination, cosine_matrix, coverage_order
from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.views import EncoderView


@dataclass
class Scope(PictureBudget):
    """SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214): saliency and coverage together.

    A kept set S covers patch i by c_i = max(0, max_{s in S} cos(f_s, f_i)), f [G, n, D] the
    tower's features before the projector. Patch j gains sum_i max(0, cos(f_j, f_i) - c_i); each
    step takes the highest gain_j * a_j ** alpha (`diversity.coverage_order`), a_j the attention of
    CLS in the layer that makes the features, summed over heads. Kept patches go to the LLM in
    raster order; nothing is merged.

    The defaults are the released code. Without CLS the attention is that of all patches (their
    mean row): our own stand-in, the paper has none.

    Args:
        tokens: how many patches stay.
        alpha: power of the attention; 0 is coverage alone.
        combine: "multiply" the gain by the attention or "add" it.
    """

    name = "scope"
    title = "SCOPE"
    paper = "arXiv 2510.24214"
    where = "before the LLM"
    signal = "coverage gain x CLS attention"
    before = "encoder"
    tiled = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        str(n): {"tokens": n} for n in (192, 128, 64)
    }

    tokens: int = 64
    alpha: float = 1.0
    combine: Combination = "multiply"
    positions: Positions = "renumbered"

    def check(self, geometry: Geometry) -> None:
        """Refuse budgets and powers that cannot be."""
        super().check(geometry)
        if not self.alpha >= 0:
            raise ValueError(f"{self.name}: alpha={self.alpha} is a power; give 0 or more")

    def encoder_stage(self, view: EncoderView) -> Reduction:
        """Pick, sort, drop."""
        attention = view.saliency * view.key.shape[1]
        picks = coverage_order(
            cosine_matrix(view.patches),
            self.tokens,
            weight=attention**self.alpha,
            combine=self.combine,
        )
        kept = picks.sort(dim=1).values + int(view.has_cls)
        return keep_only(view.features, view.sizes, kept)
