"""DART: drop the visual tokens that duplicate a few pivots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.functional.pivots import least_similar, set_order
from visiondrop.merging import Reduction, gather, keep_only
from visiondrop.methods.drops import OneDrop
from visiondrop.reducer import Positions
from visiondrop.scoring import wide
from visiondrop.tiles import Tiles
from visiondrop.views import DecoderView


@dataclass
class DART(OneDrop):
    """DART, duplication-aware reduction of tokens (Wen et al., EMNLP 2025, arXiv 2502.11494).

    Before layer K: pivots are the visual and the text tokens (after the picture) whose keys in
    layer K - 1 (after RoPE, all heads) have the largest L1 norm. In turn each pivot adds the visual
    tokens, of those not yet taken, with the lowest cosine similarity to it, in hidden states after
    the decoder's final norm. Visual pivots and added tokens stay, in their order and at their
    positions.

    As released, m = int((1 - reduction_ratio) N / pivots) tokens are added by each pivot, and the
    visual pivots come on top: 124 tokens for "0.778" of 576.

    Args:
        layer: K, at least 1.
        reduction_ratio: nominal share of the picture's tokens that is dropped.
        tokens: how many visual tokens stay in all, pivots included, instead of `reduction_ratio`;
            what the pivots cannot share evenly goes to the first of them.
        visual_pivots, text_pivots: how many.
        order: in which the pivots choose. "set" (released): as a Python set of their places in the
            prompt gives them, a hash table's order, and places counted without padding; "norm":
            visual pivots, then text pivots, by falling norm.
        positions: "original" (released) or "renumbered".
    """

    name = "dart"
    title = "DART"
    paper = "arXiv 2502.11494"
    where = "LLM layer 2"
    signal = "duplication against pivots"
    reads_text = looks_back = tiled = True
    tiles = Tiles(newlines="pool")
    counted_by = ("reduction_ratio", "tokens")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "0.778": {"reduction_ratio": 0.778},
        "192": {"reduction_ratio": 0.66666},
        "128": {"reduction_ratio": 0.777777},
        "64": {"reduction_ratio": 0.88888},
    }

    layer: int = 2
    reduction_ratio: float = 0.778
    tokens: int | None = None
    visual_pivots: int = 4
    text_pivots: int = 4
    order: Literal["set", "norm"] = "set"
    positions: Positions = "original"

    @classmethod
    def least(cls, options: Mapping[str, Any]) -> int:
        """The visual pivots."""
        return options.get("visual_pivots", cls.visual_pivots)

    @classmethod
    def from_nominal(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """As the authors' tables count: tokens // pivots for each pivot, visual pivots not counted
        (64 keeps 68 after layer K).
        """
        visual = options.get("visual_pivots", cls.visual_pivots)
        pivots = visual + options.get("text_pivots", cls.text_pivots)
        kept = visual + pivots * (round(tokens) // pivots)
        return super().from_nominal(kept, num_layers=num_layers, **options)

    def kept(self, total: int) -> int:
        """How many of a picture's `total` tokens stay, pivots included."""
        if self.tokens is not None:
            return self.tokens
        pivots = self.visual_pivots + self.text_pivots
        return self.visual_pivots + pivots * int((1 - self.reduction_ratio) * total / pivots)

    def check(self, geometry: Geometry) -> None:
        """Refuse an impossible layer, count or number of pivots."""
        if self.visual_pivots < 1 or self.text_pivots < 0:
            raise ValueError(
                f"dart: {self.visual_pivots} visual and {self.text_pivots} text pivots given; at "
                "least 1 and 0 needed"
            )
        super().check(geometry)

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Choose pivots, let them choose, keep."""
        n, kept = view.hidden.shape[1], self.kept(view.full)
        if kept >= n:
            return None
        places, visual = self.pivots(view)
        if self.order == "set":
            places = gather(places, set_order(places))
        added = kept - self.visual_pivots
        share, more = divmod(added, places.shape[1])
        counts = [share + (i < more) for i in range(places.shape[1])]
        taken = torch.zeros(view.sizes.shape, dtype=torch.bool, device=places.device)
        taken = taken.scatter(1, visual, True)
        pivots = gather(view.row_hidden, places)
        _, taken = least_similar(
            view.final_norm(view.hidden), view.final_norm(pivots), taken, counts
        )
        # A stable sort of the flags lists the taken ones first and rising.
        rising = (~taken).to(torch.uint8).sort(dim=1, stable=True).indices[:, :kept]
        return keep_only(view.hidden, view.sizes, rising)

    def pivots(self, view: DecoderView) -> tuple[Tensor, Tensor]:
        """Places [G, p] of all pivots in the row, visual ones first, by falling norm; and the
        visual ones as visual tokens.
        """
        norm = wide(view.last.key).abs().sum((1, 3))
        visual = norm[:, view.start : view.end].topk(self.visual_pivots, dim=1).indices
        after = view.text_places
        many = min(self.text_pivots, len(after))
        text = after[norm[:, after].topk(many, dim=1).indices]
        return torch.cat([view.start + visual, text], 1), visual
