"""Prompts with pictures as ids, pictures as tensors, and stopping at keywords."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from llava.anyres import (
    divide_to_patches,
    get_anyres_image_grid_shape,
    process_anyres_image,
    resize_and_pad_image,
    select_best_resolution,
    unpad_image,
)
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX

__all__ = [
    "KeywordsStoppingCriteria",
    "divide_to_patches",
    "expand2square",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "load_image_from_base64",
    "process_anyres_image",
    "process_images",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
    "unpad_image",
]

# What `image_aspect_ratio` may say; None and "square" crop the middle.
ASPECT_RATIOS = ("pad", "anyres", "square")


def get_model_name_from_path(model_path: str) -> str:
    """The last part of a path; for a trainer's `checkpoint-N`, with its parent's name before it."""
    parts = model_path.strip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """A picture file's bytes in base64, opened. Raises ValueError where it is none."""
    try:
        opened = Image.open(BytesIO(base64.b64decode(image)))
        opened.load()
    except (binascii.Error, OSError) as error:
        raise ValueError(f"this base64 text is no picture ({error})") from error
    return opened


def expand2square(pil_img: Image.Image, background_color: Any) -> Image.Image:
    """The picture in the middle of a square of its longer side (half a pixel up or left)."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def process_images(
    images: Sequence[Image.Image], image_processor: Any, model_cfg: Any
) -> Tensor | list[Tensor]:
    """Pictures as the model was tuned on, by `model_cfg.image_aspect_ratio`.

    pad: padded to a square with the processor's mean colour, then resized. square (or None):
    resized by the shorter side, the middle cut out. anyres: tiles.

    Returns `[n, 3, S, S]`; for anyres `[n, tiles, 3, S, S]`, or a list of `[tiles, 3, S, S]` where
    the pictures differ in their number of tiles.
    """
    kind = getattr(model_cfg, "image_aspect_ratio", None)
    images = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
    if not images:
        raise ValueError("no pictures to prepare; give at least one")
    if kind == "pad":
        background = tuple(int(mean * 255) for mean in image_processor.image_mean)
        images = [expand2square(image, background) for image in images]
    if kind in (None, "pad", "square"):
        pixels = [
            image_processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
            for image in images
        ]
        return torch.stack(pixels)
    if kind != "anyres":
        raise ValueError(
            f"image_aspect_ratio is {kind!r}; must be one of {', '.join(ASPECT_RATIOS)}"
        )
    pinpoints = getattr(model_cfg, "image_grid_pinpoints", None)
    if pinpoints is None:
        raise ValueError(
            'image_aspect_ratio is "anyres", but this model has no image_grid_pinpoints; only '
            "LLaVA-NeXT models take tiles: use pad or square"
        )
    if getattr(model_cfg, "model_type", None) == "llava_next":
        # transformers' configuration says (height, width).
        pinpoints = [(width, height) for height, width in pinpoints]
    tiles = [process_anyres_image(image, image_processor, pinpoints) for image in images]
    same = all(tile.shape == tiles[0].shape for tile in tiles)
    return torch.stack(tiles) if same else tiles


def tokenizer_image_token(
    prompt: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> Any:
    """A prompt's ids, `image_token_index` where it says `<image>`.

    The texts between pictures are tokenised apart from each other, with BOS at the very start
    only. Returns a list, or with `return_tensors="pt"` a tensor `[T]` of int64.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f'return_tensors is {return_tensors!r}; must be "pt" or None')
    ids: list[int] = []
    for i, text in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN)):
        part = list(tokenizer(text).input_ids)
        if i > 0:
            ids.append(image_token_index)
            if part and part[0] == tokenizer.bos_token_id:
                part = part[1:]
        ids.extend(part)
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids


class KeywordsStoppingCriteria(StoppingCriteria):
    """Ends each row once one of the keywords stands in its new text.

    input_ids: the prompt `[B, T]` as given to `generate`, or new ids only: both are recognised,
    since LLaVA's `generate` shows the new tokens and transformers' shows the prompt too.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: Tensor) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.prompt = input_ids
        self.start_len = int(input_ids.shape[1])
        lengths = [len(tokenizer(keyword).input_ids) for keyword in self.keywords]
        # A keyword's first and last token may be cut otherwise inside a text.
        self.window = max(lengths, default=0) + 2

    def __call__(self, output_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        prompt = self.prompt.to(output_ids.device)
        seen = output_ids[:, : self.start_len]
        new = output_ids
        if seen.shape[1] == self.start_len and torch.equal(seen[0], prompt[0]):
            new = output_ids[:, self.start_len :]
        texts = self.tokenizer.batch_decode(new[:, -self.window :], skip_special_tokens=False)
        found = [any(keyword in text for keyword in self.keywords) for text in texts]
        return torch.tensor(found, dtype=torch.bool, device=output_ids.device)
