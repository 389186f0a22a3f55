"""The pictures of one prompt as frames of a video, each compared with the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from visiondrop.functional.patches import frame_difference
from visiondrop.merging import Reduction, keep_only
from visiondrop.scoring import wide
from visiondrop.views import PromptView

__all__ = ["By", "frame_similarity", "keep_frames"]

By = Literal["feature", "pixel"]


def frame_similarity(view: PromptView, by: By, std: Sequence[float]) -> Tensor:
    """[F - 1, n], how alike each token is to the same place of the frame before: the cosine of
    decoder embeddings, or minus the mean absolute difference of RGB in 0 .. 1 (for a CLS token that
    of the whole frame).

    Args:
        std: deviation that the pictures were normalised with.

    Raises `ValueError` where frames have unequally many tokens, or pixels are not at hand.
    """
    lengths = sorted({picture.shape[0] for picture in view.pictures})
    if len(lengths) > 1:
        raise ValueError(
            f"frames are compared place by place, but they have {lengths} tokens; prepare all "
            "frames alike (not any-resolution)"
        )
    if by == "feature":
        frames = torch.nn.functional.normalize(wide(torch.stack(view.pictures)), dim=-1)
        return (frames[1:] * frames[:-1]).sum(-1)
    pixels = [frame for frame in view.pixels if frame is not None]
    if len(pixels) < len(view.pictures):
        raise ValueError("by='pixel' needs pixel_values, which are not at hand; use by='feature'")
    change = frame_difference(torch.stack(pixels), view.grid, std)
    if view.has_cls:
        change = torch.cat([change.mean(1, keepdim=True), change], 1)
    return -change


def keep_frames(view: PromptView, kept: Sequence[Tensor | None]) -> list[Reduction | None]:
    """Only the places `kept` of each frame, rising; None keeps all of it."""
    return [
        None if places is None else keep_only(features[None], sizes[None], places[None])
        for features, sizes, places in zip(view.pictures, view.sizes, kept, strict=True)
    ]
