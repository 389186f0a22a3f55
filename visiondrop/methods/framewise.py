"""The same number of tokens of every frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from visiondrop.functional.frames import By, frame_similarity, keep_frames
from visiondrop.functional.patches import CLIP_STD
from visiondrop.merging import Reduction
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.scoring import top_tokens
from visiondrop.tiles import frame_budgets
from visiondrop.views import PromptView


@dataclass
class FrameWise(PictureBudget):
    """The same number of tokens for every frame: a control of ours beside `dtd`, whose frames
    differ. (The frame-wise mode of DTD's released code, which leaves the first frame whole, is
    `dtd` with `share`.)

    "change" keeps of each frame the `tokens` that are least like the same place of the frame
    before (the first frame, with none before it, keeps evenly spaced ones); "uniform" keeps evenly
    spaced ones of every frame, floor((i + 1/2) n / tokens).

    Args:
        tokens: of every picture of a prompt; of a video, whose frames share them equally.
        select: "change" or "uniform".
        by: "feature" or "pixel", as in `dtd`.
        image_std: as in `dtd`.
        positions: "original" or "renumbered" from 0.
    """

    name = "framewise"
    title = "Frame-wise"
    paper = "arXiv 2504.17343"
    where = "before the LLM, over the frames of a prompt"
    signal = "change against the previous frame, one budget for all"
    needs = ("frames",)
    before = "prompt"

    tokens: int = 64
    select: Literal["change", "uniform"] = "change"
    by: By = "feature"
    image_std: Sequence[float] = CLIP_STD
    positions: Positions = "original"

    def __post_init__(self) -> None:
        self.image_std = tuple(self.image_std)

    def prompt_stage(self, view: PromptView) -> list[Reduction | None]:
        """As many of every frame."""
        similarity = frame_similarity(view, self.by, self.image_std)
        frames, total = 1 + similarity.shape[0], similarity.shape[1]
        if self.tokens > total * (frames if view.video else 1):
            return [None] * frames
        budgets = [self.tokens] * frames
        if view.video:
            budgets = frame_budgets(self.tokens, frames)

        def spaced(count: int) -> Tensor:
            step = torch.arange(count, device=similarity.device)
            return (2 * step + 1) * total // max(1, 2 * count)

        kept = [spaced(budgets[0])]
        for alike, count in zip(similarity, budgets[1:], strict=True):
            change = self.select == "change"
            kept.append(top_tokens(-alike[None], count)[0] if change else spaced(count))
        return keep_frames(view, kept)
