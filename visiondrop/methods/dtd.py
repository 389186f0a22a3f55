"""Differential token drop: what did not change since the frame before is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from visiondrop.adapters.base import Geometry
from visiondrop.functional.frames import By, frame_similarity, keep_frames
from visiondrop.functional.patches import CLIP_STD
from visiondrop.merging import Reduction
from visiondrop.reducer import Positions, Reducer
from visiondrop.scoring import top_tokens
from visiondrop.views import PromptView

THRESHOLDS = {"feature": 0.5, "pixel": 0.1}


@dataclass
class DTD(Reducer):
    """TimeChat-Online's Differential Token Drop (Yao et al., arXiv 2504.17343).

    Token p of frame t > 0 is dropped where it repeats frame t - 1: cos(v_t,p, v_t-1,p) > threshold
    (feature mode, decoder embeddings) or mean |RGB_t,p - RGB_t-1,p| < threshold (pixel mode,
    colours in 0 .. 1). The frame before is taken whole, also what was dropped of it. The first
    frame stays; positions are kept. A still frame may vanish altogether.

    Written from the paper and from what its released code does (which runs on Qwen2.5-VL: merged
    patches of two frames each); checked against a loop of our own, not against figures of that
    code. How many tokens stay depends on the frames; the ledger is the upper bound.

    Args:
        by: "feature" or "pixel".
        threshold: None takes 0.5 by feature (the paper's) and 0.1 by pixel (ours).
        share: drop this share of every later frame instead, the most alike (int(n x share) of
            them): the released code's relative mode, in which every frame drops equally.
        image_std: deviation that the pictures were normalised with (CLIP's; SigLIP: 0.5 each).
        positions: "original" or "renumbered" from 0.
    """

    name = "dtd"
    title = "DTD (TimeChat-Online)"
    paper = "arXiv 2504.17343"
    where = "before the LLM, over the frames of a prompt"
    signal = "change against the previous frame"
    needs = ("frames",)
    before_llm = True
    before = "prompt"

    by: By = "feature"
    threshold: float | None = None
    share: float | None = None
    image_std: Sequence[float] = CLIP_STD
    positions: Positions = "original"

    def __post_init__(self) -> None:
        self.image_std = tuple(self.image_std)

    def check(self, geometry: Geometry) -> None:
        """Refuse thresholds outside their range."""
        super().check(geometry)
        low = -1 if self.by == "feature" else 0
        if self.threshold is not None and not low <= self.threshold <= 1:
            raise ValueError(f"dtd: threshold={self.threshold}; by {self.by} it is {low} to 1")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"dtd: share={self.share}; give 0 to 1")
        if self.share is not None and self.threshold is not None:
            raise ValueError("dtd: threshold and share were both given; give one of them")

    def prompt_stage(self, view: PromptView) -> list[Reduction | None]:
        """All of the first frame, of the others what changed."""
        similarity = frame_similarity(view, self.by, self.image_std)
        total = similarity.shape[1]
        if self.share is not None:
            changed = top_tokens(-similarity, total - int(total * self.share))
            return keep_frames(view, [None, *changed])
        threshold = THRESHOLDS[self.by] if self.threshold is None else self.threshold
        stays = ~(similarity > (threshold if self.by == "feature" else -threshold))
        places = stays.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
        counts = stays.sum(1).tolist()  # the one wait for the device
        later = [row[:count] for row, count in zip(places, counts, strict=True)]
        return keep_frames(view, [None, *later])
