"""A tiny random InternVL, pictures of several tiles for it, and prompts."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

from tests.visiondrop.models import DECODERS, IMAGE, LAYERS, batch, randomise

TILE, PATCH = 32, 4
PATCHES = (TILE // PATCH) ** 2
SIDE = TILE // PATCH // 2
TOKENS = SIDE * SIDE
"""Visual tokens of a tile."""
BEGIN, END = 91, 92
"""`<img>` and `</img>`, which stand around a picture's placeholders."""

PLAIN: dict[str, Any] = {"norm_type": "layer_norm"}
NORMED: dict[str, Any] = {
    "use_qk_norm": True,
    "norm_type": "rms_norm",
    "use_mean_pooling": False,
    "attention_bias": True,
}


@functools.cache
def tiny_internvl(
    decoder: str = "qwen2",
    kv_heads: int = 2,
    attention: str = "sdpa",
    normed: bool = False,
    layer: int = -1,
) -> Any:
    """An InternVL of 64 patches, which make 16 tokens a tile, and 8 decoder layers.

    Args:
        normed: with norms of queries and keys, RMS norms, biases and a last norm of the tower (as
            the tower of the largest models has), or none of these (the small ones).
        layer: `vision_feature_layer`.
    """
    torch.manual_seed(1)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=[TILE, TILE],
            patch_size=[PATCH, PATCH],
            **(NORMED if normed else PLAIN),
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
        ),
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        vision_feature_layer=layer,
        tie_word_embeddings=False,
    )
    config._attn_implementation = attention
    model = InternVLForConditionalGeneration(config)
    randomise(model)
    with torch.no_grad():
        embeddings = model.model.vision_tower.embeddings
        embeddings.position_embeddings.normal_(0, 0.5)
        embeddings.cls_token.normal_(0, 0.5)
        embeddings.patch_embeddings.projection.weight.normal_(0, 0.2)
        for block in model.model.vision_tower.encoder.layer:
            block.lambda_1.uniform_(0.3, 0.9)
            block.lambda_2.uniform_(0.3, 0.9)
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model.eval()


def picture(tiles: int, seed: int) -> torch.Tensor:
    """Random tiles [T, 3, 32, 32]; where there are several, the last stands for the thumbnail."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tiles, 3, TILE, TILE, generator=generator)


def prompt(before: int, after: int, seed: int, tiles: list[int]) -> list[int]:
    """Text, then each picture of so many tiles, with text after it."""
    generator = torch.Generator().manual_seed(seed)
    words = lambda n: torch.randint(2, 80, (n,), generator=generator).tolist()  # noqa: E731
    out = [1, *words(before)]
    for count in tiles:
        out += [BEGIN, *[IMAGE] * (count * TOKENS), END, *words(after)]
    return out


def inputs(tiles: list[int], seeds: list[int]) -> dict[str, torch.Tensor]:
    """`pixel_values`, the tiles of all pictures in one row."""
    if not tiles:
        return {}
    pictures = [picture(count, seed) for count, seed in zip(tiles, seeds, strict=True)]
    return {"pixel_values": torch.cat(pictures)}


def generate(model: Any, rows: list[list[int]], images: dict[str, Any], **kwargs: Any) -> Any:
    """Greedy unless told otherwise, with logits."""
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **kwargs}
    kwargs["suppress_tokens"] = [IMAGE]  # stock code counts placeholders in what it generated
    return model.generate(
        **batch(rows), **images, return_dict_in_generate=True, output_logits=True, **kwargs
    )
