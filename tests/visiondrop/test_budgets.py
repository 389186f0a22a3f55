"""Budgets: any legal one is met exactly, any illegal one is refused before compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.visiondrop.models import LAYERS, PATCHES, batch, generate, logits, pixels, prompt, tiny
from visiondrop import METHODS, Full, Geometry, Random, Reducer, Uniform, VisionDrop, build_method
from visiondrop.schedule import block_weights, geometric_totals, solve_decay, split_total

LLAVA_7B = Geometry(num_layers=32, num_patches=576, has_cls=True, grid=(24, 24))


def test_released_setting_is_reproduced() -> None:
    assert VisionDrop.from_average(32, num_layers=32) == VisionDrop(
        encoder=(42, 6), llm={8: (30, 5), 16: (22, 4), 24: (16, 3)}
    )


@pytest.mark.parametrize(
    "average, patches, totals",
    [
        (64, 576, [96, 70, 52, 38]),
        (128, 576, [192, 141, 103, 76]),
        (192, 576, [288, 211, 155, 114]),
        (160, 2880, [240, 176, 129, 95]),
        (320, 2880, [480, 352, 258, 190]),
        (640, 2880, [960, 704, 517, 379]),
    ],
)
def test_totals_of_other_averages(average: int, patches: int, totals: list[int]) -> None:
    method = VisionDrop.from_average(average, num_layers=32, num_patches=patches)
    assert method.ledger(32, patches)[::8] == totals
    assert method.mean_tokens(32, patches) == average


def test_decay_ratio() -> None:
    assert solve_decay([0.25] * 4, 1.5) == pytest.approx(0.73362, abs=1e-5)
    assert solve_decay([0.25] * 4, 3) == pytest.approx(0.253, abs=1e-3)


def test_stages_of_other_depths() -> None:
    assert list(VisionDrop.from_average(64, num_layers=40).llm) == [10, 20, 30]
    method = VisionDrop.from_average(64, num_layers=28)
    assert list(method.llm) == [7, 14, 21] and method.mean_tokens(28) == pytest.approx(64, abs=0.25)
    odd = VisionDrop.from_average(64, num_layers=27)
    assert odd.mean_tokens(27) == pytest.approx(64, abs=0.25)
    with pytest.raises(ValueError, match="3 layers is too shallow"):
        VisionDrop.from_average(64, num_layers=3)


@given(average=st.integers(4, 576), layers=st.integers(4, 80))
def test_average_is_met_to_rounding(average: int, layers: int) -> None:
    """Each total is rounded, so their mean is off by half a token at the very most."""
    method = VisionDrop.from_average(average, num_layers=layers)
    assert method.mean_tokens(layers) == pytest.approx(average, abs=0.5)
    method.check(Geometry(layers, 576, True, (24, 24)))


def test_average_is_met_within_a_quarter_token_at_32_layers() -> None:
    for average in range(4, 577):
        method = VisionDrop.from_average(average, num_layers=32)
        assert method.mean_tokens(32) == pytest.approx(average, abs=0.25)


@given(average=st.integers(4, 383))
def test_totals_never_grow(average: int) -> None:
    totals = geometric_totals(average, block_weights((8, 16, 24), 32), most=577)
    assert totals == sorted(totals, reverse=True) and totals[0] == round(1.5 * average)
    assert all(sum(split_total(t)) == t for t in totals)


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_legal_plan_is_met_exactly(data: st.DataObject) -> None:
    """Random stages at random layers: the cache holds what the ledger says."""
    here, stages, encoder = PATCHES, {}, None
    if data.draw(st.booleans()):
        here += 1
        dominant = data.draw(st.integers(1, here))
        encoder = (dominant, data.draw(st.integers(0, here - dominant)))
        here = sum(encoder)
    for layer in sorted(data.draw(st.sets(st.integers(1, LAYERS - 1), max_size=4))):
        dominant = data.draw(st.integers(1, here))
        stages[layer] = (dominant, data.draw(st.integers(0, here - dominant)))
        here = sum(stages[layer])
    method = VisionDrop(
        encoder,
        stages,
        merge=data.draw(st.sampled_from(["sum", "mean", "size-weighted"])),
        positions=data.draw(st.sampled_from(["renumbered", "original"])),
        placement=data.draw(st.sampled_from(["appended", "in_place"])),
        causal=data.draw(st.sampled_from(["off", "expectation", "no_mask", "visible"])),
    )
    assert Reducer.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    model, row = tiny(), prompt(3, 4, 1)
    with method(model) as trace:
        out = generate(model, [row], pixels(1), max_new_tokens=2, min_new_tokens=2)
    plan = method.ledger(LAYERS, PATCHES)
    assert trace.samples[0].tokens_per_layer == plan
    text = len(row) - PATCHES
    assert [c.get_seq_length() for c in out.past_key_values.layers] == [text + v + 1 for v in plan]
    assert logits(out).isfinite().all()


@given(tokens=st.integers(1, PATCHES), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_controls_meet_any_budget(tokens: int, seed: int) -> None:
    model, row = tiny(), prompt(3, 4, 1)
    for method in (Random(tokens, seed=seed), Uniform(tokens)):
        with method(model, keys=["a"]) as trace:
            generate(model, [row], pixels(1), max_new_tokens=1, min_new_tokens=1)
        kept = trace.samples[0].stages[0].kept
        assert len(set(kept)) == tokens and kept == sorted(kept) and max(kept) < PATCHES


@contextmanager
def no_compute(model: Any) -> Iterator[None]:
    """Fails when any part of the model runs."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the model ran before the budget was refused")

    handle = model.model.vision_tower.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


ILLEGAL = [
    (VisionDrop(encoder=(38, 0)), "38 dominant tokens asked for where 37 arrive"),
    (VisionDrop(encoder=(30, 8)), "8 contextual tokens asked for where 7 tokens remain"),
    (VisionDrop(encoder=(0, 3)), "dominant 0 and contextual 3"),
    (VisionDrop(encoder=(5, -1)), "contextual -1"),
    (VisionDrop(encoder=(5, 1), llm={8: (2, 1)}), "a stage can stand before layers 1 to 7"),
    (VisionDrop(encoder=(5, 1), llm={0: (2, 1)}), "a stage can stand before layers 1 to 7"),
    (VisionDrop(encoder=(9, 1), llm={4: (5, 1), 2: (2, 1)}), "layer 2 comes after layer 4"),
    (VisionDrop(encoder=(9, 1), llm={2: (5, 1), 4: (7, 0)}), "7 dominant tokens .* where 6 arrive"),
    (VisionDrop(llm={2: (37, 0)}), "37 dominant tokens asked for where 36 arrive"),
    (VisionDrop(encoder=(2.5, 1)), "pair of whole numbers"),  # type: ignore[arg-type]
    (Random(37), "tokens=37 asked for where a picture has 36"),
    (Uniform(0), "tokens=0"),
]


@pytest.mark.parametrize("method, message", ILLEGAL)
def test_illegal_budget_is_refused_before_compute(method: Reducer, message: str) -> None:
    model = tiny()
    with no_compute(model), pytest.raises(ValueError, match=message), method(model):
        generate(model, [prompt(3, 4)], pixels(1))


@pytest.mark.parametrize(
    "name, tokens, args, message",
    [
        ("fastest", 64, {}, "unknown method 'fastest'; known: visiondrop"),
        ("visiondrop", 600, {}, "600 visual tokens was asked for; a picture has 576 at most"),
        ("random", 600, {}, "tokens=600 asked for where a picture has 576"),
        ("visiondrop", 64, {"merg": "mean"}, "no argument 'merg'; it has: encoder, llm, merge"),
        ("visiondrop", 64, {"merge": "median"}, "merge='median'; possible: 'sum', 'mean'"),
        ("random", 64, {"seed": "x"}, "seed='x' is not a number"),
        ("random", 64, {"seed": "1.5"}, "seed='1.5' must be of type int"),
        ("visiondrop", 64, {"encoder": "[42, 6]"}, "both given; give one of them"),
        ("visiondrop", None, {"encoder": "[42]"}, "a budget is a pair"),
        ("visiondrop", None, {"encoder": "__import__('os')"}, "not a number, list or mapping"),
        ("uniform", 0.5, {}, "tokens=0.5"),
    ],
)
def test_command_line_is_checked(name: str, tokens: Any, args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method(name, tokens, geometry=LLAVA_7B, args=args)


def test_command_line_builds_methods() -> None:
    build = lambda *a, **k: build_method(*a, geometry=LLAVA_7B, **k)  # noqa: E731
    assert build("visiondrop", 64).mean_tokens(32) == 64
    assert build("visiondrop", 64, args={"merge": "mean"}).merge == "mean"
    stages = {"encoder": "[42, 6]", "llm": '{"8": [30, 5]}'}
    assert build("visiondrop", args=stages) == VisionDrop((42, 6), {8: (30, 5)})
    assert build("random", 64, args={"seed": "3"}) == Random(64, seed=3)
    assert build("full", 64) == Full()
    assert build_method("uniform", 9, model=tiny()) == Uniform(9)
    assert build_method("uniform", 9, model=tiny().config) == Uniform(9)
    assert set(METHODS) >= {"visiondrop", "random", "uniform", "full"}


def test_stage_is_skipped_where_a_picture_has_fewer_tokens() -> None:
    model, method = tiny(), Uniform(6) + VisionDrop(llm={2: (10, 2), 5: (3, 1)})
    with method(model) as trace:
        generate(model, [prompt(3, 4)], pixels(1))
    first, second, third = trace.samples[0].stages
    assert not first.skipped and second.skipped and not third.skipped
    assert trace.samples[0].tokens_per_layer == method.ledger(LAYERS, PATCHES) == [6] * 5 + [4] * 3


def test_random_is_seeded_by_sample_and_seed_alone() -> None:
    model = tiny()
    kept: dict[Any, list[int]] = {}
    for name, keys, seed in (("ab", ["a", "b"], 0), ("ba", ["b", "a"], 0), ("s1", ["a", "b"], 1)):
        with Random(8, seed=seed)(model, keys=keys) as trace:
            generate(model, [prompt(3, 4), prompt(2, 5)], pixels(2), num_beams=2)
        for key, sample in zip(keys, trace.samples[::2], strict=True):
            kept[name, key] = sample.stages[0].kept
            assert sample.key == key
    assert kept["ab", "a"] == kept["ba", "a"] != kept["ab", "b"] == kept["ba", "b"]
    assert kept["s1", "a"] != kept["ab", "a"]
    with (
        Random(8)(model, keys=["a", "b", "c"]),
        pytest.raises(ValueError, match="3 sample keys for 1"),
    ):
        generate(model, [prompt(3, 4)], pixels(1))


def test_refusals_inside_the_context() -> None:
    model, method = tiny(), VisionDrop(encoder=(9, 1))
    inputs, images = batch([prompt(3, 4)]), pixels(1)
    with method(model), pytest.raises(RuntimeError, match="'visiondrop' already, 'random' cannot"):
        with Random(4)(model):
            pass
    with method(model):
        with pytest.raises(ValueError, match="labels"):
            model(**inputs, pixel_values=images, labels=inputs["input_ids"])
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(**inputs, pixel_values=images)
        with pytest.raises(ValueError, match="a cache that grows"):
            generate(model, [prompt(3, 4)], images, cache_implementation="static")
        out = generate(model, [prompt(3, 4)], images)
        turn = [*out.sequences[0].tolist(), *prompt(1, 2)[1:]]
        with pytest.raises(ValueError, match="further picture after a reduced prompt"):
            model(
                torch.tensor([turn[-PATCHES - 3 :]]),
                pixel_values=images,
                past_key_values=out.past_key_values,
                logits_to_keep=1,
            )
    with pytest.raises(RuntimeError, match="only inside `with method"):
        model(torch.tensor([[5]]), past_key_values=out.past_key_values)
    features = model.get_image_features(images)
    with method(model), pytest.raises(ValueError, match="encoded elsewhere"):
        model(**inputs, mm_encoder_outputs={"image": features}, logits_to_keep=1)
    with (
        pytest.raises(TypeError, match="known: LlavaForConditionalGeneration"),
        method(model.model),
    ):
        pass
    with pytest.raises(ValueError, match="both act before the LLM"):
        method + Random(4)
    with pytest.raises(ValueError, match="'random' has positions='original' and 'visiondrop'"):
        Random(4, positions="original") + VisionDrop(llm={2: (2, 0)})
