"""Identities on tiny Qwen2-VL and Qwen2.5-VL models: pictures of many sizes, several, a video, both
and none in a prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.visiondrop.models import LAYERS, logits
from tests.visiondrop.qwen_models import (
    IMAGE,
    LONGEST,
    VIDEO,
    Visual,
    generate,
    inputs,
    row,
    tiny_qwen,
)
from visiondrop import Full, Random, Uniform, VisionDrop
from visiondrop.methods.dart import DART
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.fastv import FastV
from visiondrop.methods.holov import HoloV
from visiondrop.methods.pool import Pool
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.region import Region
from visiondrop.methods.scope import Scope
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.sparsevlm_plus import SparseVLMPlus
from visiondrop.methods.visiondrop_div import VisionDropDiv
from visiondrop.methods.visionzip import VisionZip
from visiondrop.methods.vista import Vista
from visiondrop.methods.vmtc_cmai import VmtcCmai
from visiondrop.methods.yopo import Yopo
from visiondrop.reducer import Reducer

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
FAMILIES = ["qwen2_5_vl", "qwen2_vl"]

# A picture, two in a prompt, none, a video of three temporal patches, a small picture and a video.
VISUALS: list[list[Visual]] = [
    [("image", (1, 4, 6), 1)],
    [("image", (1, 3, 5), 2), ("image", (1, 6, 4), 3)],
    [],
    [("video", (3, 4, 4), 4)],
    [("image", (1, 2, 4), 5), ("video", (2, 4, 6), 6)],
]
ROWS = [row(3 + i, 5, i, own) for i, own in enumerate(VISUALS)]
TOKENS = [[t * h * w for _, (t, h, w), _ in own] for own in VISUALS]

STAGED = VisionDrop(encoder=(12, 3), llm={2: (8, 2), 4: (5, 2), 6: (3, 1)})
SETTINGS: dict[str, Reducer] = {
    "full": Full(),
    "visiondrop": STAGED,
    "visiondrop-ratio": VisionDrop(
        encoder=(200, 30), llm={2: (100, 30), 4: (60, 9)}
    ).on_tiles(budget="ratio"),
    "visiondrop-frames": VisionDrop(
        encoder=(5, 2), llm={3: (3, 1)}, placement="in_place", merge="size-weighted"
    ).on_tiles(budget="tile"),
    "visiondrop-options": VisionDrop(
        encoder=(11, 4), llm={2: (8, 2), 6: (3, 0)}, positions="original", placement="in_place",
        causal="expectation", query="patches", merge="mean",
    ),
    "visiondrop-llm-only": VisionDrop(llm={1: (9, 3), 5: (4, 2)}),
    "visiondrop-encoder-only": VisionDrop(encoder=(9, 0)),
    "visiondrop_div": VisionDropDiv(encoder=(10, 4), llm={2: (7, 2), 4: (4, 1)}),
    "visionzip": VisionZip(9, 4),
    "fastv": FastV(2, tokens=7),
    "fastv-ratio": FastV(1, ratio=0.6),
    "pyramiddrop": PyramidDrop((2, 4), (0.6, 0.3)),
    "sparsevlm": SparseVLM((1, 2, 4), (20, 12, 5)),
    "sparsevlm+": SparseVLMPlus((1, 4), (12, 5)),
    "dart": DART(2, tokens=12, visual_pivots=2, text_pivots=2),
    "random": Random(9, seed=3),
    "random-inside": Random(7, layer=3),
    "uniform": Uniform(8),
    "divprune": DivPrune(9),
    "scope": Scope(11),
    "holov": HoloV(10, crops=2, shape="windows", order="raster"),
    "vmtc_cmai": VmtcCmai(12, clusters=3),
    "pool": Pool(2, layer=2),
    "pool-grid": Pool(2, layer=0, dims="2d"),
    "region": Region([(0.2, 0.3, 0.7, 0.9)]),
    "yopo": Yopo(window=None),
    "vista": Vista(strength=0.2),
    "composed": VisionZip(10, 3) + VisionDrop(llm={3: (8, 2), 5: (4, 2)}),
    "composed-text": Uniform(12) + FastV(3, tokens=6),
    "composed-extension": STAGED + Vista(strength=0.2),
}  # fmt: skip
WHOLE = {
    "visiondrop-no-stage": VisionDrop(),
    "visiondrop": VisionDrop(llm={2: (LONGEST, 0)}),
    "visiondrop-above": VisionDrop(encoder=(200, 9), llm={2: (90, 9)}),
    "uniform": Uniform(100, layer=3),
    "fastv": FastV(2, ratio=0.0),
    "pyramiddrop": PyramidDrop((2, 5), (1.0, 1.0)),
    "divprune": DivPrune(LONGEST),
    "dart": DART(2, tokens=LONGEST),
}


def given(family: str, rows: Any = ROWS, visuals: Any = VISUALS) -> dict[str, Any]:
    return inputs(family, rows, visuals)


def run(family: str, method: Reducer, fed: Any = None, kind: str = "sdpa", **kw: Any) -> Any:
    model = tiny_qwen(family, kind)
    with method(model) as trace:
        return generate(model, fed or given(family), **kw), trace


def stages(trace: Any) -> Any:
    return [sample.to_dict()["stages"] for sample in trace.samples]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WHOLE)
def test_nothing_dropped_equals_unpruned(name: str, family: str) -> None:
    model, fed = tiny_qwen(family), given(family)
    plain = generate(model, fed)
    out, trace = run(family, WHOLE[name])
    torch.testing.assert_close(logits(out), logits(plain), **CLOSE)
    whole = [[sum(own)] * LAYERS for own in TOKENS if own]
    assert [sample.tokens_per_layer for sample in trace.samples] == whole
    assert torch.equal(logits(generate(model, fed)), logits(plain))  # nothing is left on the model
    assert "get_image_features" not in model.model.__dict__
    assert "get_video_features" not in model.model.__dict__


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_all_of_a_picture_equals_unpruned(kind: str, family: str) -> None:
    """The same through the stages themselves: they are asked for exactly what there is."""
    visuals: list[list[Visual]] = [[(kind, (1 if kind == "image" else 3, 4, 6), 1)]]
    fed = given(family, [row(4, 6, 1, visuals[0])], visuals)
    n = 24 if kind == "image" else 72
    plain = logits(generate(tiny_qwen(family), fed))
    for method in (
        VisionDrop(encoder=(n, 0), llm={3: (n, 0)}), DivPrune(n), Uniform(n), Random(n),
        VisionZip(n, 0), Scope(n), VisionDropDiv(encoder=(n, 0)),
    ):  # fmt: skip
        out, trace = run(family, method, fed)
        torch.testing.assert_close(logits(out), plain, **CLOSE)
        assert trace.samples[0].stages[0].tokens_out == n and not trace.samples[0].stages[0].skipped


@pytest.mark.parametrize("name", SETTINGS)
def test_batch_singles_attentions_caches(name: str, pytestconfig: pytest.Config) -> None:
    """A batch = its rows alone = eager = everything run again for each token; the ledger = the
    lengths of the cache.
    """
    at = list(SETTINGS).index(name) % 2
    every = pytestconfig.getoption("--all-cells")
    method = SETTINGS[name]
    for family in FAMILIES if every else [FAMILIES[at]]:
        out, trace = run(family, method)
        samples = iter(trace.samples)
        for i, (ids, own) in enumerate(zip(ROWS, VISUALS, strict=True)):
            one, single = run(family, method, given(family, [ids], [own]))
            torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], **CLOSE)
            assert out.sequences[i, -4:].tolist() == one.sequences[0, -4:].tolist()
            if not own:
                assert single.samples == []
                continue
            sample = next(samples)
            assert sample.to_dict() == single.samples[0].to_dict()
            layers = zip(*sample.tokens_by_picture, strict=True)
            assert sample.tokens_per_layer == [sum(counts) for counts in layers]
            text = sum(word not in (IMAGE, VIDEO) for word in ids)
            assert sample.lengths == [text + n for n in sample.tokens_per_layer]
            held = [layer.get_seq_length() for layer in one.past_key_values.layers]
            assert held == [n + 3 for n in sample.lengths]
        other, eager = run(family, method, kind="eager")
        torch.testing.assert_close(logits(other), logits(out), **CLOSE)
        assert stages(eager) == stages(trace)
        slow, again = run(family, method, use_cache=False)
        torch.testing.assert_close(logits(slow), logits(out), **CLOSE)
        assert stages(again) == stages(trace)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_for_the_whole_picture_or_video(family: str) -> None:
    """And a picture with fewer tokens is left whole."""
    _, trace = run(family, STAGED)
    plan = STAGED.ledger(LAYERS, LONGEST, has_cls=False)
    expected = [[[min(n, t) for n in plan] for t in own] for own in TOKENS if own]
    for sample, own in zip(trace.samples, expected, strict=True):
        assert [list(p) for p in sample.tokens_by_picture] == own
    video = trace.samples[2].stages[0]
    frames = [sum(p // 16 == f for p in video.identity[video.source].tolist()) for f in range(3)]
    assert frames == [5, 5, 5] and video.tokens_out == 15
    _, trace = run(family, SETTINGS["visiondrop-ratio"])
    for sample, own in zip(trace.samples, [t for t in TOKENS if t], strict=True):
        entering = [p[0] for p in sample.tokens_by_picture]
        assert entering == [round(230 * n / LONGEST) for n in own]
    _, trace = run(family, SETTINGS["visiondrop-frames"])
    assert [p[0] for s in trace.samples for p in s.tokens_by_picture] == [7, 7, 7, 21, 7, 14]


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_stay_those_of_the_unpruned_sequence(family: str) -> None:
    """What the decoder's RoPE is given, against the model's own positions of the same tokens."""
    model = tiny_qwen(family)
    fed = given(family, [ROWS[4]], [VISUALS[4]])
    grids = {k: v for k, v in fed.items() if "grid" in k or k == "second_per_grid_ts"}
    unpruned, _ = model.model.get_rope_index(
        fed["input_ids"], fed["mm_token_type_ids"], attention_mask=fed["attention_mask"], **grids
    )
    seen = []
    rope = model.model.language_model.rotary_emb
    hook = rope.register_forward_pre_hook(
        lambda _m, _a, given: seen.append(given.get("position_ids", _a[-1])), with_kwargs=True
    )
    try:
        _, trace = run(family, STAGED, fed, max_new_tokens=2, min_new_tokens=2)
    finally:
        hook.remove()
    ids, blocks = fed["input_ids"][0].tolist(), seen[:4]
    at = [[i for i, word in enumerate(ids) if word == token] for token in (IMAGE, VIDEO)]
    for block, layer in zip(blocks, (None, 2, 4, 6), strict=True):
        kept = [list(own) for own in at]
        for stage in trace.samples[0].stages:
            if stage.source is not None and (stage.layer or 0) <= (layer or 0):
                kept[stage.picture] = [
                    at[stage.picture][p] for p in stage.identity[stage.source].tolist()
                ]
        text = [i for i in range(len(ids)) if i not in at[0] + at[1]]
        order = [i for i in text if i < at[0][0]] + kept[0]
        order += [i for i in text if at[0][0] < i < at[1][0]] + kept[1]
        order += [i for i in text if i > at[1][0]]
        assert torch.equal(block[-3:].expand(3, 1, -1), unpruned[:, :, order])
    after = seen[-1]  # decoding goes on from there
    assert torch.equal(after.expand(3, 1, 1)[:, 0, 0], unpruned[:, 0, -1] + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_forwards_and_interleaved_decoding(family: str) -> None:
    """Without generate(), two prompts in turns on one model: positions do not mix (the stock model
    keeps its last prompt's on itself).
    """
    model = tiny_qwen(family)
    fed = [given(family, [ROWS[i]], [VISUALS[i]]) for i in (0, 4)]
    for method in (VisionDrop(), STAGED):
        outs = [run(family, method, one)[0] for one in fed]
        with method(model), torch.no_grad():
            caches, got = [], [[], []]
            for i, one in enumerate(fed):
                out = model(**one, use_cache=True, logits_to_keep=1)
                caches.append(out.past_key_values)
                got[i].append(out.logits[0, -1])
            for step in range(3):
                for i, cache in enumerate(caches):
                    word = outs[i].sequences[:, -4 + step : -3 + step]
                    out = model(input_ids=word, past_key_values=cache, logits_to_keep=1)
                    got[i].append(out.logits[0, -1])
        for own, out in zip(got, outs, strict=True):
            torch.testing.assert_close(torch.stack(own), logits(out)[:, 0], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_chats_in_turns(family: str) -> None:
    """A second turn on the kept cache = the whole conversation afresh, whatever came between."""
    model, more = tiny_qwen(family), [44, 45, 46]
    options = dict(max_new_tokens=3, min_new_tokens=3)
    fed = [given(family, [ROWS[i]], [VISUALS[i]]) for i in (0, 1)]
    with STAGED(model):
        firsts = [generate(model, one, **options) for one in fed]
        for i, first in enumerate(firsts):
            said = first.sequences[0].tolist()
            both = given(family, [said + more], [VISUALS[i]])
            ids = {k: v for k, v in both.items() if "pixel" not in k and "grid" not in k}
            kept = first.past_key_values
            second = generate(model, {**ids, "past_key_values": kept}, **options)
            afresh = generate(model, both, **options)
            torch.testing.assert_close(logits(second), logits(afresh), **CLOSE)
    assert "_prepare_position_ids_for_generation" not in model.__dict__


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_and_samples(family: str) -> None:
    """Beams of a batch = of its rows alone; a whole budget = stock beams."""
    options = dict(num_beams=3, num_return_sequences=2)
    plain = generate(tiny_qwen(family), given(family), **options)
    whole, _ = run(family, VisionDrop(llm={2: (LONGEST, 0)}), **options)
    assert torch.equal(whole.sequences, plain.sequences)
    out, _ = run(family, STAGED, **options)
    for i, (ids, own) in enumerate(zip(ROWS, VISUALS, strict=True)):
        one, _ = run(family, STAGED, given(family, [ids], [own]), **options)
        assert torch.equal(out.sequences[2 * i : 2 * i + 2, -4:], one.sequences[:, -4:])


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(family: str, tmp_path: Path) -> None:
    model = tiny_qwen(family)
    expected = logits(run(family, STAGED)[0])
    with STAGED(model):
        model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    again.generation_config.pad_token_id = 0
    with STAGED(again):
        assert torch.equal(logits(generate(again, given(family))), expected)


def test_half_precision_and_seeds() -> None:
    """bfloat16 runs; a draw depends on the key alone."""
    model = tiny_qwen("qwen2_5_vl")
    half = type(model)(model.config).eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).generation_config.pad_token_id = 0
    with STAGED(half) as trace:
        generate(half, given("qwen2_5_vl"))
    plan = [s.tokens_per_layer for s in run("qwen2_5_vl", STAGED)[1].samples]
    assert [s.tokens_per_layer for s in trace.samples] == plan
    fed = given("qwen2_5_vl", ROWS[:2], VISUALS[:2])
    kept = []
    for keys in (["a", "b", "c"], ["a", "b", "c"], ["x", "b", "c"]):
        with Random(7, seed=1)(model, keys=keys) as trace:
            generate(model, fed)
        kept.append(stages(trace))
    assert kept[0] == kept[1] and kept[0][0] != kept[2][0] and kept[0][1] == kept[2][1]
