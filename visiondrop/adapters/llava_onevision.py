"""LLaVA-OneVision: SigLIP, any resolution with a limit, videos pooled frame by frame, newlines."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from visiondrop.adapters.base import Adapter, Geometry, VisualInput
from visiondrop.adapters.llava import LlavaAdapter
from visiondrop.functional.packed_layout import shrunk

if TYPE_CHECKING:
    from visiondrop.encoder import Encoded, Encoding


class LlavaOnevisionAdapter(LlavaAdapter):
    """`transformers.LlavaOnevisionForConditionalGeneration` and its subclasses."""

    families = ("LlavaOnevisionForConditionalGeneration",)

    def geometry(self, config: Any) -> Geometry:
        """Sizes from a `LlavaOnevisionConfig`; `num_patches` are the tokens of the largest picture
        without newlines (8019 for the released models), of which `grid` is the base tile.
        """
        one, size = super().geometry(config), config.vision_config.image_size
        if one.has_cls or config.vision_feature_select_strategy != "full":
            raise ValueError(
                f"a {config.vision_config.model_type} tower with vision_feature_select_strategy="
                f"{config.vision_feature_select_strategy!r}: tiles are packed from patches alone; "
                "use a tower without CLS and 'full'"
            )
        side, most = one.grid[0], int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        largest = max(
            rows * columns
            for h, w in config.image_grid_pinpoints
            for rows, columns in [shrunk(h // size * side, w // size * side, side, most)]
        )
        tokens = one.num_patches + largest
        return dataclasses.replace(one, num_patches=tokens, crops=True, merged=True, packed=True)

    def visual_inputs(self, config: Any) -> tuple[VisualInput, ...]:
        """Pictures and videos."""
        return (
            VisualInput("image", config.image_token_id),
            VisualInput("video", config.video_token_id, "pixel_values_videos"),
        )

    extents = Adapter.extents  # refused: videos and pictures do not split a budget before the LLM

    def features(
        self, modality: str, model: nn.Module, encoding: Encoding, *args: Any, **kwargs: Any
    ) -> Encoded:
        """Pictures of several tiles, or of one where a prompt has several; videos."""
        from visiondrop.packed_encoder import encode_packed, encode_pooled

        base, layer = self.base(model), "vision_feature_layer"
        names = ["pixel_values", "image_sizes"]
        if modality == "video":
            names = list(inspect.signature(type(base).get_video_features).parameters)[1:2]
        given = dict(zip(names, args, strict=False)) | kwargs
        own = {layer: given[layer]} if layer in given else {}
        if modality == "video":
            pixels, pool = given[names[0]], base.apply_pooling
            encoded: Any = encode_pooled(model, self, encoding, pixels, pool, **own)
            if names[0] == "pixel_values":  # older transformers add the newline in their forward
                encoded.pooler_output = encoded.pooler_output[:, :-1]
            return encoded
        sizes = torch.as_tensor(given["image_sizes"])
        ratio = given.get("vision_aspect_ratio") or model.config.vision_aspect_ratio  # type: ignore[union-attr]

        def pack(p: int, values: Tensor, newline: Tensor) -> Tensor:
            packed, _ = base.pack_image_features(
                [values], sizes[p : p + 1], image_newline=newline, vision_aspect_ratio=ratio
            )
            return packed[0]

        stacks = self.tiles(model, given["pixel_values"], sizes, given.get("batch_num_images"))
        return encode_packed(model, self, encoding, stacks, pack, **own)

    def tiles(
        self, model: nn.Module, pixel_values: Tensor, sizes: Tensor, counts: Any
    ) -> list[Tensor]:
        """The tiles [T, 3, h, w] of each picture, the base first.

        Args:
            pixel_values: [B, T, 3, h, w], padded to the most tiles, or those of all pictures in one
                row; sizes: [B, 2], (height, width); counts: pictures of each prompt, None where
                each has one. A picture that is not alone in its prompt is one tile.
        """
        config: Any = model.config
        alone = [True] * len(sizes)
        if counts is not None:
            alone = [int(n) == 1 for n in counts for _ in range(int(n))]
        size, pinpoints = config.vision_config.image_size, config.image_grid_pinpoints
        tiles = [
            image_size_to_num_patches(own, pinpoints, size) if single else 1
            for own, single in zip(sizes.tolist(), alone, strict=False)
        ]
        if pixel_values.dim() == 5:
            return [p[:n] for p, n in zip(pixel_values, tiles, strict=False)]
        return list(pixel_values.split(tiles))

    def newline(self, model: nn.Module) -> Tensor:
        """`image_newline`, [D'], which closes a row, a single tile and a video."""
        return self.base(model).image_newline
