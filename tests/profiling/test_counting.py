"""FLOPs by torch's counter: of real runs, of runs without arithmetic, of a planted choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig

from visiondrop import Full, VisionDrop
from visiondrop.merging import keep_only
from visiondrop.methods import build_method
from visiondrop.methods.base import PictureBudget
from visiondrop.profiling.cost import as_run, plan
from visiondrop.profiling.counting import SkipProducts, around_stages, count_prefill
from visiondrop.profiling.inputs import setting_of
from visiondrop.profiling.presets import PRESETS, random_model, weightless_model
from visiondrop.reducer import Reducer


def tiny_config(anyres: bool = False, kv_heads: int = 4) -> Any:
    """36 patches a tile, 8 decoder layers."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        image_size=24, patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=kv_heads, vocab_size=100, max_position_embeddings=1024,
    )  # fmt: skip
    more: dict[str, Any] = dict(vision_config=vision, text_config=text, image_token_index=99)
    if anyres:
        return LlavaNextConfig(**more, image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]])
    return LlavaConfig(**more)


BY_IMPORTANCE = {"visiondrop", "divprune", "prumerge", "visionzip", "random"}
"""Those that reduce tiles before the LLM."""
METHODS = ("visiondrop", "fastv", "divprune", "prumerge", "visionzip", "dart", "random")


@pytest.mark.parametrize("anyres", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_skipping_products_counts_what_a_real_run_does(name: str, anyres: bool) -> None:
    """No weights, no products: the same number, part by part, choosing included."""
    config = tiny_config(anyres)
    setting = setting_of(config, 30)
    tokens = 100 if anyres else 20
    found = []
    for model in (random_model(config, torch.float32), weightless_model(config)):
        method = build_method(name, tokens, model=config)
        inputs, options = setting.inputs(model), setting.options()
        if found:
            with SkipProducts():
                counted = count_prefill(model, inputs, method, **options)
        else:
            counted = count_prefill(model, inputs, method, **options)
        assert (counted.sharing > 0) == (anyres and name in BY_IMPORTANCE)
        assert counted.parts.total == pytest.approx(as_run(setting, counted).total, rel=1e-9)
        found.append(counted)
    real, skipped = found
    assert skipped.parts.tower == real.parts.tower
    if not anyres:  # tiles share by what is seen in them, and rows without a token lose a newline
        assert skipped.parts == real.parts
        assert skipped.stages == real.stages
        assert real.samples[0].tokens_per_layer == skipped.samples[0].tokens_per_layer
    assert abs(skipped.stages - real.stages) <= 0.1 * real.stages
    assert (real.stages > 0) == (name != "random")


@pytest.mark.parametrize("anyres", [False, True])
def test_the_stock_model_counts_as_the_formula(anyres: bool) -> None:
    config = tiny_config(anyres, kv_heads=2)
    setting, model = setting_of(config, 30), random_model(config, torch.float32)
    inputs = setting.inputs(model)
    counted = count_prefill(model, inputs, None)
    assert (counted.stages, counted.sharing, counted.samples) == (0, 0, [])
    assert counted.parts == as_run(setting, counted)
    whole = count_prefill(model, inputs, None, logits_to_keep=0).parts
    planned = plan(setting, None, 2)
    assert whole == planned.whole, "the paper's counting is what the stock model does"
    assert planned.run == counted.parts
    reduced = count_prefill(model, inputs, Full(), **setting.options()).parts
    assert reduced == plan(setting, Full(), 2).run
    assert reduced.tower < counted.parts.tower, "the last layer of the tower is not read"


@dataclass
class Planted(PictureBudget):
    """Keeps the first tokens, after a product of a known size before the LLM and one in it."""

    tiled = True
    tokens: int = 4
    inside_llm: bool = True

    def encoder_stage(self, view: Any) -> Any:
        torch.mm(torch.ones(5, 7), torch.ones(7, 11))
        kept = torch.arange(1, 1 + self.tokens).expand(view.features.shape[0], -1)
        return keep_only(view.features, view.sizes, kept)

    def llm_layers(self) -> tuple[int, ...]:
        return (3,)

    def llm_stage(self, view: Any) -> None:
        torch.mm(torch.ones(13, 17), torch.ones(17, 19))


Planted.name = "planted"  # not in its body, which would enter it among the methods
ENCODER, LLM = 2 * 5 * 7 * 11, 2 * 13 * 17 * 19


def test_choosing_is_counted_apart_to_the_flop() -> None:
    config = tiny_config()
    setting, model = setting_of(config, 30), random_model(config, torch.float32)
    counted = count_prefill(model, setting.inputs(model), Planted(4), **setting.options())
    assert counted.stages == ENCODER + LLM
    assert counted.parts == as_run(setting, counted)


def test_methods_derived_for_tiles_are_watched_too() -> None:
    """Each tile's budget makes a method of its own."""
    config = tiny_config(anyres=True)
    setting, model = setting_of(config, 30), random_model(config, torch.float32)
    method = Planted(40).on_tiles(share="equal")
    counted = count_prefill(model, setting.inputs(model), method, **setting.options())
    assert counted.stages == ENCODER + LLM, "five tiles of 8 tokens are one call"
    method = Planted(41).on_tiles(share="equal")
    counted = count_prefill(model, setting.inputs(model), method, **setting.options())
    assert counted.stages == 2 * ENCODER + LLM, "one tile has 9"


def test_only_the_outermost_stage_is_watched() -> None:
    class Nested(Planted):
        def encoder_stage(self, view: Any) -> Any:
            return self.llm_stage(view)

    seen: list[Any] = []
    method = Nested(4)
    watched = around_stages(method, lambda: "before", seen.append)
    watched.encoder_stage(None)
    assert seen == ["before"] and watched.to_dict() == method.to_dict()
    assert type(method) is Nested, "the given method is left alone"
    with pytest.raises(AttributeError):
        around_stages(Planted(4), lambda: 0, seen.append).encoder_stage(None)
    assert seen == ["before", 0], "also where a stage fails"


# ------------------------------------------------------------------ presets


@pytest.mark.parametrize(
    ("name", "billions"),  # of the published checkpoints
    [("llava-1.5-7b", 7.063), ("llava-1.5-13b", 13.351), ("llava-next-7b", 7.063),
     ("llava-next-13b", 13.351)],
)  # fmt: skip
def test_presets_have_the_published_sizes_and_no_weights(name: str, billions: float) -> None:
    model = weightless_model(PRESETS[name].config())
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == pytest.approx(billions * 1e9, rel=1e-3)
    assert sum(p.untyped_storage().nbytes() for p in parameters) < 1e5
    setting = setting_of(PRESETS[name].config())
    assert (setting.patches, setting.newlines) == (PRESETS[name].patches, PRESETS[name].newlines)
    assert setting.text_tokens == PRESETS[name].text_tokens


def test_random_weights_differ_from_row_to_row_and_run() -> None:
    config = tiny_config()
    model = random_model(config, torch.bfloat16)
    weight = model.model.language_model.layers[0].mlp.gate_proj.weight
    assert weight.dtype == torch.bfloat16 and len(weight.unique(dim=0)) == len(weight)
    assert float(weight.float().std()) == pytest.approx(32**-0.5, rel=0.1)
    setting = setting_of(config, 30)
    with torch.inference_mode():
        logits = model(**setting.inputs(model)).logits
    assert logits.isfinite().all() and logits.std() > 0


def test_7b_by_counter_without_memory() -> None:
    """The paper's cell 2.11 T, by the counter on the real sizes: 2.06 run, choosing on top."""
    config = PRESETS["llava-1.5-7b"].config()
    setting, model = setting_of(config), weightless_model(config)
    method = VisionDrop.from_average(64, num_layers=32)
    with SkipProducts():
        counted = count_prefill(model, setting.inputs(model), method, **setting.options())
    planned = plan(setting, method, 2)
    assert counted.parts == planned.run
    assert planned.whole.total / 1e12 == pytest.approx(2.11, rel=0.01)
    assert 0.005 < counted.stages / counted.parts.total < 0.02
    assert counted.samples[0].mean_tokens == 64


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="newlines alone are 12; at least 13"):
        setting_of(tiny_config(anyres=True), 12)
    with pytest.raises(ValueError, match="0 decoder layers: at least 1"):
        PRESETS["llava-1.5-7b"].config(0)
    other = tiny_config()
    other.model_type = "blip"
    with pytest.raises(ValueError, match="'blip' model cannot be profiled"):
        setting_of(other, 30)


def test_methods_whose_ledger_says_nothing_have_no_plan() -> None:
    config = tiny_config()
    method: Reducer = build_method("tome", 20, model=config)
    with pytest.raises(ValueError, match="does not follow"):
        plan(setting_of(config, 30), method, 2)
