"""Pictures of any resolution, cut into tiles of the tower's size (LLaVA-NeXT).

Sizes are (width, height) throughout, as PIL and LLaVA say them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]


def select_best_resolution(original_size: Sequence[int], possible: Sequence[Sequence[int]]) -> Size:
    """The resolution that keeps most of the picture's pixels; among equals the least empty one."""
    if not possible:
        raise ValueError("no resolutions to choose from; give [[width, height], ...]")
    width, height = original_size

    def rank(candidate: Sequence[int]) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - candidate[0] * candidate[1]

    best = max(possible, key=rank)  # the first of equals, as in LLaVA
    return int(best[0]), int(best[1])


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """The picture as large as fits, in the middle of a black canvas (bicubic)."""
    width, height = image.size
    scales = target_resolution[0] / width, target_resolution[1] / height
    if scales[0] < scales[1]:
        size = target_resolution[0], min(math.ceil(height * scales[0]), target_resolution[1])
    else:
        size = min(math.ceil(width * scales[1]), target_resolution[0]), target_resolution[1]
    canvas = Image.new("RGB", target_resolution, (0, 0, 0))
    corner = (target_resolution[0] - size[0]) // 2, (target_resolution[1] - size[1]) // 2
    canvas.paste(image.resize(size), corner)
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Square tiles in reading order."""
    width, height = image.size
    return [
        image.crop((x, y, x + patch_size, y + patch_size))
        for y in range(0, height, patch_size)
        for x in range(0, width, patch_size)
    ]


def parse_pinpoints(grid_pinpoints: Any) -> list[Size]:
    """`[[width, height], ...]`, also as the text of it (which older configurations hold)."""
    given = grid_pinpoints
    if isinstance(given, str):
        try:
            grid_pinpoints = json.loads(given.replace("(", "[").replace(")", "]"))
        except json.JSONDecodeError:
            grid_pinpoints = None
    if not (
        isinstance(grid_pinpoints, (list, tuple))
        and grid_pinpoints
        and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in grid_pinpoints)
    ):
        raise ValueError(f"image_grid_pinpoints is {given!r}; must be [[width, height], ...]")
    return [(int(width), int(height)) for width, height in grid_pinpoints]


def get_anyres_image_grid_shape(
    image_size: Sequence[int], grid_pinpoints: Any, patch_size: int
) -> Size:
    """How many tiles of `patch_size` lie beside each other and below each other."""
    width, height = select_best_resolution(image_size, parse_pinpoints(grid_pinpoints))
    return width // patch_size, height // patch_size


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: Any) -> Tensor:
    """The whole picture squeezed into one tile, then its tiles: `[1 + tiles, 3, S, S]`."""
    best = select_best_resolution(image.size, parse_pinpoints(grid_pinpoints))
    side = int(processor.size["shortest_edge"])
    tiles = divide_to_patches(resize_and_pad_image(image, best), int(processor.crop_size["height"]))
    pictures = [image.resize((side, side)), *tiles]
    return torch.stack(
        [processor.preprocess(tile, return_tensors="pt")["pixel_values"][0] for tile in pictures]
    )


def unpad_image(tensor: Tensor, original_size: Sequence[int]) -> Tensor:
    """Features `[C, H, W]` of a padded picture without the rows or columns that are padding."""
    width, height = original_size
    rows, columns = tensor.shape[1:]
    if width / height > columns / rows:
        cut = (rows - int(height * (columns / width))) // 2
        return tensor[:, cut : rows - cut, :]
    cut = (columns - int(width * (rows / height))) // 2
    return tensor[:, :, cut : columns - cut]
