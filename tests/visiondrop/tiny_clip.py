"""A full CLIP checkpoint as wide as the tiny models' vision tower, with text half and tokenizer."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from tests.conftest import GOLDEN

TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


@functools.cache
def tiny_clip() -> str:
    """Its folder, made once in a process."""
    folder = tempfile.mkdtemp(prefix="tiny-clip-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in (*TOKENIZER, "vocab.json"):
        shutil.copy(GOLDEN / "tiny-clip-full-336" / name, Path(folder) / name)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = CLIPConfig(
        text_config=dict(
            **sizes, vocab_size=514, bos_token_id=512, eos_token_id=513, pad_token_id=513
        ),
        vision_config=dict(**sizes, image_size=24, patch_size=4),
        projection_dim=24,
    )
    torch.manual_seed(0)
    clip = CLIPModel(config)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 1.4 / parameter.shape[-1] ** 0.5)
    clip.save_pretrained(folder)
    return folder
