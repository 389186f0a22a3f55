"""Tiny random models with decisive attention, and prompts for them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

IMAGE = 90
PATCHES = 36
LAYERS = 8

DECODERS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def randomise(model: torch.nn.Module) -> None:
    """Weights large enough that attention is uneven and scores have no ties."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "patch_embedding" not in name:
                parameter.normal_(0, 1.4 / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)


@functools.cache
def tiny(
    tower: str = "clip",
    decoder: str = "llama",
    heads: int = 4,
    kv_heads: int = 4,
    attention: str = "sdpa",
    seed: int = 0,
) -> Any:
    """A LLaVA of 36 patches and 8 decoder layers; weights scaled so that scores differ clearly."""
    torch.manual_seed(seed)
    vision = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=24,
        patch_size=4,
    )
    extra = {"sliding_window": None} if decoder == "mistral" else {}
    text = DECODERS[decoder](
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=99,
        pad_token_id=0,
        **extra,
    )
    config = LlavaConfig(
        vision_config=(
            CLIPVisionConfig(**vision)
            if tower == "clip"
            else SiglipVisionConfig(**vision, vision_use_head=False)
        ),
        text_config=text,
        image_token_id=IMAGE,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        image_seq_length=PATCHES,
    )
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config)
    randomise(model)
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model.eval()


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    """Random pictures."""
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def prompt(before: int, after: int, seed: int = 0, pictures: int = 1) -> list[int]:
    """Text, a picture, text (and again for further pictures)."""
    generator = torch.Generator().manual_seed(seed)
    words = lambda n: torch.randint(2, 80, (n,), generator=generator).tolist()  # noqa: E731
    out = [1, *words(before)]
    for _ in range(pictures):
        out += [IMAGE] * PATCHES + words(after)
    return out


def batch(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Left-padded ids and mask."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(r)) + r for r in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
    }


def generate(model: Any, rows: list[list[int]], images: torch.Tensor | None, **kwargs: Any) -> Any:
    """Greedy unless told otherwise, with logits."""
    kwargs = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, **kwargs}
    kwargs["suppress_tokens"] = [IMAGE]  # stock code counts placeholders in what it generated
    if images is not None:
        kwargs["pixel_values"] = images
    return model.generate(**batch(rows), return_dict_in_generate=True, output_logits=True, **kwargs)


def logits(out: Any) -> torch.Tensor:
    """[steps, B, V]."""
    return torch.stack(out.logits)
