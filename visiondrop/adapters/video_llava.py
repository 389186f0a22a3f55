"""Video-LLaVA: a tower for pictures, a tower for the frames of videos, one projector."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from visiondrop.adapters.base import Adapter, Geometry, VisualInput
from visiondrop.adapters.llava import LlavaAdapter

if TYPE_CHECKING:
    from visiondrop.encoder import Encoded, Encoding


class VideoLlavaAdapter(LlavaAdapter):
    """`transformers.VideoLlavaForConditionalGeneration` and its subclasses.

    Pictures are as in LLaVA; a video's frames keep their CLS, which the decoder reads (8 x 257
    tokens). A method's number of tokens is one of each video or picture; what has fewer is left
    whole.
    """

    families = ("VideoLlavaForConditionalGeneration",)

    def geometry(self, config: Any) -> Geometry:
        """Sizes from a `VideoLlavaConfig`; `num_patches` are the tokens of a video (2056), CLS of
        each frame among them, of which `grid` is one frame.
        """
        one = super().geometry(config)
        rows = one.num_patches + int(one.has_cls)
        return dataclasses.replace(
            one,
            num_patches=config.video_seq_length,
            has_cls=False,
            frames=config.video_seq_length // rows,
            frame_cls=one.has_cls,
        )

    def visual_inputs(self, config: Any) -> tuple[VisualInput, ...]:
        """Pictures and videos."""
        return (
            VisualInput("image", config.image_token_id, "pixel_values", "pixel_values_images"),
            VisualInput("video", config.video_token_id, "pixel_values_videos"),
        )

    def entries(self, config: Any, modality: str, output: Any) -> list[int]:
        """Stock code gives a video frame by frame."""
        rows = super().entries(config, modality, output)
        if modality == "video" and rows[0] < config.video_seq_length:
            return [config.video_seq_length] * (sum(rows) // config.video_seq_length)
        return rows

    def vit(self, model: nn.Module, modality: str = "image", **kwargs: Any) -> Any:
        """That of pictures or of videos, both CLIP."""
        base = self.base(model)
        return base.video_tower if modality == "video" else base.image_tower

    extents = Adapter.extents  # refused: videos and pictures do not split a budget before the LLM

    def features(
        self, modality: str, model: nn.Module, encoding: Encoding, *args: Any, **kwargs: Any
    ) -> Encoded:
        """Pictures [B, 3, h, w] or videos [B, F, 3, h, w]; rows [B, n, D'] of each."""
        from visiondrop.encoder import encode_pictures
        from visiondrop.frame_encoder import budgets_of, encode_frames

        names = ("pixel_values_videos" if modality == "video" else "pixel_values",)
        given = dict(zip(names, args, strict=False)) | kwargs
        older = given.get("pixel_values_images")
        pixels: Any = older if given.get(names[0]) is None else given[names[0]]
        own = {"modality": modality, "vision_feature_layer": given.get("vision_feature_layer")}
        one, method = super().geometry(model.config), encoding.method
        if modality == "video":
            frame = dataclasses.replace(one, cls_in_prompt=one.has_cls)
            return encode_frames(
                model, self, dataclasses.replace(encoding, geometry=frame), pixels, **own
            )
        part = method.before_part
        room = one.num_patches + int(part.counts_cls and one.has_cls)
        fits = budgets_of(part, 1, room) is not None or method.before == "prompt"
        encoded = encode_pictures(
            model, self, dataclasses.replace(encoding, geometry=one, fits=fits), pixels, **own
        )
        encoded.pooler_output = torch.stack(list(encoded.pooler_output))
        return encoded
