"""PruMerge: patches that stand out in CLS attention, each with its nearest neighbours folded in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.functional.neighbours import add_neighbours, left_over, nearest
from visiondrop.merging import Reduction, gather
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions, Reducer
from visiondrop.scoring import attention_row, outlier_shares, wide
from visiondrop.views import EncoderView


@dataclass
class PruMerge(PictureBudget):
    """LLaVA-PruMerge (Shang et al., ICCV 2025, arXiv 2403.15388).

    Score a_j = softmax(q_CLS K^T / sqrt(D))_j over the patches, [G, n], in the tower layer that
    reads the features (the last one), with queries and keys NOT split in heads. The int(n * ratio)
    best stay, best first; ratio is the share of outliers: scores above Q3 + 1.5 IQR. Kept token i
    becomes f_i + sum of a_j f_j over its `neighbours` nearest patches by the cosine of those keys.
    One last token is the sum of a_j f_j over all patches that are not kept. Trace: a patch that is
    not kept goes to the last token; that it may be a neighbour of kept ones too is not recorded.

    The defaults are the released code; it has no budget: `tokens` and `from_average` keep the
    tokens - 1 best and the last token, which is its reduction_ratio made exact. Checked against the
    released code: kept patches, neighbours, sums of features, logits and text.

    Args:
        ratio: share of the patches to keep instead of the share of outliers (`reduction_ratio`).
        tokens: visual tokens in all, instead of a share.
        neighbours: how many neighbours are folded into each kept token.
        candidates: neighbours may be "all" other patches, kept ones too (released), or "pruned"
            ones only (as the paper's abstract has it).
    """

    name = "prumerge"
    title = "PruMerge"
    paper = "arXiv 2403.15388"
    where = "encoder"
    signal = "CLS outliers, key merge"
    needs = ("cls", "patches")
    before = "encoder"
    tiled = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "adaptive": {},
        "fixed-0.125": {"ratio": 0.125},
    }

    ratio: float | None = None
    tokens: int | None = None  # type: ignore[assignment]
    neighbours: int = 32
    candidates: Literal["all", "pruned"] = "all"
    positions: Positions = "renumbered"

    def check(self, geometry: Geometry) -> None:
        """Refuse two budgets at once, and budgets that cannot be."""
        if self.tokens is None:
            Reducer.check(self, geometry)
        else:
            super().check(geometry)
        if self.ratio is not None and self.tokens is not None:
            raise ValueError(
                f"{self.name}: ratio={self.ratio} and tokens={self.tokens} were both given; give "
                "one of them, or neither for the share of outliers"
            )
        if self.ratio is not None and not (
            isinstance(self.ratio, (int, float)) and 0 <= self.ratio <= self.most_ratio
        ):
            raise ValueError(
                f"{self.name}: ratio={self.ratio} must be a share between 0 and "
                f"{self.most_ratio:.3g}"
            )
        if self.neighbours < 0:
            raise ValueError(f"{self.name}: neighbours={self.neighbours}; give 0 or more")

    most_ratio: ClassVar[float] = 1

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """The same count in every layer; where it depends on the picture the most it can be."""
        count = self.most_kept(num_patches) + 1 if self.tokens is None else self.tokens
        return [count] * num_layers

    def most_kept(self, n: int) -> int:
        """How many patches are kept at most: ceil((n - 1) / 4) can lie above a third quartile."""
        return (n + 2) // 4 if self.ratio is None else int(n * self.ratio)

    def choose(self, ranked: Tensor, ratio: float) -> Tensor:
        """Patches to keep, in their order, of `ranked` [n], patches by falling score."""
        return ranked[: int(ranked.shape[0] * ratio)]

    def choose_exactly(self, ranked: Tensor, count: int) -> Tensor:
        """[G, count] patches to keep of `ranked` [G, n]."""
        return ranked[:, :count]

    def encoder_stage(self, view: EncoderView) -> Reduction | list[Reduction | None] | None:
        """Choose, fold neighbours in, add the last token."""
        query, key = (x.transpose(1, 2).flatten(2) for x in view.following)
        scale = key.shape[2] ** -0.5
        scores = attention_row(query[:, :1], key[:, None], scale)[:, 1:]
        ranked = scores.sort(dim=1, descending=True, stable=True).indices
        if self.tokens is not None:
            kept = self.choose_exactly(ranked, self.tokens - 1)
            return self.fold(view.patches, scores, key[:, 1:], kept)
        ratios = outlier_shares(scores) if self.ratio is None else [self.ratio] * len(scores)
        each = [self.choose(row, ratio) for row, ratio in zip(ranked, ratios, strict=True)]
        if len({len(row) for row in each}) == 1:
            return self.fold(view.patches, scores, key[:, 1:], torch.stack(each))
        return [
            self.fold(view.patches[g, None], scores[g, None], key[g, None, 1:], row[None])
            for g, row in enumerate(each)
        ]

    def fold(self, features: Tensor, scores: Tensor, key: Tensor, kept: Tensor) -> Reduction:
        """Patches `kept` [G, k] of `features` [G, n, D] with their neighbours, and the last token.

        Provenance counts from CLS, which is token 0 of the picture and dropped.
        """
        n, k = features.shape[1], kept.shape[1]
        rest = left_over(kept, n)
        near = nearest(key, kept, rest, self.neighbours, among_kept=self.candidates == "all")
        weighed = wide(features) * scores[..., None]
        last = gather(weighed, rest).sum(1, keepdim=True).to(features.dtype)
        out = torch.cat([add_neighbours(features, scores, kept, near), last], 1)

        # A patch kept twice is found at its first place.
        slots = torch.arange(k, device=kept.device).expand_as(kept)
        target = torch.full((len(kept), n + 1), -1, dtype=torch.long, device=kept.device)
        target.scatter_reduce_(1, kept + 1, slots, "amin", include_self=False)
        target.scatter_(1, rest + 1, k)
        first = rest[:, :1] if rest.shape[1] else kept[:, -1:]
        source = torch.cat([kept, first], 1) + 1
        sizes = torch.ones_like(source)
        sizes[:, -1] = max(1, rest.shape[1])
        contextual = torch.zeros_like(source, dtype=torch.bool)
        contextual[:, -1] = True
        return Reduction(out, source, target, sizes, contextual)
