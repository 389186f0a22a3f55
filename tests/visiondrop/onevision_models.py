"""A tiny random LLaVA-OneVision, pictures of several sizes and clips for it, and prompts."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from tests.visiondrop.models import IMAGE, LAYERS, batch, randomise

VIDEO = 91
SIDE, TILE, FRAMES = 5, 20, 3
PATCHES = SIDE * SIDE
POOLED = 3 * 3
CLIP_TOKENS = FRAMES * POOLED + 1
"""Placeholders of a clip: each frame pooled to 3 x 3, and a newline."""
PINPOINTS = [[TILE * h, TILE * w] for h in (1, 2, 3) for w in (1, 2, 3)]
MOST = 2
LARGEST = PATCHES + 2 * PATCHES
"""The largest picture: the base and two crops, which are not shrunk (newlines not counted)."""
SIZES = [(40, 30), (20, 20), (60, 45), (14, 60)]
"""(height, width): 2 x 2 crops, padded and shrunk; one crop; 3 x 3 crops, padded and shrunk; 1 x 3
crops, padded, whose grid is too small to be shrunk.
"""


@functools.cache
def tiny_onevision(kv_heads: int = 2, attention: str = "sdpa") -> Any:
    """A LLaVA-OneVision of 25 patches a tile and 8 decoder layers; see `models.tiny`."""
    torch.manual_seed(3)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=TILE,
            patch_size=TILE // SIDE,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
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
        ),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=f"anyres_max_{MOST}",
    )
    config._attn_implementation = attention
    model = LlavaOnevisionForConditionalGeneration(config)
    randomise(model)
    with torch.no_grad():
        model.model.image_newline.normal_(0, 1.0)
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model.eval()


def tiles_of(size: tuple[int, int]) -> int:
    """Tiles of a picture of (height, width) that is alone in its prompt."""
    return image_size_to_num_patches(size, PINPOINTS, TILE)


def picture(size: tuple[int, int], seed: int) -> torch.Tensor:
    """Random tiles [T, 3, h, w]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tiles_of(size), 3, TILE, TILE, generator=generator)


def clip(seed: int) -> torch.Tensor:
    """[F, 3, h, w]: each frame is the one before it, changed in places."""
    draw = torch.Generator().manual_seed(100 + seed)
    frames = [torch.randn(3, TILE, TILE, generator=draw)]
    for _ in range(FRAMES - 1):
        stays = torch.rand(1, TILE, TILE, generator=draw) < 0.7
        fresh = torch.randn(3, TILE, TILE, generator=draw)
        frames.append(torch.where(stays, frames[-1], fresh))
    return torch.stack(frames)


def unpruned(size: tuple[int, int], alone: bool = True) -> int:
    """Placeholders of a picture, by the stock packing."""
    zeros = torch.zeros(tiles_of(size) if alone else 1, PATCHES, 1)
    packed, _ = tiny_onevision().model.pack_image_features(
        [zeros],
        torch.tensor([size]),
        image_newline=torch.zeros(1),
        vision_aspect_ratio=f"anyres_max_{MOST}",
    )
    return len(packed[0])


Things = list[tuple[int, int] | str]
"""What a prompt holds: pictures by their (height, width), clips as "v"."""


def prompt(before: int, after: int, seed: int, things: Things) -> list[int]:
    """Text, then each picture or clip with text after it."""
    generator = torch.Generator().manual_seed(seed)
    words = lambda n: torch.randint(2, 80, (n,), generator=generator).tolist()  # noqa: E731
    alone = sum(thing != "v" for thing in things) == 1
    out = [1, *words(before)]
    for thing in things:
        if isinstance(thing, str):
            out += [VIDEO] * CLIP_TOKENS
        else:
            out += [IMAGE] * unpruned(thing, alone)
        out += words(after)
    return out


def inputs(rows: list[Things], seeds: list[list[int]]) -> dict[str, torch.Tensor]:
    """The pixels of the prompts' pictures and clips, one seed each; a picture that is not alone in
    its prompt is given by its base tile.
    """
    stacks, sizes, clips, counts = [], [], [], []
    for things, own in zip(rows, seeds, strict=True):
        count = sum(thing != "v" for thing in things)
        counts += [count] if count else []
        for thing, seed in zip(things, own, strict=True):
            if isinstance(thing, str):
                clips.append(clip(seed))
                continue
            sizes.append(thing)
            stacks.append(picture(thing, seed)[: None if count == 1 else 1])
    out = {}
    if stacks:
        most = max(map(len, stacks))
        out["pixel_values"] = torch.zeros(len(stacks), most, 3, TILE, TILE)
        for row, tiles in zip(out["pixel_values"], stacks, strict=True):
            row[: len(tiles)] = tiles
        out["image_sizes"] = torch.tensor(sizes)
        out["batch_num_images"] = torch.tensor(counts)
    if clips:
        out["pixel_values_videos"] = torch.stack(clips)
    return out


def generate(model: Any, rows: list[list[int]], pixels: dict[str, Any], **kwargs: Any) -> Any:
    """Greedy unless told otherwise, with logits."""
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **kwargs}
    kwargs["suppress_tokens"] = [IMAGE, VIDEO]  # stock code counts placeholders in its own output
    return model.generate(
        **batch(rows), **pixels, return_dict_in_generate=True, output_logits=True, **kwargs
    )
