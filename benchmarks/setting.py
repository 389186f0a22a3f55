"""What a benchmark runs on: a model with random weights, a prompt, and the machine."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from visiondrop.adapters import geometry_of
from visiondrop.profiling.machine import cpu_name

# vision layers, vision width, decoder layers, decoder width, decoder MLP width, heads, vocabulary
GEOMETRIES = {
    "tiny": (3, 32, 4, 32, 64, 2, 64),
    "pocket": (6, 128, 16, 192, 512, 4, 1024),
    "medium": (12, 512, 16, 1024, 2816, 16, 8192),
    "llava-1.5-7b": (24, 1024, 32, 4096, 11008, 32, 32064),
}


def random_model(
    geometry: str, dtype: torch.dtype, device: str, image_size: int = 336
) -> tuple[LlavaForConditionalGeneration, str]:
    """A LLaVA of a geometry with random weights, and its description.

    `image_size` in pixels, 14 to a patch: 336 gives 24 x 24 patches.
    """
    vision_layers, vision_width, layers, width, mlp_width, heads, vocabulary = GEOMETRIES[geometry]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            num_hidden_layers=vision_layers,
            hidden_size=vision_width,
            intermediate_size=4 * vision_width,
            num_attention_heads=max(1, vision_width // 64),
            image_size=image_size,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            num_hidden_layers=layers,
            hidden_size=width,
            intermediate_size=mlp_width,
            num_attention_heads=heads,
            vocab_size=vocabulary,
            max_position_embeddings=4096,
        ),
        image_token_index=vocabulary - 1,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    return model.eval(), f"random weights, geometry {geometry}"


def random_clip(geometry: str, folder: Path) -> Path:
    """A full CLIP with random weights whose vision half fits a geometry, for methods that compare
    patches with the question. Its text half is as deep and wide as CLIP ViT-B's (12 x 512), for the
    small geometries 2 x 64. Only the parts that are read are of the right size: the vision half has
    one layer.
    """
    text_layers, text_width = (2, 64) if geometry in ("tiny", "pocket") else (12, 512)
    bos, eos = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(unk_token=eos))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(special_tokens=[bos, eos], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([QUESTION], trainer)
    ids = {token: tokenizer.token_to_id(token) for token in (bos, eos)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=list(ids.items())
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos
    )
    vision_width = GEOMETRIES[geometry][1]
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=dict(
            vocab_size=len(fast), hidden_size=text_width, intermediate_size=4 * text_width,
            num_hidden_layers=text_layers, num_attention_heads=text_width // 64,
            bos_token_id=ids[bos], eos_token_id=ids[eos], pad_token_id=ids[eos],
        ),
        vision_config=dict(
            hidden_size=vision_width, intermediate_size=vision_width, num_hidden_layers=1,
            num_attention_heads=max(1, vision_width // 64), image_size=28, patch_size=14,
        ),
        projection_dim=text_width,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


QUESTION = "What is the brand of this camera?"


def prompt(model: Any, text_tokens: int) -> dict[str, torch.Tensor]:
    """One picture of noise within `text_tokens` other tokens, half of them before it."""
    geometry = geometry_of(model)
    device, image_id = model.device, model.config.image_token_id
    side = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((1, text_tokens + geometry.num_patches), image_id)
    before = text_tokens // 2
    is_text = torch.ones_like(ids, dtype=torch.bool)
    is_text[:, before : before + geometry.num_patches] = False
    vocabulary = model.config.text_config.vocab_size
    text = torch.randint(vocabulary - 1, (text_tokens,), generator=generator)
    ids[is_text] = text + (text >= image_id)  # any token but the placeholder
    pixels = torch.randn(1, 3, side, side, generator=generator).to(device, model.dtype)
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "pixel_values": pixels,
    }


def machine(model: Any) -> dict[str, Any]:
    """What the times depend on."""
    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": platform.platform(),
    }
