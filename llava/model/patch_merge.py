"""The ways in which an original LLaVA checkpoint puts the tiles of a picture together.

`mm_patch_merge_type` is "spatial_unpad" in every published LLaVA-NeXT checkpoint, and that is what
transformers' class does: the thumbnail, then the crops row by row over the whole grid without the
border that padding made, each row closed by a newline. "spatial" keeps the border and has no
newlines; "flat" has one tile after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

PatchMerge = Literal["spatial_unpad", "spatial", "flat"]
PATCH_MERGES: tuple[PatchMerge, ...] = ("spatial_unpad", "spatial", "flat")


def patch_merge(config: Any) -> PatchMerge:
    """How a LLaVA-NeXT configuration puts tiles together; transformers' own way where it is silent.

    Raises ValueError for a name that is none.
    """
    named = getattr(config, "mm_patch_merge_type", None) or "spatial_unpad"
    for known in PATCH_MERGES:
        if named == known:
            return known
    raise ValueError(f"mm_patch_merge_type is {named!r}; must be one of {', '.join(PATCH_MERGES)}")


def set_packing(model: Any, merge: PatchMerge) -> None:
    """Gives a `LlavaNextModel` another way to pack tiles than its own."""
    if merge != "spatial_unpad":
        model.pack_image_features = functools.partial(_pack, model.config, merge)


def _pack(
    config: Any,
    merge: PatchMerge,
    image_features: Sequence[Tensor],
    image_sizes: Any,
    vision_feature_select_strategy: str,
    image_newline: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """As `LlavaNextModel.pack_image_features`: tiles [T, n, D] of each picture to [T n, D]."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    packed = []
    for tiles, size in zip(image_features, image_sizes, strict=True):
        thumbnail, crops = tiles[0], tiles[1:]
        if merge == "spatial":
            grid = get_anyres_image_grid_shape(
                size, config.image_grid_pinpoints, config.vision_config.image_size
            )
            crops = crops.view(*grid, side, side, -1).transpose(1, 2)
        packed.append(torch.cat([thumbnail, crops.reshape(-1, tiles.shape[-1])]))
    lengths = torch.tensor([len(rows) for rows in packed], device=image_features[0].device)
    return packed, lengths
