"""Tiny random Qwen2-VL and Qwen2.5-VL models, pictures and videos for them, and prompts."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from tests.visiondrop.models import LAYERS, randomise

START, IMAGE, END, VIDEO = 91, 90, 92, 93
PATCH, TEMPORAL, MERGE = 4, 2, 2
LONGEST = 512
JUDGE = {"qwen2_vl": 2, "qwen2_5_vl": 1}
"""The last block of the tower with full attention."""

Shape = tuple[int, int, int]
"""(t, h, w) of a picture or video, in tokens."""

TEXT = dict(
    vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LONGEST,
    bos_token_id=1, eos_token_id=99, pad_token_id=0,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
)  # fmt: skip
SHARED = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START,
    vision_end_token_id=END,
)  # fmt: skip


@functools.cache
def tiny_qwen(family: str = "qwen2_5_vl", attention: str = "sdpa") -> Any:
    """8 decoder layers, 3 blocks in the tower; windows of 2 x 2 tokens but in block 1 of 2.5."""
    torch.manual_seed(3)
    vision: dict[str, Any] = dict(
        depth=3, num_heads=4, patch_size=PATCH, temporal_patch_size=TEMPORAL,
        spatial_merge_size=MERGE,
    )  # fmt: skip
    model: Any
    if family == "qwen2_5_vl":
        vision |= dict(
            hidden_size=32, intermediate_size=48, out_hidden_size=32, window_size=16,
            fullatt_block_indexes=[JUDGE[family]], tokens_per_second=4,
        )  # fmt: skip
        config: Any = Qwen2_5_VLConfig(vision_config=vision, text_config=TEXT, **SHARED)
        config._attn_implementation = attention
        model = Qwen2_5_VLForConditionalGeneration(config)
    else:
        vision |= dict(embed_dim=32, hidden_size=32, mlp_ratio=2)
        config = Qwen2VLConfig(vision_config=vision, text_config=TEXT, **SHARED)
        config._attn_implementation = attention
        model = Qwen2VLForConditionalGeneration(config)
    randomise(model)
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model.eval()


def patches(shape: Shape, seed: int) -> torch.Tensor:
    """Random pixels as the processor packs them, [patches, values of one]."""
    t, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(t * h * w * MERGE**2, 3 * TEMPORAL * PATCH**2, generator=generator)


def words(count: int, generator: torch.Generator) -> list[int]:
    """Random text."""
    return torch.randint(2, 80, (count,), generator=generator).tolist()


Visual = tuple[str, Shape, int]
"""("image" or "video", shape, seed)."""


def row(before: int, after: int, seed: int, visuals: list[Visual]) -> list[int]:
    """Text, then each picture or video with text after it."""
    generator = torch.Generator().manual_seed(seed)
    out = [1, *words(before, generator)]
    for kind, (t, h, w), _ in visuals:
        token = IMAGE if kind == "image" else VIDEO
        out += [START, *[token] * (t * h * w), END, *words(after, generator)]
    return out


def inputs(
    family: str, rows: list[list[int]], visuals: list[list[Visual]], seconds: float = 1.5
) -> dict[str, Any]:
    """What the processor would give: left-padded ids, mask, token types, pixels, grids, and for
    Qwen2.5-VL how many seconds a video's temporal patch lasts.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    out: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}
    flat = [visual for own in visuals for visual in own]
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        own = [(shape, seed) for name, shape, seed in flat if name == kind]
        if own:
            out[pixels] = torch.cat([patches(*one) for one in own])
            grids = [(t, h * MERGE, w * MERGE) for (t, h, w), _ in own]
            out[f"{kind}_grid_thw"] = torch.tensor(grids)
            if kind == "video" and family == "qwen2_5_vl":
                out["second_per_grid_ts"] = torch.full((len(own),), seconds)
    return out


def generate(model: Any, given: dict[str, Any], **kwargs: Any) -> Any:
    """Greedy unless told otherwise, with logits."""
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **kwargs}
    kwargs["suppress_tokens"] = [IMAGE, VIDEO]  # stock code counts placeholders in what it made
    return model.generate(**given, return_dict_in_generate=True, output_logits=True, **kwargs)
