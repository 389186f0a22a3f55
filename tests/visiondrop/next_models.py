"""A tiny random LLaVA-NeXT, pictures of several sizes for it, and prompts."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from tests.visiondrop.models import DECODERS, IMAGE, LAYERS, batch, randomise
from visiondrop.functional.anyres_layout import TileGrid

SIDE, TILE = 6, 24
PATCHES = SIDE * SIDE
PINPOINTS = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]
LARGEST = 5 * PATCHES
SIZES = [(48, 36), (24, 40), (17, 72), (48, 48)]
"""(height, width): 2 x 2 crops with padding above and below, 1 x 2, 1 x 3, and without padding."""


@functools.cache
def tiny_next(decoder: str = "llama", kv_heads: int = 4, attention: str = "sdpa") -> Any:
    """A LLaVA-NeXT of 36 patches a tile and 8 decoder layers; see `models.tiny`."""
    torch.manual_seed(1)
    extra = {"sliding_window": None} if decoder == "mistral" else {}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=TILE,
            patch_size=TILE // SIDE,
        ),
        text_config=DECODERS[decoder](
            vocab_size=100,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_id=99,
            pad_token_id=0,
            **extra,
        ),
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    config._attn_implementation = attention
    model = LlavaNextForConditionalGeneration(config)
    randomise(model)
    with torch.no_grad():
        model.model.image_newline.normal_(0, 1.0)
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model.eval()


def picture(size: tuple[int, int], seed: int) -> torch.Tensor:
    """Random tiles [T, 3, 24, 24] for a picture of (height, width)."""
    count = image_size_to_num_patches(size, PINPOINTS, TILE)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, TILE, TILE, generator=generator)


def unpruned(size: tuple[int, int]) -> int:
    """Placeholders of a picture, by the stock packing."""
    model = tiny_next()
    zeros = torch.zeros(image_size_to_num_patches(size, PINPOINTS, TILE), PATCHES, 1)
    packed, _ = model.model.pack_image_features(
        [zeros], torch.tensor([size]), "default", image_newline=torch.zeros(1)
    )
    return len(packed[0])


def grid_of(size: tuple[int, int]) -> TileGrid:
    """How the crops of such a picture lie, by the stock rule."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    rows, columns = get_anyres_image_grid_shape(size, PINPOINTS, TILE)
    return TileGrid(rows, columns, (size[1], size[0]), SIDE)


def prompt(before: int, after: int, seed: int, sizes: list[tuple[int, int]]) -> list[int]:
    """Text, then each picture with text after it."""
    generator = torch.Generator().manual_seed(seed)
    words = lambda n: torch.randint(2, 80, (n,), generator=generator).tolist()  # noqa: E731
    out = [1, *words(before)]
    for size in sizes:
        out += [IMAGE] * unpruned(size) + words(after)
    return out


def inputs(sizes: list[tuple[int, int]], seeds: list[int]) -> dict[str, torch.Tensor]:
    """`pixel_values`, padded to the most tiles, and `image_sizes`."""
    if not sizes:
        return {}
    pictures = [picture(size, seed) for size, seed in zip(sizes, seeds, strict=True)]
    most = max(map(len, pictures))
    pixels = torch.zeros(len(sizes), most, 3, TILE, TILE)
    for row, tiles in zip(pixels, pictures, strict=True):
        row[: len(tiles)] = tiles
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


def generate(model: Any, rows: list[list[int]], images: dict[str, Any], **kwargs: Any) -> Any:
    """Greedy unless told otherwise, with logits."""
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **kwargs}
    kwargs["suppress_tokens"] = [IMAGE]  # stock code counts placeholders in what it generated
    return model.generate(
        **batch(rows), **images, return_dict_in_generate=True, output_logits=True, **kwargs
    )
