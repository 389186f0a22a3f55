"""DivPrune: the patches that are as far from each other as can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from visiondrop.functional.diversity import cosine_matrix, max_min_order
from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.views import ProjectedView


@dataclass
class DivPrune(PictureBudget):
    """DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): max-min diversity, text-free.

    Distance D_ij = 1 - cos(e_i, e_j) of the projected patches e [G, n, D'], the decoder's input
    embeddings. The subset S maximises min over pairs in S of D_ij, greedily: first
    argmax_i min_{j != i} D_ij, then argmax_i min_{s in S} D_is (`diversity.max_min_order`). Kept
    patches go to the LLM in raster order; nothing is merged.

    As in the released code, whose SUBSET_RATIO is tokens = round(ratio * n). There a token may be
    picked twice where all that is left are exact duplicates; here it is not.

    Args:
        tokens: how many patches stay.
    """

    name = "divprune"
    title = "DivPrune"
    paper = "arXiv 2503.02175"
    where = "before the LLM"
    signal = "max-min cosine diversity"
    before = "projected"
    tiled = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ratio0.098": {"tokens": 56},
        **{str(n): {"tokens": n} for n in (192, 128, 64)},
    }

    tokens: int = 64
    positions: Positions = "renumbered"

    def projected_stage(self, view: ProjectedView) -> Reduction:
        """Pick, sort, drop."""
        picks = max_min_order(1 - cosine_matrix(view.features), self.tokens)
        return keep_only(view.features, view.sizes, picks.sort(dim=1).values)
