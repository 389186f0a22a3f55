"""CDPruner: patches that differ from each other, the more so where the question points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from visiondrop.adapters.base import Geometry
from visiondrop.functional.diversity import cosine_matrix, dpp_order
from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.text_encoder import NEED, TextEncoder, check_text_encoder, text_encoder
from visiondrop.views import ProjectedView


@dataclass
class CDPruner(PictureBudget):
    """CDPruner (Zhang et al., NeurIPS 2025, arXiv 2506.10967): a DPP conditioned on the question.

    Kernel K_ij = r_i cos(e_i, e_j) r_j, [G, n, n], of the projected patches e [G, n, D']; the
    subset of greatest determinant is approached greedily (`diversity.dpp_order`). Relevance r
    [G, n] is the mean, over the question's segments of 77 CLIP tokens, of minus the cosine of text
    and patch in CLIP's space, scaled to 0..1 per picture: (x - min + 1e-6) / (max - min). Patch
    embeddings are the tower's features through CLIP's last layer norm and projection. Kept patches
    go to the LLM in raster order; nothing is merged.

    The defaults are the released code: the sign is deliberate (a patch of lower cosine is the more
    relevant one) and there is no theta. Released, min and max are the whole batch's, of size 1.

    Args:
        tokens: how many patches stay (`visual_token_num`).
        clip: full CLIP checkpoint with the text tower, a folder or a hub id.
        theta: weighs relevance against diversity, 0 to below 1: r becomes
            exp(theta / (2 (1 - theta)) r); 0 is diversity alone. None: r itself, as released.
        relevant: patches of "low" (released) or "high" cosine are the relevant ones.
    """

    name = "cdpruner"
    title = "CDPruner"
    paper = "arXiv 2506.10967"
    where = "before the LLM"
    signal = "instruction-conditioned DPP"
    needs = (NEED,)
    before = "projected"
    tiled = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        str(n): {"tokens": n} for n in (192, 128, 64, 32)
    }

    tokens: int = 64
    clip: str = ""
    theta: float | None = None
    relevant: Literal["low", "high"] = "low"
    positions: Positions = "renumbered"

    def check(self, geometry: Geometry) -> None:
        """Refuse a missing text encoder, and budgets and weights that cannot be."""
        super().check(geometry)
        if self.theta is not None and not 0 <= self.theta < 1:
            raise ValueError(f"{self.name}: theta={self.theta}; give 0 to below 1")
        check_text_encoder(self, self.clip, geometry)

    def projected_stage(self, view: ProjectedView) -> Reduction:
        """Relevance, kernel, picks in raster order."""
        clip = text_encoder(self.clip, view.features.device)
        r = self.relevance(clip, view.tower.patches, view.questions)
        similar = cosine_matrix(view.features)
        r = r.to(similar.dtype)
        picks = dpp_order(r[:, :, None] * similar * r[:, None], self.tokens)
        return keep_only(view.features, view.sizes, picks.sort(dim=1).values)

    def relevance(self, clip: TextEncoder, patches: Tensor, questions: list[str]) -> Tensor:
        """[G, n] of the tower's `patches` [G, n, D]."""
        image = normalize(clip.patches(patches), dim=-1)
        # The mean of cosines is the product with the mean of unit text vectors.
        texts = [normalize(text, dim=-1).mean(0) for text in clip.questions(questions)]
        cosine = torch.einsum("gnp,gp->gn", image, torch.stack(texts).to(image.dtype))
        x = -cosine if self.relevant == "low" else cosine
        low, high = x.aminmax(dim=1, keepdim=True)
        r = (x - low + 1e-6) / (high - low).clamp(min=1e-6)
        return r if self.theta is None else (r * (self.theta / (2 * (1 - self.theta)))).exp()
