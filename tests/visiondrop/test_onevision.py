"""Identities on a tiny LLaVA-OneVision: pictures of several aspect ratios, shrunk or not, several
in a prompt, clips, and none.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.visiondrop.models import IMAGE, LAYERS, logits
from tests.visiondrop.onevision_models import (
    CLIP_TOKENS,
    LARGEST,
    SIZES,
    VIDEO,
    Things,
    generate,
    inputs,
    prompt,
    tiny_onevision,
    unpruned,
)
from visiondrop import Full, Random, Uniform, VisionDrop
from visiondrop.methods.dart import DART
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.dtd import DTD
from visiondrop.methods.fastv import FastV
from visiondrop.methods.framewise import FrameWise
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.scope import Scope
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.sparsevlm_plus import SparseVLMPlus
from visiondrop.methods.visiondrop_div import VisionDropDiv
from visiondrop.methods.visionzip import VisionZip
from visiondrop.reducer import Reducer

CLOSE = {"atol": 2e-4, "rtol": 1e-4}

STAGED = VisionDrop(encoder=(20, 4), llm={2: (12, 3), 4: (8, 2), 6: (4, 1)})
SETTINGS: dict[str, Reducer] = {
    "full": Full(),
    "visiondrop": STAGED,
    "visiondrop-ratio": STAGED.on_tiles(budget="ratio"),
    "visiondrop-options": VisionDrop(
        encoder=(18, 6), llm={2: (10, 4), 5: (5, 0)}, positions="original", placement="in_place",
        causal="expectation", query="patches", merge="mean",
    ).on_tiles(newlines="pool"),
    "visiondrop-inside": VisionDrop(llm={1: (30, 4), 5: (12, 3)}, placement="in_place"),
    "visiondrop-no-newlines": VisionDrop(encoder=(20, 3), llm={3: (12, 4)}).on_tiles(
        newlines="none"
    ),
    "visiondrop-few": VisionDrop(encoder=(2, 0)),  # fewer tokens than frames
    "visiondrop_div": VisionDropDiv(encoder=(15, 4), llm={2: (9, 2), 4: (5, 1)}, radius=0),
    "visionzip": VisionZip(14, 3),
    "visionzip-tile": VisionZip(5, 1).on_tiles(budget="tile", newlines="none"),
    "scope": Scope(15),
    "divprune": DivPrune(14),
    "random": Random(14, seed=3),
    "random-inside": Random(14, layer=2),
    "uniform": Uniform(13),
    "uniform-inside": Uniform(13, layer=2, positions="original"),
    "fastv": FastV(2, tokens=12),
    "fastv-ratio": FastV(2, tokens=20).on_tiles(budget="ratio"),
    "dart": DART(2, tokens=12),
    "pyramiddrop": PyramidDrop((2, 4), (0.5, 0.2)),
    "sparsevlm": SparseVLM((1, 2, 4), (30, 14, 6)),
    "sparsevlm+": SparseVLMPlus((1, 4), (25, 8)),
    "composed": VisionZip(14, 3) + VisionDrop(llm={3: (8, 2), 5: (4, 1)}),
    "composed-pool": Uniform(20, positions="original") + FastV(3, tokens=9),
    "dtd": DTD(threshold=0.8),
    "dtd-share": DTD(share=0.6, positions="renumbered"),
    "framewise": FrameWise(11),
    "framewise-visiondrop": FrameWise(11, "uniform", positions="renumbered")
    + VisionDrop(llm={3: (4, 2)}),
}  # fmt: skip
WHOLE = {
    "visiondrop": VisionDrop(llm={2: (LARGEST, 0)}),
    "visiondrop-encoder": VisionDrop(encoder=(LARGEST, 0)),
    "fastv": FastV(2, ratio=0.0),
    "uniform": Uniform(LARGEST, layer=3, positions="original"),
    "random": Random(LARGEST),
    "pyramiddrop": PyramidDrop((2, 5), (1.0, 1.0)),
    "dtd": DTD(share=0.0),
    "framewise": FrameWise(LARGEST),
}
QUICK = {
    "visiondrop", "visiondrop-ratio", "visiondrop-options", "visiondrop-no-newlines",
    "visiondrop-few", "visionzip-tile", "divprune", "random", "sparsevlm", "composed-pool", "dtd",
    "framewise-visiondrop",
}  # fmt: skip
"""The settings that are always run through all identities; the others with --all-cells."""

# Shrunk; a picture (one of several is a single tile), a clip, a picture; nothing; a clip; a wide
# one; a picture beside a clip.
THINGS: list[Things] = [
    [SIZES[2]], [SIZES[0], "v", SIZES[1]], [], ["v"], [SIZES[3]], [SIZES[1], "v"], [SIZES[0]],
]  # fmt: skip
SEEDS = [[1], [2, 3, 4], [], [5], [6], [7, 8], [9]]
CLIPS: list[Things] = [["v"], ["v", "v"], []]
CLIP_SEEDS = [[1], [2, 3], []]


def case(method: Reducer) -> tuple[list[Things], list[list[int]], list[list[int]]]:
    """Things, seeds and prompts: methods that compare frames take clips alone."""
    framed = "frames" in method.needs
    things, seeds = (CLIPS, CLIP_SEEDS) if framed else (THINGS, SEEDS)
    return things, seeds, [prompt(3 + i, 5, i, own) for i, own in enumerate(things)]


def run(model: Any, method: Reducer, rows: Any, pixels: Any, **kw: Any) -> Any:
    with method(model) as trace:
        return generate(model, rows, pixels, **kw), trace


def placeholders(things: Things) -> list[int]:
    alone = sum(thing != "v" for thing in things) == 1
    return [CLIP_TOKENS if isinstance(t, str) else unpruned(t, alone) for t in things]


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_dropped_equals_unpruned(name: str) -> None:
    model, method = tiny_onevision(), WHOLE[name]
    things, seeds, rows = case(method)
    pixels = inputs(things, seeds)
    plain = generate(model, rows, pixels)
    out, trace = run(model, method, rows, pixels)
    torch.testing.assert_close(logits(out), logits(plain), **CLOSE)
    tokens = [sum(placeholders(own)) for own in things if own]
    assert [sample.tokens_per_layer for sample in trace.samples] == [[n] * LAYERS for n in tokens]
    again = generate(model, rows, pixels)
    assert torch.equal(logits(again), logits(plain))  # nothing is left on the model


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-cells")
        metafunc.parametrize("cell", [name for name in SETTINGS if every or name in QUICK])


def test_batch_singles_attentions_caches(cell: str) -> None:
    """A batch = its rows alone = eager = everything run again for each token; the ledger = the
    lengths of the cache.
    """
    method, family = SETTINGS[cell], {"kv_heads": [2, 4][list(SETTINGS).index(cell) % 2]}
    model = tiny_onevision(**family)
    things, seeds, rows = case(method)
    pixels = inputs(things, seeds)
    out, trace = run(model, method, rows, pixels)
    samples = iter(trace.samples)
    for i, (row, own) in enumerate(zip(rows, things, strict=True)):
        one, single = run(model, method, [row], inputs([own], [seeds[i]]))
        torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], **CLOSE)
        assert out.sequences[i, -4:].tolist() == one.sequences[0, -4:].tolist()
        if not own:
            assert single.samples == []
            continue
        sample = next(samples)
        assert sample.to_dict() == single.samples[0].to_dict()
        layers = zip(*sample.tokens_by_picture, strict=True)
        assert sample.tokens_per_layer == [sum(counts) for counts in layers]
        text = sum(word not in (IMAGE, VIDEO) for word in row)
        assert sample.lengths == [text + n for n in sample.tokens_per_layer]
        held = [layer.get_seq_length() for layer in one.past_key_values.layers]
        assert held == [n + 3 for n in sample.lengths]
    other, eager = run(tiny_onevision(**family, attention="eager"), method, rows, pixels)
    torch.testing.assert_close(logits(other), logits(out), **CLOSE)
    assert eager.to_dict() == trace.to_dict()
    slow, again = run(model, method, rows, pixels, use_cache=False)
    torch.testing.assert_close(logits(slow), logits(out), **CLOSE)
    assert [s.to_dict()["stages"] for s in again.samples] == [
        s.to_dict()["stages"] for s in trace.samples
    ]


@pytest.mark.parametrize("name", [*SETTINGS])
def test_budgets_and_newlines(name: str) -> None:
    """Without newlines each picture or clip holds the plan, or its share of it; a newline stands
    iff a token of its row stands in order before it.
    """
    method, model = SETTINGS[name], tiny_onevision()
    things: list[Things] = [[SIZES[0]], [SIZES[2]], [SIZES[3]], ["v"]]
    if "frames" in method.needs:
        things = things[-1:]
    seeds = [[i] for i in range(len(things))]
    rows = [prompt(3, 4, i, own) for i, own in enumerate(things)]
    _, trace = run(model, method, rows, inputs(things, seeds))
    plan = method.ledger(LAYERS, LARGEST, False)
    before, inside = method.before_part.tiles, method.inside_part.tiles
    for own_things, sample in zip(things, trace.samples, strict=True):
        pairs = zip(sample.tokens_per_layer, sample.newlines_per_layer, strict=True)
        held = [tokens - newlines for tokens, newlines in pairs]
        grid = sample.grids[0]
        whole = placeholders(own_things)[0] - (grid.unpruned - grid.first_newline)
        pooled = {"picture": 1.0, "tile": grid.tiles, "ratio": whole / LARGEST}
        share = pooled[(before if method.before_llm else inside).budget]
        if inside.newlines != "pool" and name not in ("dtd", "dtd-share", "pyramiddrop"):
            assert held == [min(whole, round(n * share)) for n in plan]
        assert all(n <= whole for n in held)
        for stage in (stage for stage in sample.stages if not stage.skipped):
            rule = (before if stage.layer is None else inside).newlines
            lines = stage.identity >= grid.first_newline
            kept = {place: slot for slot, place in enumerate(stage.source.tolist())}
            row = grid.row_of(stage.identity).tolist()
            if rule == "none":
                assert not lines[stage.source].any()
            if rule != "row" or method.before == "prompt":
                continue
            ordered = [p for p in kept if method.in_place or not stage.contextual[kept[p]]]
            for place in lines.nonzero()[:, 0].tolist():
                own = [p for p in ordered if row[p] == row[place] and p < place]
                assert (place in kept) == bool(own)
                if own and (stage.layer is not None or own_things != ["v"]):
                    assert max(kept[p] for p in own) + 1 == kept[place]  # closes its row
                elif own:
                    assert kept[place] == len(kept) - 1  # closes the clip
