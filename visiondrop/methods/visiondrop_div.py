"""VisionDrop-Div: VisionDrop's stages, with dominant tokens that also stand for the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.functional.diversity import cosine_matrix, coverage_order
from visiondrop.methods.visiondrop import VisionDrop
from visiondrop.scoring import CausalCorrection, wide
from visiondrop.views import DecoderView, EncoderView


@dataclass
class VisionDropDiv(VisionDrop):
    """VisionDrop whose dominant tokens are chosen by importance and coverage together (ours).

    VisionDrop keeps the most attended tokens, which often show the same thing. Here attention says
    how much it matters that a token is *covered*, and a chosen set S covers token i by
    c_i = max(0, max_{s in S} k_si). Tokens are added greedily (facility location); token j gains

        sum_i r_i max(0, k_ij - c_i),   r = score ** alpha,
        k_ij = cos(x_i - mean(x), x_j - mean(x)) * exp(-|p_i - p_j|^2 / (2 radius^2)),

    with x [G, n, D] the features (encoder stage) or hidden states (LLM stages) and p a patch's
    (row, column); in the LLM, where few tokens lie near each other, k is the cosine alone. Stages,
    budgets, scores and merging are VisionDrop's, CLS stays, and no text is looked at. The LLM score
    is corrected for causality ("expectation"). A step looks at all n^2 similarities.

    The form and the defaults were chosen on half of the bundled sample's pictures and confirmed on
    the other half: `docs/visiondrop-div.md` says where it helps and what that is worth.

    Args:
        alpha: power of the score; 0 asks for coverage of all tokens alike.
        radius: of what a patch can stand for, in patches; 0 leaves places out.
        coverage: how much of k between different tokens counts; at 0 every token covers itself
            alone and the choice is VisionDrop's own (for alpha > 0).
        encoder, llm, merge, positions, placement, causal, query: as in VisionDrop.
    """

    name = "visiondrop_div"
    title = "VisionDrop-Div"
    paper = ""
    signal = "visual self-attention as demand for coverage, contextual merge"

    causal: CausalCorrection = "expectation"
    alpha: float = 0.5
    radius: float = 2.0
    coverage: float = 1.0

    def check(self, geometry: Geometry) -> None:
        """Refuse impossible budgets and settings."""
        super().check(geometry)
        for field in ("alpha", "radius"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{self.name}: {field}={getattr(self, field)}; give 0 or more")
        if geometry.packed and self.encoder is not None and self.radius:
            raise ValueError(
                f"{self.name}: radius={self.radius} asks how far patches are from each other, but "
                "this model packs a picture's base tile and crops before anything can be dropped; "
                "set radius=0"
            )
        if not 0 <= self.coverage <= 1:
            raise ValueError(f"{self.name}: coverage={self.coverage}; give 0 to 1")

    def _choose(self, view: EncoderView | DecoderView, scores: Tensor, dominant: int) -> Tensor:
        """[G, dominant], rising: CLS at the encoder, and the greedy cover of the other tokens."""
        first, near = 0, None
        tokens = view.hidden if isinstance(view, DecoderView) else view.features
        if isinstance(view, EncoderView):
            first = int(view.has_cls)
            near = nearness(view.grid, self.radius, tokens.device)
        similarity = centred_cosine(tokens[:, first:])
        if near is not None:
            similarity *= near
        similarity *= self.coverage
        similarity.diagonal(dim1=1, dim2=2).fill_(1.0)
        demand = scores[:, first:]
        demand = (demand / demand.mean(1, keepdim=True)) ** self.alpha
        count = dominant - first
        picks = coverage_order(similarity, max(count, 1), demand=demand)[:, :count]
        always = torch.arange(first, device=picks.device).expand(picks.shape[0], -1)
        return torch.cat([always, picks.sort(dim=1).values + first], 1)


def centred_cosine(tokens: Tensor) -> Tensor:
    """Cosines [G, n, n] of `tokens` [G, n, D] after their mean is taken off, which they share and
    which hides how they differ.
    """
    tokens = wide(tokens)
    return cosine_matrix(tokens - tokens.mean(1, keepdim=True))


def nearness(grid: tuple[int, int], radius: float, device: torch.device) -> Tensor | None:
    """exp(-distance^2 / (2 radius^2)) between patches of a grid (rows, columns) in raster order,
    [n, n]; None for radius 0.
    """
    if radius == 0:
        return None
    steps = (torch.arange(size, device=device, dtype=torch.float32) for size in grid)
    along = (torch.exp(-((t[:, None] - t).square()) / (2 * radius**2)) for t in steps)
    return torch.kron(*along)
