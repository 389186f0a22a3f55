"""A tiny LLaVA checkpoint and LLaVA-form data in a folder, for tests of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llava.train.pocket_model import SHAPES, export, make_model, make_tokenizer


def write_checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    export(make_model(SHAPES["tiny"], tokenizer), tokenizer, folder)
    return folder


def write_data(folder: Path, n: int = 8, plain: bool = False) -> Path:
    """n samples; every fourth without a picture (never in the plain form of alignment)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    samples = []
    for i in range(n):
        human = "<image>\nWhat color is the star?"
        sample = {"id": str(i), "image": f"{i}.png"}
        if not plain and i % 4 == 3:
            human = "What color is the star?"
            del sample["image"]
        else:
            noise = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{i}.png")
        sample["conversations"] = [
            {"from": "human", "value": human},
            {"from": "gpt", "value": ["red", "blue"][i % 2]},
        ]
        if i % 3 == 0 and not plain:
            sample["conversations"] += [
                {"from": "human", "value": "Is there a ring?"},
                {"from": "gpt", "value": "no"},
            ]
        samples.append(sample)
    path = folder / "data.json"
    path.write_text(json.dumps(samples))
    return path
