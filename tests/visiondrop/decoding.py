"""What the tests of recorded decode steps share."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from transformers import DynamicCache

from tests.visiondrop.matrix import METHODS
from tests.visiondrop.models import batch, generate, pixels, prompt, tiny
from visiondrop.engine import Engine

ROWS = [prompt(3, 6, 1), prompt(5, 9, 2), prompt(3, 4, 3)]
WIDE = 0.95
CLOSE = {"sdpa": {"atol": 1e-9, "rtol": 1e-9}, "eager": {"atol": 1e-6, "rtol": 1e-6}}
"""In float64, where eager attention has its softmax in float32."""
DROP = METHODS["visiondrop"]  # four blocks


@functools.cache
def double(**kwargs: Any) -> Any:
    model = tiny(**kwargs)
    attention = model.config.text_config._attn_implementation
    model = copy.deepcopy(model).double()
    model.set_attn_implementation(attention)
    return model


def answer(model: Any, method: Any, rows: Any, engine: Engine | None = None, **kwargs: Any) -> Any:
    dtype = next(model.parameters()).dtype
    with method(model, engine=engine) as trace:
        return generate(model, rows, pixels(len(rows)).to(dtype), **kwargs), trace.paths


def recorded(engine: Engine) -> list[Any]:
    """Keys of the recorded decode steps."""
    return [key for name, key in engine._recordings if name == "decode"]


def steps(count: int) -> dict[str, int]:
    return {"max_new_tokens": count, "min_new_tokens": count}


class Talk:
    """A generation step by step, so that others come between."""

    def __init__(self, model: Any, row: list[int], image: torch.Tensor):
        self.model, self.kv = model, DynamicCache(config=model.config.text_config)
        self.seen: list[torch.Tensor] = []
        self.tell(batch([row])["input_ids"], pixel_values=image.double(), logits_to_keep=1)

    def tell(self, ids: torch.Tensor, **kwargs: Any) -> None:
        with torch.no_grad():
            out = self.model(ids, past_key_values=self.kv, use_cache=True, **kwargs)
        self.seen.append(out.logits[0, -1].clone())

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.tell(self.seen[-1].argmax()[None, None])

    def lengths(self) -> list[int]:
        return [layer.get_seq_length() for layer in self.kv.layers]


def close(a: Talk, b: Talk) -> None:
    torch.testing.assert_close(torch.stack(a.seen), torch.stack(b.seen), **CLOSE["sdpa"])
    assert a.lengths() == b.lengths()
