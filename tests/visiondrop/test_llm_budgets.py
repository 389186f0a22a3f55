"""Budgets of the methods inside the LLM: a true mean is met or refused, drops move only where they
must, and the papers' counts are the papers' counts.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.visiondrop.models import LAYERS, PATCHES, generate, pixels, prompt, tiny
from visiondrop import Geometry, build_method
from visiondrop.budgets import between, nearest_counts, ratio_of, scaled_layers, stepwise
from visiondrop.methods.dart import DART
from visiondrop.methods.fastv import FastV
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.sparsevlm_plus import SparseVLMPlus
from visiondrop.reducer import Reducer

METHODS: list[type[Reducer]] = [FastV, PyramidDrop, SparseVLM, SparseVLMPlus, DART]
LLAVA_7B = Geometry(num_layers=32, num_patches=576, has_cls=True, grid=(24, 24))
every = pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.name)


def full_layers(method: Reducer, num_layers: int) -> int:
    """Layers before the first drop."""
    return min([*method.llm_layers(), num_layers])


@every
@given(
    share=st.floats(0.001, 1),
    num_layers=st.integers(6, 80),
    num_patches=st.sampled_from([36, 144, 576, 729, 2928]),
)
@settings(max_examples=60, deadline=None)
def test_a_mean_is_met_or_refused(
    cls: type[Reducer], share: float, num_layers: int, num_patches: int
) -> None:
    """|mean - T| <= 1/2, or an error that names the least, which is met then."""
    tokens = max(1.0, share * num_patches)
    geometry = Geometry(num_layers, num_patches, True, (1, num_patches))
    sizes = {"num_layers": num_layers, "num_patches": num_patches}
    try:
        method = cls.from_average(tokens, **sizes)
    except ValueError as error:
        least = float(re.findall(r"not reachable, least is ([\d.]+)", str(error))[0])
        assert tokens < least and least >= num_patches / num_layers
        tokens, method = least, cls.from_average(least, **sizes)
        assert full_layers(method, num_layers) == 1
    method.check(geometry)
    assert abs(method.mean_tokens(num_layers, num_patches) - tokens) <= 0.5 + 1e-9


@every
def test_the_first_drop_moves_only_where_it_must(cls: type[Reducer]) -> None:
    """The released layers as long as they can; then as late as can be, and never before layer 1."""
    official = full_layers(cls(), 32)
    seen = set()
    for tokens in range(576, 23, -4):
        first = full_layers(cls.from_average(tokens, num_layers=32), 32)
        if tokens >= 570:
            continue
        seen.add(first)
        assert first <= official
        # With one more full layer (576 more token-layers) and one token in the others (SparseVLM's
        # clusters come on top) the mean would be above what was asked for.
        if first < official:
            assert (576 * (first + 1) + (31 - first)) / 32 + (cls is SparseVLM) * 24 > tokens
    assert seen == set(range(1, official + 1))


def test_figures_at_32_layers() -> None:
    """By hand: (layers x 576 + the rest x kept) / 32."""
    assert FastV.from_average(64, num_layers=32) == FastV(2, tokens=30)
    assert FastV(2, tokens=30).mean_tokens(32) == (2 * 576 + 30 * 30) / 32 == 64.125
    assert FastV.from_average(32, num_layers=32) == FastV(1, tokens=14)
    assert FastV.from_nominal(64, num_layers=32).mean_tokens(32) == 96
    assert PyramidDrop().mean_tokens(32) == 270
    assert PyramidDrop.from_average(270, num_layers=32).ledger(32)[::8] == [576, 288, 144, 72]
    assert PyramidDrop.from_average(128, num_layers=32).layers == (7, 16, 24)
    assert SparseVLM(**SparseVLM.presets["192"]).mean_tokens(32) == 206.5
    assert DART.from_nominal(64, num_layers=32).kept(576) == 68
    assert [DART(reduction_ratio=r).kept(576) for r in (0.66666, 0.777777, 0.88888, 0.778)] == [
        196,
        132,
        68,
        124,
    ]


def test_pyramiddrop_counts_truncate_as_released() -> None:
    assert PyramidDrop((8, 16, 24), (0.3, 0.1, 0.05)).ledger(32)[::8] == [576, 172, 57, 28]
    assert PyramidDrop((4, 12), (0.333, 0.1)).ledger(32)[::4] == [576, 191, 191, *[57] * 5]
    for total in (36, 576, 2928):
        for count in range(1, total + 1):
            assert int(total * ratio_of(count, total)) == count


def test_lists_between_the_released_ones() -> None:
    """RETAIN_TOKN by itself, between two lists, below the last, above the first."""
    nominal = lambda t, **kw: SparseVLM.from_nominal(t, num_layers=32, **kw).tokens  # noqa: E731
    assert nominal(128) == (303, 110, 36)
    assert nominal(112) == (round((303 + 238) / 2), 79, 31)
    assert nominal(32) == (33, 15, round(8.5))
    assert nominal(576) == (576, 576, 576) and nominal(384) == (438, 388, 343)
    assert nominal(256, num_patches=1152) == (606, 220, 72)
    assert between(0.5, [(0, (0,)), (1, (4,))]) == [2]
    assert nearest_counts((5, 5), lambda c: c[0] + 10 * c[1], 47, 9) == (7, 4)


def test_layers_scale_with_depth() -> None:
    assert scaled_layers((8, 16, 24), 40) == (10, 20, 30)
    assert scaled_layers((2, 6, 15), 40) == (2, 8, 19)
    assert scaled_layers((2,), 8) == (1,) and scaled_layers((2,), 24) == (2,)
    assert scaled_layers((2, 6, 15), 8) == (1, 2, 4)
    assert scaled_layers((2, 6, 15), 6) == (1, 2, 3)
    with pytest.raises(ValueError, match="3 layers is too shallow .* at least 4 layers"):
        scaled_layers((2, 6, 15), 3)
    assert stepwise((1, 3), (5, 9), 5, 7) == [7, 5, 5, 5, 5]


BAD: list[tuple[Any, str]] = [
    (lambda: FastV(0), "before layer 0: .* layers 1 to 31"),
    (lambda: FastV(32), "before layer 32"),
    (lambda: FastV(tokens=577), "would keep 577 tokens of a picture's 576; 1 to 576"),
    (lambda: FastV(ratio=1.0), "would keep 0 tokens"),
    (lambda: PyramidDrop((8, 8), (0.5, 0.2)), "layer 8 comes after layer 8"),
    (lambda: PyramidDrop((8, 16), (0.5,)), "2 layers and 1 ratios"),
    (lambda: PyramidDrop((8,), (0.001,)), "ratio 0.001 keeps"),
    (lambda: PyramidDrop((8,), (1.5,)), "ratio 1.5"),
    (lambda: SparseVLM((2, 6), (30, 20, 10)), "2 layers and 3 counts"),
    (lambda: SparseVLM((2, 31), (30, 20)), "before layer 32"),
    (lambda: SparseVLM((2,), (600,)), "600 tokens asked for where a picture has 576"),
    (lambda: SparseVLM(adaptive=1.5), "adaptive=1.5"),
    (lambda: SparseVLMPlus((2,), (0,)), "0 tokens asked for"),
    (lambda: SparseVLMPlus(heads=0), "heads=0"),
    (lambda: DART(tokens=3), "would keep 3 tokens of .* 4 to 576 can stay"),
    (lambda: DART(visual_pivots=0), "0 visual and 4 text pivots"),
    (lambda: DART(layer=40), "before layer 40"),
]


@pytest.mark.parametrize("make, words", BAD)
def test_impossible_settings_are_refused_before_compute(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make().check(LLAVA_7B)


@every
def test_impossible_budgets_are_refused(cls: type[Reducer]) -> None:
    with pytest.raises(ValueError, match="a picture has 576"):
        cls.from_average(577, num_layers=32)
    with pytest.raises(ValueError, match="above 0"):
        cls.from_average(0, num_layers=32)
    with pytest.raises(ValueError, match="not reachable, least is"):
        cls.from_average(12, num_layers=32)
    field = {
        "fastv": "ratio",
        "pyramiddrop": "ratios",
        "dart": "reduction_ratio",
        "sparsevlm": "adaptive",
    }
    if name := field.get(cls.name):
        with pytest.raises(ValueError, match=f"tokens and {name}=.* were both given"):
            cls.from_average(200, num_layers=32, **{name: 0.5})


def test_layers_that_the_user_set_are_not_moved() -> None:
    assert FastV.from_average(96, num_layers=32, layer=4).layer == 4
    with pytest.raises(ValueError, match="least is 72.88 with the first drop at layer 4"):
        FastV.from_average(64, num_layers=32, layer=4)
    stages = PyramidDrop.from_average(192, num_layers=32, layers=[4, 12])
    assert stages.layers == (4, 12) and abs(stages.mean_tokens(32) - 192) <= 0.5
    assert SparseVLM.from_average(192, num_layers=32, layers=[1, 8, 20]).layers == (1, 8, 20)


def test_from_the_command_line() -> None:
    build = lambda *a, **kw: build_method(*a, geometry=LLAVA_7B, **kw)  # noqa: E731
    assert build("fastv@K2_R75").mean_tokens(32) == (2 * 576 + 30 * 144) / 32
    assert build("fastv", 64, budget="nominal") == FastV(2, tokens=64)
    assert build("sparsevlm+", 192, budget="nominal").tokens == (300, 200, 118)
    assert build("sparsevlm", 128, args={"noise": "zero"}).noise == "zero"
    assert build("pyramiddrop", args={"layers": "[4, 12]", "ratios": "[0.333, 0.1]"}) == (
        PyramidDrop((4, 12), (0.333, 0.1))
    )
    assert build("dart", 128).mean_tokens(32) == pytest.approx(128, abs=0.5)
    for name in ("fastv", "pyramiddrop", "sparsevlm", "sparsevlm+", "dart"):
        method = build(name, 150)
        assert Reducer.from_dict(method.to_dict()) == method


@every
@pytest.mark.parametrize("tokens", [PATCHES, 30, 12, 8])
def test_a_run_holds_the_mean(cls: type[Reducer], tokens: int) -> None:
    """What the layers hold on a real run is the ledger, and its mean the budget."""
    method = cls.from_average(tokens, num_layers=LAYERS, num_patches=PATCHES)
    with method(tiny()) as trace:
        generate(tiny(), [prompt(3, 6, 1)], pixels(1))
    assert trace.samples[0].tokens_per_layer == method.ledger(LAYERS, PATCHES)
    assert trace.samples[0].mean_tokens == pytest.approx(tokens, abs=0.5)
