"""VisionZip: the patches that CLS attends to most, the rest merged by its keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from visiondrop.adapters.base import Geometry
from visiondrop.merging import MergeRule, Reduction, reduce_tokens
from visiondrop.reducer import Positions, Reducer
from visiondrop.schedule import check_stages, resized
from visiondrop.scoring import top_tokens
from visiondrop.views import EncoderView


@dataclass
class VisionZip(Reducer):
    """VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467), training-free and text-free.

    score_j = sum over heads of softmax(q_CLS K^T / sqrt(d))_j in the layer that makes the features.
    CLS and the best (dominant - 1) patches stay, in spatial order. Of the rest, every s-th is a
    target (s = rest // contextual); each other token goes to the target with the highest cosine of
    the keys averaged over heads, and a contextual token is target + mean(its members).

    Towers without CLS: the mean of all patches' attention judges, and `dominant` counts patches
    only.

    Any-resolution pictures, as released (`on_tiles(**VisionZip.released_tiles)`): every tile, the
    thumbnail included, keeps `dominant` + `contextual`, nothing is unpadded, no newline is sent.

    Args:
        dominant: tokens kept, CLS counted (`visionzip(model, dominant=...)` in the released code).
        contextual: merged tokens behind them, in target order; 0 drops the rest.
        merge: "sum" is the released code's target + mean; "mean" averages the target with its
            members, as the paper says.
        positions: "renumbered" from 0 (released), or "original".
    """

    name = "visionzip"
    title = "VisionZip"
    paper = "arXiv 2412.04467"
    where = "encoder"
    signal = "CLS attention, merge by keys"
    before_llm = True
    tiled = counts_cls = True
    released_tiles = {"budget": "tile", "share": "equal", "newlines": "none", "padding": "shown"}
    presets = {
        "192": {"dominant": 162, "contextual": 30},
        "128": {"dominant": 108, "contextual": 20},
        "64": {"dominant": 54, "contextual": 10},
        "32": {"dominant": 27, "contextual": 5},
        "default": {"dominant": 191, "contextual": 30},
    }

    dominant: int = 54
    contextual: int = 10
    merge: MergeRule = "sum"
    positions: Positions = "renumbered"

    @classmethod
    def from_average(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """`tokens` in all, CLS counted; the presets' share, 27 of 32, is dominant, rounded down.

        With `contextual` given, the others are dominant.
        """
        total = int(tokens)
        if total != tokens:
            raise ValueError(f"{cls.name}: tokens={tokens} asked for; give a whole number")
        contextual = options.pop("contextual", total - max(1, total * 27 // 32))
        return cls(dominant=total - contextual, contextual=contextual, **options)

    def check(self, geometry: Geometry) -> None:
        """Refuse impossible budgets."""
        super().check(geometry)
        check_stages(
            (self.dominant, self.contextual),
            {},
            tokens=geometry.num_patches + int(geometry.has_cls),
            num_layers=geometry.num_layers,
        )

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """The same count in every layer."""
        most = num_patches + int(has_cls)
        return [min(self.dominant + self.contextual, most)] * num_layers

    def entry_tokens(self) -> int:
        """Both kinds."""
        return self.dominant + self.contextual

    def with_entry(self, tokens: int) -> Self:
        """As many in all, in the same shares; one at least is dominant."""
        dominant, contextual = resized((self.dominant, self.contextual), tokens)
        return replace(self, dominant=dominant, contextual=contextual)

    def counted(self, count: Callable[[int], int]) -> Self:
        """Another number in all, in the same shares."""
        return self.with_entry(count(self.entry_tokens()))

    def encoder_stage(self, view: EncoderView) -> Reduction:
        """Keep and merge for G pictures (or tiles): [G, dominant + contextual, D]."""
        scores = view.saliency
        if view.has_cls:
            scores = torch.nn.functional.pad(scores, (1, 0), value=torch.inf)
        return reduce_tokens(
            view.features,
            view.sizes,
            view.key.mean(1),
            top_tokens(scores, self.dominant),
            self.contextual,
            rule=self.merge,
        )
