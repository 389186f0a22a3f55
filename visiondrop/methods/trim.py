"""TRIM: patches that stand out against the question in CLIP's space, and the mean of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from visiondrop.adapters.base import Geometry
from visiondrop.merging import Reduction, complement, gather
from visiondrop.reducer import Positions, Reducer
from visiondrop.scoring import outlier_shares, top_tokens, wide
from visiondrop.text_encoder import NEED, TextEncoder, check_text_encoder, text_encoder
from visiondrop.views import EncoderView


@dataclass
class Trim(Reducer):
    """TRIM, token reduction by the CLIP metric (Song et al., arXiv 2409.10994), without training.

    Score s_j = softmax over the patches of minus the product of the question's and the patch's CLIP
    embedding, [G, n]; patch embeddings are the tower's features through CLIP's last layer norm and
    projection, the question is cut at 77 tokens. Kept are the int(n * ratio) highest, in raster
    order, where ratio is the share of scores above Q3 + 1.5 (Q3 - Q1). One last token is the mean
    of the features of all others; like the kept ones it goes through the projector.

    The defaults are the released code, which negates products of embeddings that are not
    normalised; preset "paper" takes the paper's cosine with its plain sign. The authors tune LLaVA
    with TRIM in place; here nothing is trained.

    Args:
        tokens: visual tokens in all, instead of the share of outliers: the tokens - 1 of highest
            score and the mean of the others. What `from_average` sets.
        clip: full CLIP checkpoint with the text tower, a folder or a hub id.
        similarity: "dot" product (released) or "cosine" (paper).
        relevant: patches of "low" (released) or "high" (paper) similarity have the high scores.
    """

    name = "trim"
    title = "TRIM"
    paper = "arXiv 2409.10994"
    where = "before the LLM"
    signal = "CLIP text similarity, rest averaged"
    needs = (NEED,)
    before = "encoder"
    before_llm = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "adaptive": {},
        "paper": {"similarity": "cosine", "relevant": "high"},
    }

    tokens: int | None = None
    clip: str = ""
    similarity: Literal["dot", "cosine"] = "dot"
    relevant: Literal["low", "high"] = "low"
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
    ) -> Trim:
        """tokens - 1 patches and the mean of the others, in every decoder layer."""
        return cls(tokens=tokens, **options)  # type: ignore[arg-type]

    def check(self, geometry: Geometry) -> None:
        """Refuse a missing text encoder and budgets that cannot be."""
        super().check(geometry)
        n = geometry.num_patches
        if self.tokens is not None and not (type(self.tokens) is int and 1 <= self.tokens <= n):
            raise ValueError(
                f"{self.name}: tokens={self.tokens} asked for where a picture has {n} at most; "
                f"give a whole number from 1 to {n}"
            )
        check_text_encoder(self, self.clip, geometry)

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """The same count in every layer; for the share of outliers the most it can be.

        No more than a quarter of the scores can lie above the third quartile.
        """
        most = -(-(num_patches - 1) // 4) + 1
        return [most if self.tokens is None else self.tokens] * num_layers

    def encoder_stage(self, view: EncoderView) -> Reduction | list[Reduction | None]:
        """Score, keep, average the rest."""
        first, n = int(view.has_cls), view.num_patches
        clip = text_encoder(self.clip, view.features.device)
        scores = self.scores(clip, view.patches, view.questions)
        if self.tokens is not None:
            return keep_and_average(view.features, top_tokens(scores, self.tokens - 1), first)
        kept = [int(n * ratio) for ratio in outlier_shares(scores)]
        return [
            keep_and_average(view.features[g, None], top_tokens(scores[g, None], k), first)
            for g, k in enumerate(kept)
        ]

    def scores(self, clip: TextEncoder, patches: Tensor, questions: list[str]) -> Tensor:
        """[G, n] of the tower's `patches` [G, n, D]; every row sums to 1."""
        image = clip.patches(patches)
        text = torch.cat(clip.questions(questions, truncate=True)).to(image.dtype)
        if self.similarity == "cosine":
            image, text = normalize(image, dim=-1), normalize(text, dim=-1)
        product = torch.einsum("gnp,gp->gn", image, text)
        return (-product if self.relevant == "low" else product).softmax(-1)


def keep_and_average(features: Tensor, kept: Tensor, first: int) -> Reduction:
    """Patches `kept` [G, k] (rising) of the tokens [G, T, D], then the mean of the other patches.

    Args:
        first: tokens before the patches (CLS), which are dropped. k is below the patches' number.
    """
    n, k = features.shape[1] - first, kept.shape[1]
    rest = complement(kept, n) + first
    kept = kept + first
    mean = wide(gather(features, rest)).mean(1, keepdim=True).to(features.dtype)
    source = torch.cat([kept, rest[:, :1]], 1)
    target = torch.full(features.shape[:2], -1, dtype=torch.long, device=features.device)
    target.scatter_(1, rest, k)
    target.scatter_(1, kept, torch.arange(k, device=kept.device).expand_as(kept))
    sizes = torch.ones_like(source)
    sizes[:, -1] = n - k
    merged = torch.zeros_like(source, dtype=torch.bool)
    merged[:, -1] = True
    return Reduction(torch.cat([gather(features, kept), mean], 1), source, target, sizes, merged)
