"""LLaVA-NeXT (1.6): a picture is a thumbnail and crops; unpadded rows end with a newline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from visiondrop.adapters.base import Geometry
from visiondrop.adapters.llava import LlavaAdapter
from visiondrop.functional.anyres_layout import TileGrid

if TYPE_CHECKING:
    from visiondrop.encoder import Encoded, Encoding


class LlavaNextAdapter(LlavaAdapter):
    """`transformers.LlavaNextForConditionalGeneration` and its subclasses."""

    families = ("LlavaNextForConditionalGeneration",)

    def geometry(self, config: Any) -> Geometry:
        """Sizes from a `LlavaNextConfig`; `num_patches` are those of all tiles of the largest
        picture (2880), of which `grid` is one tile.
        """
        if config.vision_feature_select_strategy != "default":
            raise ValueError(
                f"vision_feature_select_strategy={config.vision_feature_select_strategy!r}: tiles "
                "are put together from patches alone, use 'default'"
            )
        size, one = config.vision_config.image_size, super().geometry(config)
        most = max((h // size) * (w // size) for h, w in config.image_grid_pinpoints)
        sizes = {**vars(one), "num_patches": (1 + most) * one.num_patches, "crops": True}
        return Geometry(**sizes)

    def features(
        self, modality: str, model: nn.Module, encoding: Encoding, *args: Any, **kwargs: Any
    ) -> Encoded:
        """Pictures of several tiles, each packed as the model packs it."""
        from visiondrop.tile_encoder import encode_tiles

        given = dict(zip(("pixel_values", "image_sizes"), args, strict=False)) | kwargs
        names = ("pixel_values", "image_sizes", "vision_feature_layer")
        return encode_tiles(model, self, encoding, **{n: given[n] for n in names if n in given})

    def extents(
        self, modality: str, model: nn.Module, *args: Any, **kwargs: Any
    ) -> list[tuple[int, int]]:
        """By the grid of each picture."""
        given = dict(zip(("pixel_values", "image_sizes"), args, strict=False)) | kwargs
        _, grids = self.tiles(model, given["pixel_values"], given["image_sizes"])
        return [(grid.unpruned, grid.patches) for grid in grids]

    def tiles(
        self, model: nn.Module, pixel_values: Tensor, image_sizes: Any
    ) -> tuple[list[Tensor], list[TileGrid]]:
        """The tiles [T, 3, h, w] of each picture, the thumbnail first, and how its crops lie.

        Args:
            pixel_values: [B, T, 3, h, w], padded to the most tiles, or those of all pictures in one
                row, [sum T, 3, h, w].
            image_sizes: (height, width) of each picture.
        """
        config: Any = model.config
        vision = config.vision_config
        sizes = torch.as_tensor(image_sizes).tolist()
        merge: Any = getattr(model, "patch_merge", "spatial_unpad")
        grids = []
        for height, width in sizes:
            rows, columns = get_anyres_image_grid_shape(
                (height, width), config.image_grid_pinpoints, vision.image_size
            )
            side = vision.image_size // vision.patch_size
            grids.append(TileGrid(rows, columns, (width, height), side, merge))
        counts = [grid.tiles for grid in grids]
        if pixel_values.dim() == 5:
            return [p[:n] for p, n in zip(pixel_values, counts, strict=True)], grids
        if pixel_values.shape[0] != sum(counts):
            raise ValueError(
                f"{pixel_values.shape[0]} tiles for pictures whose sizes ask for {sum(counts)}; "
                "prepare pixel_values and image_sizes with one processor"
            )
        return list(pixel_values.split(counts)), grids

    def newline(self, model: nn.Module) -> Tensor:
        """`image_newline`, [D'], which closes a row of patches."""
        return self.base(model).image_newline
