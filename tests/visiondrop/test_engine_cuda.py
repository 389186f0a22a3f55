"""CUDA graphs of the prefill and the tower: lengths that come mixed, as memory is shared by graphs.

On other machines the same contract is tested by what `engines.Held` and "replay" stand in for.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.visiondrop import models
from tests.visiondrop.engines import assert_same
from tests.visiondrop.matrix import METHODS
from visiondrop import VisionDrop
from visiondrop.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

THREE = VisionDrop(encoder=(30, 6), llm={2: (20, 4), 5: (9, 2)})
NAMES = ["full", "visiondrop", "fastv", "dart-options", "prumerge+-trained"]
# Two prompts whose first is padded; lengths that share a bucket and lengths that do not.
SAMPLES = [(1, 3), (2, 40), (1, 41), (1, 3), (2, 12), (2, 41), (1, 25), (1, 2), (2, 40)]


def on_cuda(**family: Any) -> Any:
    return copy.deepcopy(models.tiny(**family)).to("cuda")


def given_to(batch: int, after: int, seed: int) -> dict[str, torch.Tensor]:
    rows = [models.prompt(3 + 2 * i, after, seed + i) for i in range(batch)]
    inputs = {**models.batch(rows), "pixel_values": models.pixels(batch, seed)}
    return {name: tensor.to("cuda") for name, tensor in inputs.items()}


def prefill(method: Any, model: Any, inputs: Any, engine: Engine | None) -> Any:
    with method(model, engine=engine) as trace, torch.inference_mode():
        return model(**inputs, logits_to_keep=1), trace


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", [{}, {"decoder": "qwen2", "kv_heads": 2}], ids=str)
def test_mixed_lengths(family: dict[str, Any], compiled: bool) -> None:
    """Every sample as without an engine, on recordings made in one order and played in others."""
    model = on_cuda(**family)
    engine = Engine("cuda", compile=compiled, backend="aot_eager")
    for turn in range(2):
        made = engine.recorded
        for seed, (batch, after) in enumerate(SAMPLES):
            inputs = given_to(batch, after, seed)
            for name in NAMES[:2] if compiled else NAMES:
                fast = prefill(METHODS[name], model, inputs, engine)
                assert fast[1].paths["prefill:graph"] and fast[1].paths["tower:graph"] == 1
                assert_same(prefill(METHODS[name], model, inputs, None), fast, 5e-5)
        assert (engine.recorded == made) == (turn == 1)


def test_a_replay_waits_for_nothing() -> None:
    """PyTorch raises where the host would wait for the device, from the decoder's start to its
    end; before it, the host reads the prompt's ids.
    """
    model, engine, inputs = on_cuda(), Engine("cuda"), given_to(1, 6, 0)
    prefill(THREE, model, inputs, engine)
    decoder = model.model.language_model
    with THREE(model, engine=engine) as trace, torch.inference_mode():
        # Registered last, it runs behind the hook that packs the prompt.
        handles = [
            decoder.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("error")),
            decoder.register_forward_hook(
                lambda *_: torch.cuda.set_sync_debug_mode("default"), always_call=True
            ),
        ]
        try:
            model(**inputs, logits_to_keep=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            for handle in handles:
                handle.remove()
    assert trace.paths["prefill:graph"] == 3
