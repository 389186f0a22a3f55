"""A text encoder with random weights, for methods that compare patches with the question."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

__all__ = ["random_clip"]


def random_clip(folder: Path, vision_width: int) -> Path:
    """Write a full CLIP whose vision half is as wide as a model's tower.

    Its text half is that of CLIP ViT-L/14 (12 layers of 768), for towers below 512 a small one (2
    of 64). Only what methods read has its size: the vision half has one layer, the vocabulary is
    letters. Questions are padded to 77 tokens, so that neither changes what it costs.
    """
    layers, width = (12, 768) if vision_width >= 512 else (2, 64)
    letters = list(bytes_to_unicode().values())
    ends = ("<|startoftext|>", "<|endoftext|>")
    tokens = [*letters, *(letter + "</w>" for letter in letters), *ends]
    bos, eos = len(tokens) - 2, len(tokens) - 1
    heads = max(1, vision_width // 64)
    config = CLIPConfig(
        text_config=dict(
            vocab_size=len(tokens), hidden_size=width, intermediate_size=4 * width,
            num_hidden_layers=layers, num_attention_heads=width // 64,
            bos_token_id=bos, eos_token_id=eos, pad_token_id=eos,
        ),
        vision_config=dict(
            hidden_size=vision_width, intermediate_size=vision_width, num_hidden_layers=1,
            num_attention_heads=heads, image_size=28, patch_size=14,
        ),
        projection_dim=width,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder
