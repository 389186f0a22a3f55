"""Grouped-query attention: the same model with every key and value head written out.

A multi-head model whose key and value weights are repeated computes the same, so that every LLM
stage must keep and merge the same tokens. (The released VisionDrop fails on grouped queries.)
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.visiondrop import next_models
from tests.visiondrop.models import logits
from visiondrop import VisionDrop
from visiondrop.methods.dart import DART
from visiondrop.methods.fastv import FastV
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.visiondrop_div import VisionDropDiv
from visiondrop.reducer import Reducer

METHODS: dict[str, Reducer] = {
    "visiondrop": VisionDrop(encoder=(50, 8), llm={2: (30, 5), 5: (11, 2)}),
    "visiondrop-expectation": VisionDrop(llm={1: (40, 6), 5: (11, 2)}, causal="expectation"),
    "visiondrop_div": VisionDropDiv(encoder=(40, 8), llm={2: (20, 5), 4: (9, 2)}),
    "pyramiddrop": PyramidDrop((2, 4), (0.5, 0.2)),
    "fastv": FastV(2, tokens=40),
    "dart": DART(2, tokens=30),
    "sparsevlm": SparseVLM((1, 2, 4), (60, 30, 12)),
}
SIZES = [next_models.SIZES[0], next_models.SIZES[1]]
ROWS = [next_models.prompt(3 + i, 5, i, [size]) for i, size in enumerate(SIZES)]
IMAGES = next_models.inputs(SIZES, [1, 2])


def written_out(model: Any) -> Any:
    """The multi-head model: each key and value head once for every query head that uses it."""
    config = copy.deepcopy(model.config)
    text = config.text_config
    groups = text.num_attention_heads // text.num_key_value_heads
    size = text.hidden_size // text.num_attention_heads
    text.num_key_value_heads = text.num_attention_heads
    wide = type(model)(config)
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")) and ".language_model." in name:
            heads = value.view(-1, size, value.shape[-1]).repeat_interleave(groups, 0)
            state[name] = heads.reshape(-1, value.shape[-1])
    wide.load_state_dict(state)
    wide.set_attn_implementation(model.config._attn_implementation)
    wide.generation_config = model.generation_config
    return wide.eval()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", [("mistral", 2), ("llama", 1)], ids=["mistral-2", "llama-1"])
def test_as_with_repeated_heads(name: str, family: tuple[str, int]) -> None:
    model = next_models.tiny_next(*family)
    heads = model.config.text_config
    assert heads.num_key_value_heads == family[1] < heads.num_attention_heads == 4
    outs, records = [], []
    for one in (model, written_out(model)):
        with METHODS[name](one) as trace:
            outs.append(next_models.generate(one, ROWS, IMAGES))
        records.append([sample.to_dict() for sample in trace.samples])
        assert (
            trace.samples[0].bytes_per_token
            == 2 * 8 * 4 * one.config.text_config.num_key_value_heads
        )
    torch.testing.assert_close(logits(outs[0]), logits(outs[1]), atol=2e-4, rtol=1e-4)
    kv = 4 // family[1]
    for few, many in zip(*records, strict=True):
        assert many.pop("kv_bytes") == kv * few.pop("kv_bytes")
        assert few == many
