"""ToMe as AuroraCap uses it: similar tokens are merged in every block of the vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from visiondrop.adapters.base import Geometry
from visiondrop.functional.bipartite import even_merges, merge_pairs
from visiondrop.merging import Placement, Reduction
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.views import TowerBlockView


@dataclass
class ToMe(PictureBudget):
    """Token merging (Bolya et al., ICLR 2023, arXiv 2210.09461) as in AuroraCap (arXiv 2410.03051).

    In every tower block, between attention and MLP: tokens [G, T, D] at even places form set a,
    those at odd places set b; each token of a finds the partner in b with the highest cosine of
    head-averaged keys; the r best pairs become the mean weighted by how many patches each token
    stands for. Attention adds log(size) to the logits of a merged token. CLS stands at an even
    place and is never merged; it is dropped before the projector, as in the unpruned model.

    r is chosen so that exactly `tokens` come out of the blocks that are run, and is as even over
    the blocks as halving allows (they differ by one at most, unless `tokens` is so small that late
    blocks have not enough left). AuroraCap's r = int(n (1 - ratio) / layers), the same in every
    block, is `ToMe.from_ratio(ratio)`.

    Checked against the definition, written as loops; there are no figures of a released code.

    Args:
        tokens: visual tokens that come out.
        placement: "appended": after each block what is left of set a, then set b, so that the LLM
            gets the tokens in no spatial order (as released); "in_place": in raster order, which
            also changes who is compared with whom from the second block on.
    """

    name = "tome"
    title = "ToMe"
    paper = "arXiv 2210.09461"
    where = "inside the ViT"
    signal = "bipartite merging, sizes carried"
    needs = ("patches",)
    before = "tower"
    flops_by_ledger = False  # the tower is cheaper, block by block
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"auroracap-0.1": {"tokens": 93}}

    tokens: int = 64
    placement: Placement = "appended"
    positions: Positions = "renumbered"

    @classmethod
    def from_ratio(
        cls,
        ratio: float,
        *,
        num_patches: int = 576,
        tower_layers: int = 24,
        read_layers: int = 23,
        **options: Any,
    ) -> ToMe:
        """AuroraCap's `visual_token_merge_ratio`, the share meant to be kept.

        Its r counts all `tower_layers`, of which `read_layers` make the features: more is kept.
        """
        merged = read_layers * int(num_patches * (1 - ratio) / tower_layers)
        return cls(tokens=num_patches - merged, **options)

    def check(self, geometry: Geometry) -> None:
        """Refuse budgets that halving in every block does not reach."""
        super().check(geometry)
        if geometry.tower_layers:
            even_merges(geometry.num_patches, self.tokens, geometry.tower_layers)

    def tower_block(self, view: TowerBlockView) -> Reduction | None:
        """Merge this block's share of the pairs."""
        protected = int(view.has_cls)
        here = view.hidden.shape[1] - protected
        merges = even_merges(here, self.tokens, view.depth - view.layer)[0]
        if merges == 0:
            return None
        return merge_pairs(
            view.hidden,
            view.sizes,
            view.key.mean(1),
            merges,
            protected=protected,
            placement=self.placement,
        )
