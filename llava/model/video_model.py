"""Video-LLaVA, called as LLaVA is: each -200 in the ids is a clip of `images`."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from llava.model.llava_model import LlavaCalls


class VideoLlavaForConditionalGeneration(
    LlavaCalls, transformers.VideoLlavaForConditionalGeneration
):
    """Video-LLaVA for questions about clips: every frame becomes its patches and CLS, 257 at 224
    px / 14; eight frames 2,056 tokens.

    `images` are clips `[frames, 3, H, W]`, all of one length. The original puts one marker for
    every frame, one behind the other; here one marker is a clip, which gives the same tokens.
    Questions about single pictures go through the stock call (`pixel_values`).
    """

    @property
    def placeholder_id(self) -> int:
        """Of a clip's tokens."""
        return int(self.config.video_token_id)

    @property
    def tower(self) -> nn.Module:
        """The video tower."""
        tower: nn.Module = self.model.video_tower
        return tower

    def picture_inputs(
        self, pictures: list[Tensor], image_sizes: Any
    ) -> tuple[list[int], dict[str, Any]]:
        vision = self.config.vision_config
        side = vision.image_size
        shapes = {tuple(clip.shape) for clip in pictures}
        if len(shapes) > 1 or next(iter(shapes))[-3:] != (3, side, side) or pictures[0].dim() != 4:
            raise ValueError(
                f"clips of shapes {sorted(shapes)}: give them as [frames, 3, {side}, {side}], all "
                "with as many frames"
            )
        tokens = len(pictures[0]) * ((side // vision.patch_size) ** 2 + 1)
        return [tokens] * len(pictures), {
            "pixel_values_videos": self._tower_like(torch.stack(pictures))
        }
