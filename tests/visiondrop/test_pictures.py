"""Several pictures in a prompt: each with the whole budget, or a budget that they split."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.utils import GenerationMixin

from tests.visiondrop import models, next_models
from tests.visiondrop.models import IMAGE, LAYERS, logits
from visiondrop import Random, Uniform, VisionDrop
from visiondrop.methods import build_method
from visiondrop.methods.dart import DART
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.fastv import FastV
from visiondrop.methods.framewise import FrameWise
from visiondrop.methods.hired import HiRED
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.tome import ToMe
from visiondrop.methods.visionzip import VisionZip
from visiondrop.pictures import Pictures, apportion
from visiondrop.reducer import Reducer

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
SIZES = next_models.SIZES
# 0, 1, 2 and 3 pictures in a prompt, of 3 to 5 tiles each.
NEXT = [[], [SIZES[1]], [SIZES[0], SIZES[2]], [SIZES[2], SIZES[1], SIZES[3]]]
STAGED = VisionDrop(encoder=(28, 7), llm={2: (18, 3), 5: (8, 2)})
METHODS: dict[str, Reducer] = {
    "visiondrop": STAGED,
    "visiondrop-inside": VisionDrop(llm={2: (28, 4), 5: (11, 2)}),
    "visionzip": VisionZip(29, 6),
    "uniform": Uniform(31),
    "divprune": DivPrune(25),
    "random": Random(23, seed=2),
    "fastv": FastV(2, tokens=30),
    "dart": DART(2, tokens=30),
    "composed": VisionZip(29, 6) + VisionDrop(llm={3: (20, 4), 5: (9, 2)}),
}


class Family:
    """A tiny model and prompts with 0 to 3 pictures for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tiled = name == "next"
        self.model = next_models.tiny_next() if self.tiled else models.tiny()
        self.counts = [len(own) for own in NEXT]
        self.seeds = [list(range(10 * r, 10 * r + n)) for r, n in enumerate(self.counts)]
        if self.tiled:
            self.rows = [next_models.prompt(3 + r, 4, r, own) for r, own in enumerate(NEXT)]
        else:
            self.rows = [self.plain(r, n) for r, n in enumerate(self.counts)]

    def plain(self, r: int, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(r)
        words = lambda n: torch.randint(2, 80, (n,), generator=generator).tolist()  # noqa: E731
        picture = [IMAGE] * models.PATCHES
        return [1, *words(3 + r), *sum(([*picture, *words(4)] for _ in range(count)), [])]

    def images(self, rows: list[int]) -> dict[str, Any]:
        seeds = sum((self.seeds[r] for r in rows), [])
        if self.tiled:
            return next_models.inputs(sum((NEXT[r] for r in rows), []), seeds)
        if not seeds:
            return {}
        side = self.model.config.vision_config.image_size
        make = lambda s: torch.randn(3, side, side, generator=torch.Generator().manual_seed(s))  # noqa: E731
        return {"pixel_values": torch.stack([make(seed) for seed in seeds])}

    def weights(self, r: int) -> list[int]:
        """Visual tokens of each picture without newlines, from the stock packing."""
        if not self.tiled:
            return [models.PATCHES] * self.counts[r]
        grids = map(next_models.grid_of, NEXT[r])
        tops = [grid.content[1] - grid.content[0] for grid in grids]
        return [next_models.unpruned(s) - t for s, t in zip(NEXT[r], tops, strict=True)]

    def run(self, method: Reducer, rows: list[int], **kwargs: Any) -> tuple[Any, Any]:
        keys = [f"{r}/{i}" for r in rows for i in range(self.counts[r])]
        options = {"max_new_tokens": 3, "min_new_tokens": 3, **kwargs}
        with method(self.model, keys=keys or None) as trace:
            ids = [self.rows[r] for r in rows]
            return next_models.generate(self.model, ids, self.images(rows), **options), trace


@pytest.fixture(scope="module", params=["llava", "next"])
def family(request: pytest.FixtureRequest) -> Family:
    torch.set_num_threads(1)
    return Family(request.param)


def on_family(family: Family, method: Reducer) -> Reducer:
    """Methods that look at the row around a picture see newlines as tokens."""
    parts = getattr(method, "parts", (method,))
    around = any(p.reads_text or p.looks_back or p.uses_input for p in parts)
    return method.on_tiles(newlines="pool") if family.tiled and around else method


def counts(sample: Any, family: Family, method: Reducer) -> list[int]:
    """Tokens per layer that the method counts: without newlines that it does not see."""
    if not family.tiled or method.inside_part.tiles.newlines == "pool":
        return sample.tokens_per_layer
    pairs = zip(sample.tokens_per_layer, sample.newlines_per_layer, strict=True)
    return [tokens - newlines for tokens, newlines in pairs]


def whole_share(weights: list[int], total: int) -> list[Fraction]:
    return [Fraction(total * w, sum(weights)) for w in weights]


ALL = [0, 1, 2, 3]


@pytest.mark.parametrize("name", METHODS)
def test_split_totals_are_exact_and_a_batch_is_its_singles(family: Family, name: str) -> None:
    method = on_family(family, METHODS[name]).on_pictures(budget="split")
    out, trace = family.run(method, ALL)
    assert len(trace.samples) == 3
    most = next_models.LARGEST if family.tiled else models.PATCHES
    plan = method.ledger(LAYERS, most)
    for r, sample in zip(ALL[1:], trace.samples, strict=True):
        weights = family.weights(r)
        # Where a method sees newlines, they fill layers that it has not reduced yet.
        reduced = [n for n, asked in zip(counts(sample, family, method), plan, strict=True)
                   if asked < most]  # fmt: skip
        assert reduced == [n for n in plan if n < most], r
        if name in ("visiondrop", "visionzip", "uniform"):
            first = next(s for s in range(len(plan)) if plan[s] < most)
            own = [picture[first] for picture in sample.tokens_by_picture]
            near = whole_share(weights, plan[first])
            spare = 12 if family.tiled else 0  # newlines
            assert all(-1 < n - w < 1 + spare for n, w in zip(own, near, strict=True))
    for r in ALL:
        one, single = family.run(method, [r])
        torch.testing.assert_close(logits(out)[:, r], logits(one)[:, 0], **CLOSE)
        if family.counts[r]:
            assert single.samples[0].to_dict() == trace.samples[r - 1].to_dict()


@pytest.mark.parametrize("name", ["visiondrop", "visionzip", "divprune", "composed"])
def test_split_equals_each_with_its_own_count(family: Family, name: str) -> None:
    """A prompt of one picture has all of it; two equal parts of a split are two budgets of half."""
    method = METHODS[name]
    split, each = method.on_pictures(budget="split"), method.on_pictures(budget="each")
    rows = [0, 1]
    torch.testing.assert_close(
        logits(family.run(split, rows)[0]), logits(family.run(each, rows)[0]), **CLOSE
    )
    if family.tiled or name == "composed":
        return
    half = {
        "visiondrop": VisionDrop(encoder=(14, 3), llm={2: (9, 2), 5: (4, 1)}),
        "visionzip": VisionZip(14, 3),
        "divprune": DivPrune(12),
    }[name]
    even = {
        "visiondrop": VisionDrop(encoder=(28, 6), llm={2: (18, 4), 5: (8, 2)}),
        "visionzip": VisionZip(28, 6),
        "divprune": DivPrune(24),
    }[name].on_pictures(budget="split")
    out, trace = family.run(even, [2])
    expected, other = family.run(half, [2])
    torch.testing.assert_close(logits(out), logits(expected), **CLOSE)
    stages = lambda t: [s.to_dict() for s in t.samples[0].stages]  # noqa: E731
    assert stages(trace) == stages(other)


def test_each_is_the_default_and_gives_every_picture_all(family: Family) -> None:
    _, trace = family.run(STAGED, ALL)
    for r, sample in zip(ALL[1:], trace.samples, strict=True):
        assert counts(sample, family, STAGED)[0] == 35 * family.counts[r]


def test_equal_shares_end_at_what_a_picture_has(family: Family) -> None:
    method = Uniform(90 if family.tiled else 31).on_pictures(budget="split", share="equal")
    _, trace = family.run(method, [3])
    sample = trace.samples[0]
    pictures = [s for s in sample.stages if s.place == "encoder"]
    lines = [next_models.grid_of(s).first_newline for s in NEXT[3]] if family.tiled else [10**6] * 3
    kept = [sum(i < line for i in s.identity[s.source].tolist())
            for s, line in zip(pictures, lines, strict=True)]  # fmt: skip
    assert sum(kept) == method.tokens and max(kept) - min(kept) <= 1


@pytest.mark.parametrize("name", ["visiondrop", "composed", "fastv"])
def test_split_without_cache_with_beams_and_eager(family: Family, name: str) -> None:
    method = on_family(family, METHODS[name]).on_pictures(budget="split")
    out, trace = family.run(method, ALL)
    slow, again = family.run(method, ALL, use_cache=False)
    torch.testing.assert_close(logits(slow), logits(out), **CLOSE)
    assert [s.to_dict()["stages"] for s in again.samples] == [
        s.to_dict()["stages"] for s in trace.samples
    ]
    # Older stock code repeats picture by picture for beams, which mixes those of a prompt.
    prompts = [1, 2, 3] if hasattr(GenerationMixin, "_expand_multimodal_outputs") else [1]
    _, beams = family.run(method, prompts, num_beams=2)
    for r, sample in enumerate(beams.samples[::2]):
        assert sample.to_dict()["stages"] == trace.samples[r].to_dict()["stages"]
    before = family.model.config._attn_implementation
    try:
        family.model.set_attn_implementation("eager")
        eager, other = family.run(method, ALL)
    finally:
        family.model.set_attn_implementation(before)
    torch.testing.assert_close(logits(eager), logits(out), **CLOSE)
    assert other.to_dict() == trace.to_dict()


def test_split_in_forward_and_on_the_model_afterwards(family: Family) -> None:
    """`model(...)` as `generate(...)`; nothing is left."""
    method = STAGED.on_pictures(budget="split")
    rows = [2]
    out, _ = family.run(method, rows)
    ids = torch.tensor([family.rows[2]])
    with torch.no_grad(), method(family.model):
        plain = family.model(input_ids=ids, **family.images(rows), logits_to_keep=1).logits
    torch.testing.assert_close(plain[0, -1], out.logits[0][0], **CLOSE)
    assert "get_image_features" not in vars(family.model.model)


def test_hired_splits_among_pictures_then_tiles() -> None:
    family = Family("next")
    method = HiRED(60, fill=True).on_pictures(budget="split")
    _, trace = family.run(method, ALL)
    for sample in trace.samples:
        assert set(counts(sample, family, method)) == {60}


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.lists(st.integers(1, 30), min_size=5, max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_apportion(room: list[int], weights: list[int]) -> None:
    """Exact, within the room, monotone, and nearly in proportion where nothing is in the way."""
    chosen, most, k = tuple(weights[: len(room)]), tuple(room), len(room)
    before = (0,) * k
    for total in range(k, sum(room) + 1):
        parts = apportion(total, chosen, most)
        assert sum(parts) == total and all(1 <= p <= r for p, r in zip(parts, most, strict=True))
        assert all(new >= old for new, old in zip(parts, before, strict=True))
        before = parts
    total = 10 * sum(chosen)
    wide = apportion(total, chosen, (10**6,) * k)
    assert wide == tuple(10 * w for w in chosen)
    assert apportion(7, (1, 1, 1), (9, 9, 9)) == (3, 2, 2)


def test_what_cannot_be_split_is_refused(family: Family) -> None:
    model = family.model
    cases: list[tuple[Reducer, str]] = [
        (PyramidDrop((2, 4), (0.5, 0.2)), "works by ratios"),
        (Uniform(9).on_tiles(budget="ratio"), r"ratio's: use on_tiles\(budget='picture'\)"),
    ]
    if not family.tiled:
        cases += [(ToMe(9), "inside the vision tower"), (FrameWise(9), "all pictures of a prompt")]
    for method, said in cases:
        with pytest.raises(ValueError, match=said), method.on_pictures(budget="split")(model):
            raise AssertionError("not refused")
    with pytest.raises(ValueError, match="2 visual tokens for a prompt of 3 pictures"):
        family.run(Uniform(2).on_pictures(budget="split"), [3])
    with pytest.raises(ValueError, match="pictures: budget='all'; possible: 'each', 'split'"):
        Uniform(9).on_pictures(budget="all")
    args = {"pictures.budget": "split", "pictures.share": "equal"}
    method = build_method("uniform", 9, model=model, args=args)
    assert method.pictures == Pictures("split", "equal")
    assert Reducer.from_dict(method.to_dict()).pictures == method.pictures
    with pytest.raises(ValueError, match="pictures.count; there are: pictures.budget"):
        build_method("uniform", 9, model=model, args={"pictures.count": "3"})


def test_other_families_say_that_they_cannot_split_before_the_llm() -> None:
    """Never by what they inherit from LLaVA-1.5, whose pictures all have as many tokens."""
    from visiondrop.adapters import ADAPTERS

    able = set()
    for adapter in ADAPTERS:
        try:
            adapter.extents("image", torch.nn.Identity(), torch.zeros(1))
        except ValueError as error:
            assert "cannot split a budget before the LLM" in str(error)
        except AttributeError:  # an empty module has no configuration
            able.add(type(adapter).__name__)
        except KeyError:
            able.add(type(adapter).__name__)
    assert able == {"LlavaAdapter", "LlavaNextAdapter"}
