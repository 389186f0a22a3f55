"""A tiny random Video-LLaVA, pictures and clips for it, and prompts."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from transformers import CLIPVisionConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from tests.visiondrop.models import DECODERS, IMAGE, LAYERS, batch, randomise

VIDEO = 91
ARGUMENTS = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
PICTURES = "pixel_values" if "pixel_values" in ARGUMENTS else "pixel_values_images"
"""What this version of transformers calls the pixels of pictures."""
SIDE, FRAMES, PIXELS = 4, 3, 24
PATCHES = SIDE * SIDE
FRAME = PATCHES + 1
CLIP_TOKENS = FRAMES * FRAME
"""Placeholders of a clip: every frame with its CLS."""


@functools.cache
def tiny_video(decoder: str = "llama", kv_heads: int = 4, attention: str = "sdpa") -> Any:
    """A Video-LLaVA of 16 patches, 3 frames and 8 decoder layers; see `models.tiny`."""
    torch.manual_seed(2)
    extra = {"sliding_window": None} if decoder == "mistral" else {}
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=PIXELS,
            patch_size=PIXELS // SIDE,
        ),
        text_config=DECODERS[decoder](
            vocab_size=100,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=99,
            pad_token_id=0,
            **extra,
        ),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=PATCHES,
        video_seq_length=CLIP_TOKENS,
    )
    config._attn_implementation = attention
    model = VideoLlavaForConditionalGeneration(config)
    randomise(model)
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model.eval()


def picture(seed: int) -> torch.Tensor:
    """[3, h, w], random."""
    return torch.randn(3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))


def clip(seed: int) -> torch.Tensor:
    """[F, 3, h, w]: each frame is the one before it, changed in places."""
    draw = torch.Generator().manual_seed(100 + seed)
    frames = [torch.randn(3, PIXELS, PIXELS, generator=draw)]
    step = PIXELS // SIDE
    for _ in range(FRAMES - 1):
        stays = (torch.rand(SIDE, SIDE, generator=draw) < 0.5).repeat_interleave(step, 0)
        fresh = torch.randn(3, PIXELS, PIXELS, generator=draw)
        frames.append(torch.where(stays.repeat_interleave(step, 1), frames[-1], fresh))
    return torch.stack(frames)


def prompt(before: int, after: int, seed: int, kinds: str) -> list[int]:
    """Text, then for each letter of `kinds` a picture ("p") or a clip ("v") with text after it."""
    generator = torch.Generator().manual_seed(seed)
    words = lambda n: torch.randint(2, 80, (n,), generator=generator).tolist()  # noqa: E731
    out = [1, *words(before)]
    for kind in kinds:
        out += ([IMAGE] * PATCHES if kind == "p" else [VIDEO] * CLIP_TOKENS) + words(after)
    return out


def inputs(kinds: str, seeds: list[int]) -> dict[str, torch.Tensor]:
    """The pixels of the pictures and clips `kinds`, in reading order, one seed each."""
    pairs = list(zip(kinds, seeds, strict=True))
    pictures = [picture(seed) for kind, seed in pairs if kind == "p"]
    clips = [clip(seed) for kind, seed in pairs if kind == "v"]
    out = {}
    if pictures:
        out[PICTURES] = torch.stack(pictures)
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
