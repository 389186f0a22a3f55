"""VMTC and CMAI, without training: redundant tokens clustered, weak text-to-image attention
inhibited.
"""

from __future__ import annotations

from dataclasses import dataclass

from visiondrop.adapters.base import Geometry
from visiondrop.extensions.base import Extension
from visiondrop.extensions.inhibition import Inhibition
from visiondrop.functional.clustering import after_cls, cluster_and_merge
from visiondrop.merging import keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions, Reductions
from visiondrop.scoring import top_tokens
from visiondrop.views import EncoderView


@dataclass
class VmtcCmai(PictureBudget):
    """A TRAINING-FREE VARIANT of VMTC and CMAI (Yang et al., "Enhancing Instruction-Following
    Capability of Visual-Language Models by Reducing Image Redundancy", arXiv 2411.15453), which
    are trained with and have no public code. Checked against loops written from the definition
    below, not against the authors' figures.

    VMTC, before the projector: the tokens - clusters primary patches with the highest importance
    (attention of CLS, mean over heads; without CLS of all patches) stay; the others are clustered
    by k-means on the cosine, and each cluster becomes its mean weighted by importance.

    CMAI, inside the LLM: with a the mean over heads of a layer's attention, a text token i focuses
    on visual token j by f_ij = sum over text tokens k after the picture of a_ik a_kj, and does not
    see the floor(inhibit x n) of its n visual tokens of the lowest f_ij.

    What is ours: no training; seeds and number of iterations of the k-means; which layers compute
    the focus (it holds until the next one); a share, not a threshold; generated tokens take over
    what the prompt's last token does not see.

    Args:
        tokens: visual tokens of a picture, merged ones included.
        clusters: merged tokens among them; None takes an eighth, rounded up.
        iterations: of the k-means.
        inhibit: share of visual tokens that a text token does not see; 0 is VMTC alone.
        focus_layers: decoder layers, rising, that compute the focus; nothing is inhibited before
            the first.
        positions: "renumbered" from 0, or "original".
    """

    name = "vmtc_cmai"
    title = "VMTC + CMAI (training-free variant)"
    paper = "arXiv 2411.15453"
    where = "before the LLM + LLM attention"
    signal = "CLS attention, clusters; text-to-image focus"

    tokens: int = 64
    clusters: int | None = None
    iterations: int = 10
    inhibit: float = 0.5
    focus_layers: tuple[int, ...] = (2,)
    positions: Positions = "renumbered"

    def __post_init__(self) -> None:
        self.focus_layers = tuple(self.focus_layers)

    @property
    def merged(self) -> int:
        """Merged tokens."""
        return -(-self.tokens // 8) if self.clusters is None else self.clusters

    def check(self, geometry: Geometry) -> None:
        """Refuse budgets and layers that do not exist."""
        super().check(geometry)
        if not 0 <= self.merged <= self.tokens or self.iterations < 1:
            raise ValueError(
                f"{self.name}: clusters={self.clusters} of tokens={self.tokens}, "
                f"iterations={self.iterations}; give 0 to {self.tokens} clusters, 1 or more "
                "iterations"
            )
        if not 0 <= self.inhibit <= 1:
            raise ValueError(f"{self.name}: inhibit={self.inhibit} is a share; give 0 to 1")
        layers = self.focus_layers
        if list(layers) != sorted(set(layers)) or any(
            not 0 <= layer < geometry.num_layers for layer in layers
        ):
            raise ValueError(
                f"{self.name}: focus_layers={list(layers)}; give rising layers of 0 to "
                f"{geometry.num_layers - 1}"
            )

    def encoder_stage(self, view: EncoderView) -> Reductions:
        """Primary patches, then one token for each cluster."""
        patches = view.patches
        sizes = view.sizes[:, int(view.has_cls) :]
        primary = top_tokens(view.saliency, self.tokens - self.merged)
        if self.merged == 0:
            reduction = keep_only(patches, sizes, primary)
        else:
            reduction = cluster_and_merge(
                patches, sizes, view.saliency, primary, self.merged, self.iterations
            )
        return after_cls(reduction, view.has_cls)

    def extension(self) -> Extension | None:
        """The inhibition, where there is any."""
        if self.inhibit == 0 or not self.focus_layers:
            return None
        return Inhibition(self.name, self.focus_layers, self.inhibit)
