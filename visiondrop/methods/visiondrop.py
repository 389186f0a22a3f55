"""VisionDrop: visual tokens judged by visual tokens, in stages, at the encoder and inside the
LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.merging import MergeRule, Placement, Reduction, reduce_tokens
from visiondrop.reducer import Positions, Reducer
from visiondrop.schedule import (
    ENTRY_RATIO,
    VIDEO_ENTRY_RATIO,
    Budget,
    block_weights,
    check_stages,
    geometric_totals,
    ledger,
    resized,
    split_total,
    stage_layers,
)
from visiondrop.scoring import CausalCorrection, column_mean, top_tokens
from visiondrop.views import DecoderView, EncoderView


@dataclass
class VisionDrop(Reducer):
    """VisionDrop (Xu et al., AAAI 2026, arXiv 2506.22283), training-free and text-free.

    Encoder stage: score_j = mean over heads of softmax(q_CLS K^T / sqrt(d))_j in the layer that
    makes the features; CLS and the best (dominant - 1) patches stay, the rest is folded into
    `contextual` tokens by the cosine of head-averaged keys. LLM stage before layer l: score_j =
    mean over heads and visual queries of softmax(Q K^T / sqrt(d))_j causally; the rest as before.

    The defaults of all options are the released code's behaviour.

    Args:
        encoder: (dominant, contextual) at the vision encoder, CLS counted as dominant; None for no
            stage.
        llm: decoder layer -> (dominant, contextual) before it, by rising layer.
        merge: "sum" (reference + mean of members), "mean", or "size-weighted" mean.
        positions: "renumbered" from 0 after each stage, or "original".
        placement: contextual tokens "appended" behind the dominant ones or "in_place" of their
            reference.
        causal: correction of the LLM score's bias towards early tokens, see `scoring.column_mean`.
        query: whose attention judges at the encoder: "cls", or all "patches" (always so without
            CLS).
    """

    name = "visiondrop"
    title = "VisionDrop"
    paper = "arXiv 2506.22283"
    where = "encoder, then LLM 1/4, 1/2, 3/4"
    signal = "visual self-attention, contextual merge"
    tiled = counts_cls = True
    video_options: ClassVar[Mapping[str, Any]] = {"entry": VIDEO_ENTRY_RATIO}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "32": {"encoder": (42, 6), "llm": {8: (30, 5), 16: (22, 4), 24: (16, 3)}},
    }

    encoder: Budget | None = None
    llm: Mapping[int, Budget] = field(default_factory=dict)
    merge: MergeRule = "sum"
    positions: Positions = "renumbered"
    placement: Placement = "appended"
    causal: CausalCorrection = "off"
    query: Literal["cls", "patches"] = "cls"

    def __post_init__(self) -> None:
        self.encoder = None if self.encoder is None else _budget(self.encoder)
        self.llm = {int(layer): _budget(budget) for layer, budget in dict(self.llm).items()}

    @classmethod
    def from_average(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        entry: float = ENTRY_RATIO,
        **options: Any,
    ) -> Self:
        """The schedule whose mean of visual tokens over the decoder layers is `tokens`.

        Totals fall geometrically from `entry` x tokens (for videos `schedule.VIDEO_ENTRY_RATIO`),
        at most what there is; a contextual share of one eighth, rounded up. Rounding can leave the
        true mean a quarter of a token off: see `ledger`.

        Raises `ValueError` where no such schedule exists.
        """
        if not 2 <= tokens <= num_patches:
            raise ValueError(
                f"an average of {tokens} visual tokens was asked for; a picture has {num_patches} "
                "at most and 2 are the least"
            )
        layers = stage_layers(num_layers)
        totals = geometric_totals(
            tokens,
            block_weights(layers, num_layers),
            most=num_patches + int(has_cls),
            entry=entry,
        )
        budgets = [split_total(total) for total in totals]
        return cls(budgets[0], dict(zip(layers, budgets[1:], strict=True)), **options)

    @property
    def before_llm(self) -> bool:  # type: ignore[override]
        """Whether there is an encoder stage."""
        return self.encoder is not None

    @property
    def inside_llm(self) -> bool:  # type: ignore[override]
        """Whether there is an LLM stage."""
        return bool(self.llm)

    def check(self, geometry: Geometry) -> None:
        """Refuse impossible budgets."""
        super().check(geometry)
        cls = geometry.has_cls and (self.encoder is not None or geometry.cls_in_prompt)
        check_stages(
            self.encoder,
            self.llm,
            tokens=geometry.num_patches + int(cls),
            num_layers=geometry.num_layers,
        )

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Visual tokens per decoder layer, by plan."""
        first = num_patches
        if self.encoder is not None:
            first = min(sum(self.encoder), num_patches + int(has_cls))
        return ledger(first, self.llm, num_layers)

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """As `placement` says."""
        return self.placement == "in_place"

    def entry_tokens(self) -> int | None:
        """Of the encoder stage."""
        return None if self.encoder is None else sum(self.encoder)

    def with_entry(self, tokens: int) -> Self:
        """Another total at the encoder stage, see `schedule.resized`."""
        assert self.encoder is not None
        return replace(self, encoder=resized(self.encoder, tokens))

    def counted(self, count: Callable[[int], int]) -> Self:
        """Other totals of all stages, in the same shares of dominant and contextual tokens."""

        def change(budget: Budget) -> Budget:
            return resized(budget, count(sum(budget)))

        llm = {layer: change(budget) for layer, budget in self.llm.items()}
        return replace(self, encoder=self.encoder and change(self.encoder), llm=llm)

    def encoder_stage(self, view: EncoderView) -> Reduction | None:
        """Score by CLS (or by the patches), keep, merge."""
        assert self.encoder is not None
        dominant, contextual = self.encoder
        if dominant + contextual > view.features.shape[1]:
            return None
        scores = view.saliency if self.query == "cls" else view.patch_attention
        if view.has_cls:
            scores = torch.nn.functional.pad(scores, (1, 0), value=torch.inf)
        kept = self._choose(view, scores, dominant)
        return self._reduce(view.features, view.sizes, view.key, kept, contextual)

    def llm_layers(self) -> tuple[int, ...]:
        """The layers with a stage."""
        return tuple(self.llm)

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Score by the visual queries, keep, merge; skipped where the picture has fewer tokens."""
        dominant, contextual = self.llm[view.layer]
        if dominant + contextual > view.hidden.shape[1]:
            return None
        scores = column_mean(
            view.query, view.key, view.scale, correction=self.causal, places=view.places
        )
        kept = self._choose(view, scores, dominant)
        return self._reduce(view.hidden, view.sizes, view.visual_key, kept, contextual)

    def _choose(self, view: EncoderView | DecoderView, scores: Tensor, dominant: int) -> Tensor:
        """[G, dominant], the dominant tokens, rising, by their `scores` [G, n]."""
        return top_tokens(scores, dominant)

    def _reduce(
        self, tokens: Tensor, sizes: Tensor, key: Tensor, kept: Tensor, contextual: int
    ) -> Reduction:
        """Keep `kept` of the tokens [G, n, D], merge others by head-averaged keys [G, H, n, d]."""
        return reduce_tokens(
            tokens,
            sizes,
            key.mean(1),
            kept,
            contextual,
            rule=self.merge,
            placement=self.placement,
        )


def _budget(value: Sequence[int]) -> Budget:
    """A pair, whatever sequence it came as; `check_stages` judges its numbers."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"a budget is a pair (dominant, contextual), not {value!r}")
    return value[0], value[1]
