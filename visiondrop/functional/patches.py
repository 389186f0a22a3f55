"""Pictures cut into the patches that visual tokens stand for: their pixels, their places.

Pictures are [..., 3, h, w] as the vision tower reads them (normalised with a mean and a deviation
per channel); patches come in raster order, n = rows x columns of them, `h // rows` pixels high.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visiondrop.scoring import wide

__all__ = ["CLIP_MEAN", "CLIP_STD", "box_patches", "cells", "frame_difference", "grey_entropy"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""How CLIP's pictures (and LLaVA's) are normalised; SigLIP's have 0.5 throughout."""

GREY_LEVELS = 256


def patch_pixels(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """[..., 3, h, w] to [..., n, 3, p * q]; what is left over at the right and bottom is cut off,
    as the tower's own convolution does.
    """
    rows, columns = grid
    high, broad = pixels.shape[-2] // rows, pixels.shape[-1] // columns
    cut = pixels[..., : rows * high, : columns * broad]
    cut = cut.unflatten(-1, (columns, broad)).unflatten(-3, (rows, high))  # 3, rows, p, columns, q
    return cut.movedim((-4, -2), (-5, -4)).flatten(-2).flatten(-4, -3)


def grey_entropy(
    pixels: Tensor,
    grid: tuple[int, int],
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Shannon entropy, in bits, of the grey levels within each patch.

    A pixel's grey level is the mean of its three channels at 8 bits, rounded; the histogram has
    256 bins.

    Args:
        pixels: [G, 3, h, w], normalised with `mean` and `std`.

    Returns: [G, n] in float32, between 0 (one level) and log2 of the patch's pixels.
    """
    patches = patch_pixels(wide(pixels), grid)
    shift, scale = (patches.new_tensor(values)[:, None] for values in (mean, std))
    levels = ((patches * scale + shift) * 255).round().clamp(0, 255)
    grey = levels.mean(-2).round().long()
    counts = torch.zeros(*grey.shape[:-1], GREY_LEVELS, device=grey.device)
    counts.scatter_add_(-1, grey, torch.ones_like(grey, dtype=counts.dtype))
    share = counts / grey.shape[-1]
    return -torch.special.xlogy(share, share).sum(-1) / torch.log(share.new_tensor(2.0))


def frame_difference(pixels: Tensor, grid: tuple[int, int], std: Sequence[float]) -> Tensor:
    """How much each patch differs from the same place of the frame before: mean over channels and
    pixels of |difference|, on the scale of 0 (black) to 1 (white).

    Args:
        pixels: [F, 3, h, w], frames in order, normalised with deviation `std` (their mean cancels).

    Returns: [F - 1, n] in float32.
    """
    step = (
        wide(pixels).diff(dim=0).abs()
        * pixels.new_tensor(std, dtype=wide(pixels).dtype)[:, None, None]
    )
    return patch_pixels(step, grid).mean((-1, -2))


def box_patches(
    boxes: Sequence[Sequence[float]], grid: tuple[int, int], *, radius: int = 0
) -> Tensor:
    """Which patches any of the boxes touches, widened by `radius` patches to all sides.

    Args:
        boxes: (x0, y0, x1, y1) each, as fractions of the picture's width and height; a patch that
            is covered only in part counts, one that only shares an edge does not.

    Returns: [n] bool.
    """
    rows, columns = grid
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    lines, posts = torch.arange(rows), torch.arange(columns)
    for x0, y0, x1, y1 in boxes:
        down = (lines + 1 > y0 * rows) & (lines < y1 * rows)
        across = (posts + 1 > x0 * columns) & (posts < x1 * columns)
        inside |= down[:, None] & across
    if radius:
        near = torch.nn.functional.max_pool2d(
            inside[None].float(), 2 * radius + 1, stride=1, padding=radius
        )
        inside = near[0] > 0
    return inside.flatten()


def cells(grid: tuple[int, int], side: float) -> tuple[Tensor, int]:
    """A coarse grid over the patches: cell (floor(row / side), floor(column / side)).

    Returns: the cell of each patch, [n], and the number of cells. `side` need not be whole.
    """
    rows, columns = grid
    down = torch.div(torch.arange(rows), side, rounding_mode="floor").long()
    across = torch.div(torch.arange(columns), side, rounding_mode="floor").long()
    width = int(across[-1]) + 1
    return (down[:, None] * width + across).flatten(), (int(down[-1]) + 1) * width
