"""Identities on a tiny LLaVA-NeXT: pictures of other tile counts, several and none in a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llava.model import LlavaNextForConditionalGeneration
from tests.visiondrop.models import IMAGE, LAYERS, logits
from tests.visiondrop.next_models import (
    LARGEST,
    PATCHES,
    SIZES,
    generate,
    grid_of,
    inputs,
    picture,
    prompt,
    tiny_next,
    unpruned,
)
from tests.visiondrop.tiny_clip import tiny_clip
from visiondrop import Full, Random, Uniform, VisionDrop
from visiondrop.methods import METHODS
from visiondrop.methods.cdpruner import CDPruner
from visiondrop.methods.dart import DART
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.fastervlm import FasterVLM
from visiondrop.methods.fastv import FastV
from visiondrop.methods.globalcom2 import GlobalCom2
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
from visiondrop.tower_cache import TowerCache

CLOSE = {"atol": 2e-4, "rtol": 1e-4}

STAGED = VisionDrop(encoder=(50, 8), llm={2: (30, 5), 4: (20, 4), 6: (10, 3)})
SETTINGS: dict[str, Reducer] = {
    "full": Full(),
    "visiondrop": STAGED,
    "visiondrop-ratio": STAGED.on_tiles(budget="ratio", share="equal"),
    "visiondrop-options": VisionDrop(
        encoder=(40, 6), llm={2: (20, 5), 5: (9, 0)}, positions="original", placement="in_place",
        causal="expectation", query="patches", merge="mean",
    ).on_tiles(newlines="pool", padding="shown"),
    "visiondrop-llm-only": VisionDrop(llm={1: (30, 4), 5: (12, 3)}, placement="in_place"),
    "visiondrop-no-newlines": VisionDrop(llm={3: (30, 4)}).on_tiles(newlines="none"),
    "visiondrop_div": VisionDropDiv(encoder=(40, 8), llm={2: (20, 5), 4: (9, 2)}),
    "visionzip": VisionZip(40, 8),
    "visionzip-released": VisionZip(9, 2).on_tiles(**VisionZip.released_tiles),
    "fastervlm": FasterVLM(40),
    "fastervlm-lost": FasterVLM(50).on_tiles(newlines="pool", padding="lost"),
    "pyramiddrop": PyramidDrop((2, 4), (0.5, 0.2)),
    "fastv": FastV(2, tokens=40),
    "fastv-ratio": FastV(2, tokens=40).on_tiles(budget="ratio"),
    "dart": DART(2, tokens=30),
    "random": Random(40, seed=3),
    "uniform": Uniform(30),
    "uniform-inside": Uniform(30, layer=2, positions="original"),
    "divprune": DivPrune(30),
    "globalcom2": GlobalCom2(0.25),
    "hired": HiRED(40),
    "hired-paper": HiRED(40, partition="paper", fill=True).on_tiles(budget="ratio"),
    "scope": Scope(35),
    "vispruner": VisPruner(31),
    "cdpruner": CDPruner(20, clip=tiny_clip()),
    "prumerge": PruMerge(tokens=30, neighbours=5),
    "prumerge-adaptive": PruMerge(neighbours=5),
    "prumerge+": PruMergePlus(tokens=40),
    "sparsevlm": SparseVLM((1, 2, 4), (60, 30, 12)),
    "sparsevlm+": SparseVLMPlus((1, 4), (50, 20)).on_tiles(budget="ratio"),
    "composed": VisionZip(40, 8) + VisionDrop(llm={3: (20, 4), 5: (9, 2)}),
    "composed-pool": Uniform(60, positions="original") + FastV(3, tokens=20),
}  # fmt: skip
WHOLE = {
    "visiondrop": VisionDrop(llm={2: (LARGEST, 0)}),
    "fastervlm": FasterVLM(LARGEST),
    "uniform": Uniform(LARGEST, layer=3, positions="original"),
    "pyramiddrop": PyramidDrop((2, 5), (1.0, 1.0)),
    "fastv": FastV(2, ratio=0.0),
    "divprune": DivPrune(LARGEST),
    "random": Random(LARGEST),
}
FAMILIES = [{}, {"decoder": "mistral", "kv_heads": 2}]

# A picture, two in a prompt, none, one: other numbers of tiles in every row.
PICTURES = [[SIZES[0]], [SIZES[1], SIZES[2]], [], [SIZES[3]]]
SEEDS = [[1], [2, 3], [], [4]]
ROWS = [prompt(3 + i, 5, i, own) for i, own in enumerate(PICTURES)]
ALL = inputs(sum(PICTURES, []), sum(SEEDS, []))


def run(model: Any, method: Reducer, rows: Any = ROWS, images: Any = ALL, **kw: Any) -> Any:
    count = len(images.get("image_sizes", ()))
    questions = ["is it red?"] * count if count else None
    with method(model, questions=questions) as trace:
        return generate(model, rows, images, **kw), trace


@pytest.mark.parametrize("family", FAMILIES, ids=["llama", "mistral"])
@pytest.mark.parametrize("name", WHOLE)
def test_nothing_dropped_equals_unpruned(name: str, family: dict[str, Any]) -> None:
    model = tiny_next(**family)
    plain = generate(model, ROWS, ALL)
    out, trace = run(model, WHOLE[name])
    torch.testing.assert_close(logits(out), logits(plain), **CLOSE)
    tokens = [[sum(map(unpruned, own))] * LAYERS for own in PICTURES if own]
    assert [sample.tokens_per_layer for sample in trace.samples] == tokens
    again = generate(model, ROWS, ALL)
    assert torch.equal(logits(again), logits(plain))  # nothing is left on the model


@pytest.mark.parametrize("name", SETTINGS)
def test_batch_singles_attentions_caches(name: str) -> None:
    """A batch = its rows alone = eager = everything run again for each token; the ledger = the
    lengths of the cache.
    """
    method, family = SETTINGS[name], FAMILIES[list(SETTINGS).index(name) % 2]
    model = tiny_next(**family)
    out, trace = run(model, method)
    samples = iter(trace.samples)
    for i, (row, own) in enumerate(zip(ROWS, PICTURES, strict=True)):
        one, single = run(model, method, [row], inputs(own, SEEDS[i]))
        torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], **CLOSE)
        assert out.sequences[i, -4:].tolist() == one.sequences[0, -4:].tolist()
        if not own:
            assert single.samples == []
            continue
        sample = next(samples)
        assert sample.to_dict() == single.samples[0].to_dict()
        assert len(sample.tokens_by_picture) == len(own)
        layers = zip(*sample.tokens_by_picture, strict=True)
        assert sample.tokens_per_layer == [sum(counts) for counts in layers]
        text = sum(word != IMAGE for word in row)
        assert sample.lengths == [text + n for n in sample.tokens_per_layer]
        held = [layer.get_seq_length() for layer in one.past_key_values.layers]
        assert held == [n + 3 for n in sample.lengths]
    other, eager = run(tiny_next(**family, attention="eager"), method)
    torch.testing.assert_close(logits(other), logits(out), **CLOSE)
    assert eager.to_dict() == trace.to_dict()
    slow, again = run(model, method, use_cache=False)
    torch.testing.assert_close(logits(slow), logits(out), **CLOSE)
    assert [s.to_dict()["stages"] for s in again.samples] == [
        s.to_dict()["stages"] for s in trace.samples
    ]


def counts(sample: Any) -> list[int]:
    """Visual tokens per layer without newlines."""
    pairs = zip(sample.tokens_per_layer, sample.newlines_per_layer, strict=True)
    return [tokens - newlines for tokens, newlines in pairs]


@pytest.mark.parametrize("budget", ["picture", "ratio", "tile"])
@pytest.mark.parametrize("share", ["importance", "equal"])
def test_budgets_are_met_exactly(budget: str, share: str) -> None:
    model = tiny_next()
    rows, images = [prompt(3, 4, 1, [size]) for size in SIZES], inputs(SIZES, [1, 2, 3, 4])
    totals = {"picture": 60, "ratio": 60, "tile": 14}
    first = totals[budget]
    method = VisionDrop(encoder=(first - 5, 5), llm={2: (first // 2, 3), 5: (first // 3, 0)})
    tiled = method.on_tiles(budget=budget, share=share)
    assert tiled.from_dict(tiled.to_dict()).tiles == tiled.tiles
    _, trace = run(model, tiled, rows, images)
    plan = method.ledger(LAYERS, LARGEST)
    assert [sample.tokens_by_picture for sample in trace.samples] == [
        [sample.tokens_per_layer] for sample in trace.samples
    ]
    for size, sample in zip(SIZES, trace.samples, strict=True):
        tiles = grid_of(size).tiles
        scale = {"picture": 1, "ratio": tiles * PATCHES / LARGEST, "tile": tiles}[budget]
        assert counts(sample) == [round(n * scale) for n in plan]
    whole = sum(s.mean_tokens for s in trace.samples) / len(SIZES)
    assert trace.mean_tokens == pytest.approx(whole)
    assert 0 < trace.mean_newlines < trace.mean_tokens


def test_every_tile_has_its_cls_and_its_share() -> None:
    """Released shares: as many of every tile, CLS among them."""
    _, trace = run(tiny_next(), SETTINGS["visionzip-released"])
    for sample in trace.samples:
        stages = [s for s in sample.stages if s.place == "encoder"]
        for stage, grid in zip(stages, sample.grids, strict=True):
            kept = [grid.locate(token) for token in stage.identity[stage.source].tolist()]
            for tile in range(grid.tiles):
                own = [kind for kind, where, *_ in kept if where == tile]
                assert len(own) == 11 and own.count("cls") == 1
            assert not any(kind == "newline" for kind, *_ in kept)


@pytest.mark.parametrize("name", ["visiondrop", "uniform", "visiondrop-llm-only", "composed"])
def test_newlines_stay_with_their_rows(name: str) -> None:
    """After every stage a newline stands iff a token of its row stands in order before it."""
    _, trace = run(tiny_next(), SETTINGS[name])
    in_place = name == "visiondrop-llm-only"
    for sample in trace.samples:
        for stage in sample.stages:
            grid = sample.grids[stage.picture]
            tokens = stage.identity[stage.source].tolist()
            flags = stage.contextual.tolist()
            rows, lines = set(), []
            for token, contextual in zip(tokens, flags, strict=True):
                kind, tile, row, _ = grid.locate(token)
                if kind == "newline":
                    lines.append(row)
                    assert row in rows, "a newline before its row, or of an empty one"
                elif kind == "patch" and tile and (in_place or not contextual):
                    top = (tile - 1) // grid.columns * grid.side
                    if not lines or top + row > lines[-1]:
                        rows.add(top + row)
            assert lines == sorted(lines) and set(lines) == rows


def test_keys_name_pictures_not_batches() -> None:
    model, method = tiny_next(), Random(30, seed=1)
    outs = []
    for keys in (["a", "b", "c", "d"], ["a", "b", "c", "d"], ["x", "b", "c", "d"]):
        with method(model, keys=keys) as trace:
            generate(model, ROWS, ALL)
        outs.append([sample.to_dict()["stages"] for sample in trace.samples])
    assert outs[0] == outs[1] and outs[0][0] != outs[2][0] and outs[0][1:] == outs[2][1:]


def test_known_tiles_are_not_encoded_again() -> None:
    model, cache = tiny_next(), TowerCache(1 << 24)
    outs = []
    for _ in range(2):
        with STAGED(model, tower_cache=cache) as trace:
            trace.set_pictures(["a", "b", "c", "d"])
            outs.append(logits(generate(model, ROWS, ALL)))
    tiles = sum(grid_of(size).tiles for own in PICTURES for size in own)
    assert torch.equal(outs[0], outs[1]) and cache.hits == tiles
    torch.testing.assert_close(outs[0], logits(run(model, STAGED)[0]), **CLOSE)


def test_beams_and_llava_calls() -> None:
    """`generate(ids with -200, images, image_sizes)` = the stock call; beams too."""
    model = tiny_next()
    front = LlavaNextForConditionalGeneration(model.config).eval()
    front.load_state_dict(model.state_dict())
    front.generation_config.pad_token_id = 0
    ids, at = ROWS[0], ROWS[0].index(IMAGE)
    short = torch.tensor([[*ids[:at], -200, *[w for w in ids[at:] if w != IMAGE]]])
    height, width = SIZES[0]
    options = dict(
        max_new_tokens=4, min_new_tokens=4, do_sample=False, suppress_tokens=[IMAGE], num_beams=2
    )
    with STAGED(front):
        got = front.generate(
            short, images=[picture(SIZES[0], 1)], image_sizes=[(width, height)], **options
        )
    expected, _ = run(model, STAGED, [ids], inputs(PICTURES[0], SEEDS[0]), num_beams=2)
    assert got[0].tolist() == expected.sequences[0, -4:].tolist()


def test_what_is_not_defined_is_refused() -> None:
    model = tiny_next()
    tested = {method.name for method in SETTINGS.values()} - {"composed"}
    assert tested == {name for name, method in METHODS.items() if method.tiled}
    known = "any-resolution pictures.*fastervlm.*visiondrop"
    for name in sorted(set(METHODS) - tested):
        with pytest.raises(ValueError, match=known), METHODS[name]()(model):
            raise AssertionError(f"{name} not refused")
    with (
        pytest.raises(ValueError, match="newlines='pool'"),
        FastV(2, tokens=9).on_tiles(newlines="row")(model),
    ):
        raise AssertionError("not refused")
    with pytest.raises(ValueError, match="share='most'.*'importance', 'equal'"):
        STAGED.on_tiles(share="most")
