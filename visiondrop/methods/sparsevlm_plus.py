"""SparseVLM+: SparseVLM's raters with rotary positions' own bias taken out, nothing recycled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.functional.text_rating import position_bias, rated_by_heads, text_raters
from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.drops import ListedDrops
from visiondrop.methods.sparsevlm import LAYERS
from visiondrop.reducer import Positions
from visiondrop.scoring import top_tokens
from visiondrop.tiles import Tiles
from visiondrop.views import DecoderView

HEADS = 14 / 32
"""The released code averages 14 of 32 heads."""


@dataclass
class SparseVLMPlus(ListedDrops):
    """SparseVLM+ (Zhang et al., arXiv 2410.04417), version 2 of the released code.

    Raters and layers as in `sparsevlm`. The attention A(i, j) of rater i to visual token j is
    divided by g(i, j) = (R_i 1 . R_j 1) / sqrt(d), what rotary positions alone make of a query and
    a key of ones; then only the heads with the largest total over raters and visual tokens are
    averaged. min(tokens[i], n - 1) tokens stay, in their order and at their positions; the others
    are dropped.

    Args:
        layers: `pruning_loc`: the decoder layers whose output is pruned.
        tokens: how many visual tokens stay after each.
        heads: how many heads are averaged; None for 14/32 of the model's.
        positions: "original" (released) or "renumbered".
    """

    name = "sparsevlm+"
    title = "SparseVLM+"
    paper = "arXiv 2410.04417"
    where = "LLM layers 2, 6, 15"
    signal = "text raters, position-corrected"
    reads_text = looks_back = uses_input = tiled = True
    tiles = Tiles(newlines="pool")
    official = LAYERS
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "192": {"layers": LAYERS, "tokens": (300, 200, 118)},
        "128": {"layers": LAYERS, "tokens": (238, 108, 60)},
        "96": {"layers": LAYERS, "tokens": (246, 54, 28)},
        "64": {"layers": LAYERS, "tokens": (66, 34, 20)},
    }

    layers: tuple[int, ...] = LAYERS
    tokens: tuple[int, ...] = (300, 200, 118)
    heads: int | None = None
    positions: Positions = "original"

    def check(self, geometry: Geometry) -> None:
        """Refuse impossible layers or counts."""
        super().check(geometry)
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"sparsevlm+: heads={self.heads} given; average at least 1 head")

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Let the raters score, keep; a lone token stays."""
        n = view.hidden.shape[1]
        if n < 2:
            return None
        kept = self.kept(view.layer - 1, n)
        scores = self.score(view, text_raters(view.input_visual, view.input_text))
        return keep_only(view.hidden, view.sizes, top_tokens(scores, kept))

    def score(self, view: DecoderView, raters: Tensor) -> Tensor:
        """[G, n], corrected attention of the raters in the heads that look at the picture most."""
        last, visual = view.last, slice(view.start, view.end)
        rows = last.rows(view.text_places)[..., visual]
        bias = position_bias(last.cos, last.sin, view.text_places, visual, last.scale)
        heads = self.heads or round(HEADS * rows.shape[1])
        return rated_by_heads(rows / bias[:, None], raters, max(1, heads))[0]
