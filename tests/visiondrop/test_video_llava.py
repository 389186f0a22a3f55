"""Identities on a tiny Video-LLaVA: a clip, a picture and a clip, neither, a picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.visiondrop.models import LAYERS, logits
from tests.visiondrop.video_models import (
    CLIP_TOKENS,
    IMAGE,
    PATCHES,
    VIDEO,
    generate,
    inputs,
    prompt,
    tiny_video,
)
from visiondrop import Full, Random, Uniform, VisionDrop
from visiondrop.adapters import geometry_of
from visiondrop.methods.dart import DART
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.dtd import DTD
from visiondrop.methods.fastervlm import FasterVLM
from visiondrop.methods.fastv import FastV
from visiondrop.methods.framewise import FrameWise
from visiondrop.methods.hired import HiRED
from visiondrop.methods.prumerge import PruMerge
from visiondrop.methods.prumerge_plus import PruMergePlus
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.scope import Scope
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.sparsevlm_plus import SparseVLMPlus
from visiondrop.methods.visiondrop_div import VisionDropDiv
from visiondrop.methods.visionzip import VisionZip
from visiondrop.methods.vispruner import VisPruner
from visiondrop.reducer import Reducer

CLOSE = {"atol": 2e-4, "rtol": 1e-4}

STAGED = VisionDrop(encoder=(12, 4), llm={2: (8, 2), 4: (5, 1), 6: (3, 1)})
SETTINGS: dict[str, Reducer] = {
    "full": Full(),
    "visiondrop": STAGED,
    "visiondrop-options": VisionDrop(
        encoder=(15, 5), llm={2: (9, 2), 5: (4, 0)}, positions="original", placement="in_place",
        causal="expectation", query="patches", merge="mean",
    ),
    "visiondrop-inside": VisionDrop(llm={1: (20, 4), 5: (8, 3)}, placement="in_place"),
    "visiondrop-few": VisionDrop(encoder=(2, 0)),  # fewer tokens than frames
    "visiondrop_div": VisionDropDiv(encoder=(12, 4), llm={2: (9, 2), 4: (5, 1)}),
    "visionzip": VisionZip(12, 3),
    "fastervlm": FasterVLM(13),
    "vispruner": VisPruner(14),
    "hired": HiRED(13),
    "prumerge": PruMerge(tokens=14, neighbours=5),
    "prumerge-adaptive": PruMerge(neighbours=5),
    "prumerge+": PruMergePlus(tokens=14),
    "scope": Scope(11),
    "divprune": DivPrune(10),
    "random": Random(14, seed=3),
    "random-inside": Random(14, layer=2),
    "uniform": Uniform(2),
    "uniform-inside": Uniform(14, layer=2, positions="original"),
    "fastv": FastV(2, tokens=12),
    "dart": DART(2, tokens=12),
    "pyramiddrop": PyramidDrop((2, 4), (0.5, 0.2)),
    "sparsevlm": SparseVLM((1, 2, 4), (30, 14, 6)),
    "sparsevlm+": SparseVLMPlus((1, 4), (25, 8)),
    "composed": VisionZip(12, 3) + VisionDrop(llm={3: (8, 2), 5: (4, 1)}),
    "dtd": DTD(threshold=0.97),
    "dtd-pixel": DTD(by="pixel", threshold=0.2, positions="renumbered"),
    "dtd-share": DTD(share=0.6),
    "framewise": FrameWise(13),
    "framewise-visiondrop": FrameWise(11, "uniform", positions="renumbered")
    + VisionDrop(llm={3: (4, 2)}),
}  # fmt: skip
WHOLE = {
    "visiondrop": VisionDrop(llm={2: (CLIP_TOKENS, 0)}),
    "visiondrop-encoder": VisionDrop(encoder=(CLIP_TOKENS, 0)),
    "too-many": Random(CLIP_TOKENS),  # more than there are without CLS: nothing is done
    "fastv": FastV(2, ratio=0.0),
    "uniform": Uniform(CLIP_TOKENS, layer=3, positions="original"),
    "framewise": FrameWise(CLIP_TOKENS),
    "dtd": DTD(share=0.0),
}
FAMILIES = [{}, {"decoder": "mistral", "kv_heads": 2}]

KINDS, SEEDS = ["v", "pv", "", "p"], [[1], [2, 3], [], [4]]
ROWS = [prompt(3 + i, 5, i, kinds) for i, kinds in enumerate(KINDS)]
FRAMED_KINDS, FRAMED_SEEDS = ["v", "vv", "", "pvp"], [[1], [2, 3], [], [4, 5, 6]]
FRAMED_ROWS = [prompt(3 + i, 5, i, kinds) for i, kinds in enumerate(FRAMED_KINDS)]


def case(method: Reducer) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Kinds, seeds and prompts: methods that compare frames take no single picture."""
    if "frames" in method.needs:
        return FRAMED_KINDS, FRAMED_SEEDS, FRAMED_ROWS
    return KINDS, SEEDS, ROWS


def run(model: Any, method: Reducer, rows: Any, pixels: Any, **kw: Any) -> Any:
    with method(model) as trace:
        return generate(model, rows, pixels, **kw), trace


@pytest.mark.parametrize("family", FAMILIES, ids=["llama", "mistral"])
@pytest.mark.parametrize("name", WHOLE)
def test_nothing_dropped_equals_unpruned(name: str, family: dict[str, Any]) -> None:
    model, method = tiny_video(**family), WHOLE[name]
    kinds, seeds, rows = case(method)
    pixels = inputs("".join(kinds), sum(seeds, []))
    plain = generate(model, rows, pixels)
    out, trace = run(model, method, rows, pixels)
    torch.testing.assert_close(logits(out), logits(plain), **CLOSE)
    tokens = [sum({"p": PATCHES, "v": CLIP_TOKENS}[kind] for kind in own) for own in kinds if own]
    assert [sample.tokens_per_layer for sample in trace.samples] == [[n] * LAYERS for n in tokens]
    again = generate(model, rows, pixels)
    assert torch.equal(logits(again), logits(plain))  # nothing is left on the model


QUICK = {
    "visiondrop", "visiondrop-options", "visiondrop-inside", "visiondrop-few", "visionzip",
    "divprune", "random", "sparsevlm", "composed", "dtd", "dtd-pixel", "framewise-visiondrop",
}  # fmt: skip
"""The settings that are always run through all identities; the others with --all-cells."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        every = metafunc.config.getoption("--all-cells")
        metafunc.parametrize("cell", [name for name in SETTINGS if every or name in QUICK])


def test_batch_singles_attentions_caches(cell: str) -> None:
    """A batch = its rows alone = eager = everything run again for each token; the ledger = the
    lengths of the cache.
    """
    method, family = SETTINGS[cell], FAMILIES[list(SETTINGS).index(cell) % 2]
    model = tiny_video(**family)
    kinds, seeds, rows = case(method)
    pixels = inputs("".join(kinds), sum(seeds, []))
    out, trace = run(model, method, rows, pixels)
    samples = iter(trace.samples)
    for i, (row, own) in enumerate(zip(rows, kinds, strict=True)):
        one, single = run(model, method, [row], inputs(own, seeds[i]))
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
    other, eager = run(tiny_video(**family, attention="eager"), method, rows, pixels)
    torch.testing.assert_close(logits(other), logits(out), **CLOSE)
    assert eager.to_dict() == trace.to_dict()
    slow, again = run(model, method, rows, pixels, use_cache=False)
    torch.testing.assert_close(logits(slow), logits(out), **CLOSE)
    assert [s.to_dict()["stages"] for s in again.samples] == [
        s.to_dict()["stages"] for s in trace.samples
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_clip_holds_what_the_plan_says(name: str) -> None:
    method = SETTINGS[name]
    geometry = geometry_of(tiny_video())
    _, trace = run(tiny_video(), method, ROWS[:1], inputs("v", [1]))
    held = trace.samples[0].tokens_per_layer
    plan = method.ledger(LAYERS, geometry.num_patches, geometry.has_cls)
    if name == "prumerge-adaptive" or "dtd" in name:  # the plan is the most that can stay
        assert all(n <= most for n, most in zip(held, plan, strict=True))
        assert held[0] < CLIP_TOKENS
    else:
        assert held == plan
