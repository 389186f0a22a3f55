"""Compiled layers: the same prefill, and one compiled code for all layers of a shape."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch

from tests.visiondrop import models
from tests.visiondrop.engines import Held, assert_same, compiled_graphs
from visiondrop import Full, VisionDrop
from visiondrop.engine import Engine, EngineError
from visiondrop.engine import engine as engine_module
from visiondrop.engine.compiling import likeness

THREE = VisionDrop(encoder=(30, 6), llm={2: (20, 4), 5: (9, 2)})
COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


def given_to(batch: int, after: int = 6) -> dict[str, Any]:
    rows = [models.prompt(3 + 2 * i, after, i) for i in range(batch)]
    return {**models.batch(rows), "pixel_values": models.pixels(batch)}


def prefill(method: Any, model: Any, inputs: Any, engine: Engine | None) -> Any:
    with method(model, engine=engine) as trace, torch.no_grad():
        return model(**inputs, logits_to_keep=1), trace


@pytest.mark.parametrize("family", [{}, {"decoder": "qwen2", "kv_heads": 2}], ids=str)
def test_one_graph_for_all_layers_of_a_shape(family: dict[str, Any]) -> None:
    model, engine = models.tiny(**family), Engine("off", compile=True, backend="eager")
    inputs, before = given_to(1), compiled_graphs()
    fast = prefill(Full(), model, inputs, engine)
    assert fast[1].paths["prefill:compiled"] == 1 and not fast[1].paths["prefill:plain"]
    assert compiled_graphs() == before + 1
    assert_same(prefill(Full(), model, inputs, None), fast, 2e-5)
    # Left padding brings a mask, three blocks bring three lengths.
    ragged = given_to(2)
    assert_same(prefill(THREE, model, ragged, None), prefill(THREE, model, ragged, engine), 2e-5)
    assert compiled_graphs() == before + 1 + 3
    # Neither hooks of another block nor another mode for gradients makes one anew.
    with THREE(model, engine=engine) as trace, torch.inference_mode():
        model(**ragged, logits_to_keep=1)
    assert trace.paths["prefill:compiled"] == 3
    assert compiled_graphs() == before + 4


def test_more_lengths_than_pytorch_compiles_by_itself() -> None:
    model, engine = models.tiny(), Engine("off", compile=True, backend="eager", waste=0.01)
    before = compiled_graphs()
    with torch._dynamo.config.patch(recompile_limit=2):
        for after in range(4):
            inputs = given_to(1, after)
            assert_same(*(prefill(Full(), model, inputs, e) for e in (None, engine)), 2e-5)
    assert compiled_graphs() == before + 4


def test_layers_that_differ_have_graphs_of_their_own() -> None:
    model = copy.deepcopy(models.tiny())
    layers = model.model.language_model.layers
    layers[3].self_attn.scaling *= 1.5
    alike = {likeness(layer) for layer in layers}
    assert len(alike) == 2 and likeness(layers[0]) == likeness(layers[7])
    engine, before = Engine("off", compile=True, backend="eager"), compiled_graphs()
    assert_same(*(prefill(Full(), model, given_to(1), e) for e in (None, engine)), 2e-5)
    assert compiled_graphs() == before + 2


def test_new_weights_are_the_ones_used(monkeypatch: Any) -> None:
    monkeypatch.setattr(engine_module, "record", Held)
    model = copy.deepcopy(models.tiny())
    inputs = given_to(1)
    for engine in (Engine("off", compile=True, backend="eager"), Engine("replay")):
        prefill(Full(), model, inputs, engine)
        layer = model.model.language_model.layers[4].mlp.down_proj
        layer.weight = torch.nn.Parameter(layer.weight.detach() * 1.25)
        assert_same(*(prefill(Full(), model, inputs, e) for e in (None, engine)), 2e-5)


def test_generation_goes_on_from_a_compiled_prefill() -> None:
    model, engine = models.tiny(), Engine("off", compile=True, backend="aot_eager")
    rows, images = [models.prompt(3, 6, 1), models.prompt(5, 9, 2)], models.pixels(2)
    outs = []
    for chosen in (None, engine):
        with THREE(model, engine=chosen) as trace:
            outs.append(models.generate(model, rows, images))
    assert trace.paths["prefill:compiled"] == 3 and trace.paths["tower:plain"] == 1
    assert torch.equal(outs[0].sequences, outs[1].sequences)
    torch.testing.assert_close(*map(models.logits, outs), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler")
def test_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    # Inductor imports setuptools, which refuses to come after distutils, which others may import.
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    model, engine = models.tiny(), Engine(compile=True, graphs="off")
    assert engine.backend == "inductor"
    inputs = given_to(1)
    fast = prefill(Full(), model, inputs, engine)
    assert fast[1].paths["prefill:compiled"] == 1
    assert_same(prefill(Full(), model, inputs, None), fast, 2e-5)


def test_what_does_not_compile_is_refused() -> None:
    with pytest.raises(EngineError, match="backend='nvfuser9': torch.compile knows .*inductor"):
        Engine(compile=True, backend="nvfuser9")
    with pytest.raises(EngineError, match="graphs='replay' records PyTorch's operations"):
        Engine("replay", compile=True)
    model = copy.deepcopy(models.tiny())
    linear = model.model.language_model.layers[1].mlp.up_proj
    whole = torch.zeros(linear.weight.shape, dtype=torch.int8)
    linear.weight = torch.nn.Parameter(whole, requires_grad=False)
    with pytest.raises(EngineError, match="mlp.up_proj.weight of LlamaDecoderLayer is quantised"):
        with Full()(model, engine=Engine("off", compile=True, backend="eager")):
            pass
