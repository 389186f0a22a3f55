"""Identities on a tiny InternVL: pictures of other tile counts, several and none in a prompt."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import InternVLForConditionalGeneration

from tests.visiondrop.internvl_models import (
    TOKENS,
    generate,
    inputs,
    picture,
    prompt,
    tiny_internvl,
)
from tests.visiondrop.models import IMAGE, LAYERS, batch, logits
from visiondrop import Full, ImageCache, Random, Uniform, VisionDrop
from visiondrop.methods.dart import DART
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.dtd import DTD
from visiondrop.methods.fastervlm import FasterVLM
from visiondrop.methods.fastv import FastV
from visiondrop.methods.framewise import FrameWise
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

STAGED = VisionDrop(encoder=(30, 5), llm={2: (18, 3), 4: (12, 2), 6: (6, 1)})
SETTINGS: dict[str, Reducer] = {
    "full": Full(),
    "visiondrop": STAGED,
    "visiondrop-ratio": VisionDrop(encoder=(90, 12), llm={2: (50, 8), 5: (20, 4)}).on_tiles(
        budget="ratio", share="equal"
    ),
    "visiondrop-options": VisionDrop(
        encoder=(24, 6), llm={2: (14, 5), 5: (6, 0)}, positions="original", placement="in_place",
        causal="expectation", query="patches", merge="mean",
    ),
    "visiondrop-llm-only": VisionDrop(llm={1: (20, 4), 5: (9, 3)}, placement="in_place"),
    "visiondrop_div": VisionDropDiv(encoder=(24, 6), llm={2: (14, 5), 4: (7, 2)}),
    "visionzip": VisionZip(24, 6),
    "visionzip-tile": VisionZip(7, 2).on_tiles(budget="tile", share="equal"),
    "fastervlm": FasterVLM(25),
    "pyramiddrop": PyramidDrop((2, 4), (0.5, 0.2)),
    "fastv": FastV(2, tokens=20),
    "fastv-ratio": FastV(2, ratio=0.7),
    "dart": DART(2, tokens=20),
    "random": Random(25, seed=3),
    "uniform": Uniform(25),
    "uniform-inside": Uniform(20, layer=2, positions="original"),
    "divprune": DivPrune(22),
    "scope": Scope(22),
    "vispruner": VisPruner(21),
    "sparsevlm": SparseVLM((1, 2, 4), (40, 20, 10)),
    "sparsevlm+": SparseVLMPlus((1, 4), (30, 12)),
    "composed": VisionZip(24, 6) + VisionDrop(llm={3: (14, 4), 5: (7, 2)}),
    "composed-text": Uniform(30, positions="original") + FastV(3, tokens=14),
}  # fmt: skip
FRAMES = {"dtd": DTD(threshold=0.9), "framewise": FrameWise(5)}
LARGEST = 13 * TOKENS
WHOLE = {
    "visiondrop": VisionDrop(llm={2: (LARGEST, 0)}),
    "visiondrop-encoder": VisionDrop(encoder=(TOKENS, 0)).on_tiles(budget="tile"),
    "visiondrop-div": VisionDropDiv(encoder=(TOKENS, 0)).on_tiles(budget="tile"),
    "visionzip": VisionZip(TOKENS, 0).on_tiles(budget="tile"),
    "fastervlm": FasterVLM(TOKENS).on_tiles(budget="tile", share="equal"),
    "scope": Scope(TOKENS).on_tiles(budget="tile"),
    "vispruner": VisPruner(TOKENS).on_tiles(budget="tile"),
    "uniform-tile": Uniform(TOKENS).on_tiles(budget="tile"),
    "random": Random(LARGEST),
    "uniform": Uniform(LARGEST, layer=3, positions="original"),
    "divprune": DivPrune(LARGEST).on_tiles(budget="ratio"),
    "pyramiddrop": PyramidDrop((2, 5), (1.0, 1.0)),
    "fastv": FastV(2, ratio=0.0),
}
FAMILIES: list[dict[str, Any]] = [{}, {"decoder": "llama", "normed": True, "layer": -2}]

# A picture, two in a prompt, none, one, two frames: other numbers of tiles in every row.
TILES = [[3], [1, 5], [], [7], [1, 1]]
SEEDS = [[1], [2, 3], [], [4], [5, 6]]
ROWS = [prompt(3 + i, 5, i, own) for i, own in enumerate(TILES)]
ALL = inputs(sum(TILES, []), sum(SEEDS, []))


def run(model: Any, method: Reducer, rows: Any = ROWS, images: Any = ALL, **kw: Any) -> Any:
    with method(model) as trace:
        return generate(model, rows, images, **kw), trace


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_dropped_equals_unpruned(name: str) -> None:
    model = tiny_internvl(**FAMILIES[list(WHOLE).index(name) % 2])
    plain = generate(model, ROWS, ALL)
    out, trace = run(model, WHOLE[name])
    torch.testing.assert_close(logits(out), logits(plain), **CLOSE)
    tokens = [[sum(own) * TOKENS] * LAYERS for own in TILES if own]
    assert [sample.tokens_per_layer for sample in trace.samples] == tokens
    again = generate(model, ROWS, ALL)
    assert torch.equal(logits(again), logits(plain))  # nothing is left on the model
    assert "get_image_features" not in model.model.__dict__


@pytest.mark.parametrize("name", SETTINGS)
def test_batch_singles_attentions_caches(name: str) -> None:
    """A batch = its rows alone = eager = everything run again for each token; the ledger = the
    lengths of the cache.
    """
    method, family = SETTINGS[name], FAMILIES[list(SETTINGS).index(name) % 2]
    model = tiny_internvl(**family)
    out, trace = run(model, method)
    samples = iter(trace.samples)
    for i, (row, own) in enumerate(zip(ROWS, TILES, strict=True)):
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
    other, eager = run(tiny_internvl(**family, attention="eager"), method)
    torch.testing.assert_close(logits(other), logits(out), **CLOSE)
    assert eager.to_dict() == trace.to_dict()
    slow, again = run(model, method, use_cache=False)
    torch.testing.assert_close(logits(slow), logits(out), **CLOSE)
    assert [s.to_dict()["stages"] for s in again.samples] == [
        s.to_dict()["stages"] for s in trace.samples
    ]


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_pictures_of_one_tile(name: str) -> None:
    """Methods that compare frames: a batch = its rows alone; `dtd` keeps what changed, by loops."""
    model, method, frames = tiny_internvl(), FRAMES[name], [3, 2, 0]
    rows = [prompt(3 + i, 2, i, [1] * count) for i, count in enumerate(frames)]
    stills = [alike_frames(count, 7 + i) for i, count in enumerate(frames)]
    out, trace = run(model, method, rows, {"pixel_values": torch.cat(stills)})
    for i, count in enumerate(frames):
        images = {"pixel_values": stills[i]} if count else {}
        one, single = run(model, method, [rows[i]], images)
        torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], **CLOSE)
        if not count:
            continue
        sample = trace.samples[i]
        assert sample.to_dict() == single.samples[0].to_dict()
        held = [layer.get_seq_length() for layer in one.past_key_values.layers]
        assert held == [n + 3 for n in sample.lengths]
        with torch.no_grad():
            features = model.model.get_image_features(stills[i], return_dict=True).pooler_output
        if name == "dtd":
            kept: list[list[int]] = []
            for now, before in zip(features[1:], features, strict=False):
                near = torch.nn.functional.cosine_similarity(now, before, dim=-1).tolist()
                kept.append([t for t, value in enumerate(near) if value <= 0.9])
            assert [stage.kept for stage in sample.stages] == kept
            assert all(0 < len(own) < TOKENS for own in kept)
        else:
            assert sample.tokens_by_picture == [[5] * LAYERS] * count
    row, images = prompt(3, 2, 0, [1]), {"pixel_values": picture(1, 1)}
    with method(model), pytest.raises(ValueError, match="several pictures.*prompt 0 has one"):
        generate(model, [row], images)


def alike_frames(count: int, seed: int) -> torch.Tensor:
    """Tiles [count, 3, 32, 32], each the one before with another upper half."""
    frames = [picture(1, seed)]
    for step in range(1, count):
        new = frames[-1].clone()
        new[:, :, :16] += 0.5 * picture(1, seed + 10 * step)[:, :, :16]
        frames.append(new)
    return torch.cat(frames)[:count]


def test_image_cache_serves_every_question(tmp_path: Path) -> None:
    """Questions on kept prefixes, of one picture and of three, = asked afresh; also from a file."""
    model, options = tiny_internvl(), {"max_new_tokens": 4, "min_new_tokens": 4}
    cache = ImageCache(model, STAGED)
    begins, questions = [prompt(3, 0, 0, [3]), prompt(3, 2, 1, [3, 1, 5])], [[5, 6, 7], [8, 9]]
    pictures = [inputs([3], [1]), inputs([3, 1, 5], [1, 2, 3])]
    prefixes = [
        cache.build(torch.tensor([ids]), **images)
        for ids, images in zip(begins, pictures, strict=True)
    ]
    cache.save(tmp_path / "kept.safetensors")
    cache = ImageCache(model, STAGED)
    assert cache.load(tmp_path / "kept.safetensors") == 2
    read = [cache.get(prefix.key) for prefix in prefixes]
    for prefix, again in zip(prefixes, read, strict=True):
        assert again is not None and again.sample is not None and prefix.sample is not None
        assert again.sample.to_dict() == prefix.sample.to_dict()
        assert again.sample.grids == prefix.sample.grids
    out = cache.generate(
        read,
        [torch.tensor(ids) for ids in questions],
        **options,
        do_sample=False,
        suppress_tokens=[IMAGE],
        output_logits=True,
        return_dict_in_generate=True,
    )
    rows = [begin + ids for begin, ids in zip(begins, questions, strict=True)]
    fresh, _ = run(model, STAGED, rows, inputs([3, 3, 1, 5], [1, 1, 2, 3]))
    torch.testing.assert_close(logits(out), logits(fresh), **CLOSE)


def test_plain_forward_equals_generate() -> None:
    """One forward pass, in which the features are made inside (as transformers 5.17 does)."""
    model = tiny_internvl()
    out, made = run(model, STAGED)
    with STAGED(model) as trace, torch.no_grad():
        first = model(**batch(ROWS), **ALL, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(first, out.logits[0], **CLOSE)
    assert trace.to_dict() == made.to_dict()


def test_layer_of_one_call() -> None:
    """`vision_feature_layer` of a call = that of the configuration."""
    model, other = tiny_internvl(), tiny_internvl(layer=-2)
    outs = []
    for each, layer in ((model, {"vision_feature_layer": -2}), (other, {}), (model, {})):
        with STAGED(each), torch.no_grad():
            outs.append(each(**batch(ROWS), **ALL, **layer, logits_to_keep=1).logits)
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize(
    "ways",
    [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}],
    ids=["beams", "sampling"],
)
def test_ways_of_decoding(ways: dict[str, Any]) -> None:
    """With nothing dropped they equal the unpruned model; beams of a batch = of its rows."""
    model = tiny_internvl()
    torch.manual_seed(5)
    plain = generate(model, ROWS, ALL, **ways)
    torch.manual_seed(5)
    whole, _ = run(model, Full(), **ways)
    assert whole.sequences.tolist() == plain.sequences.tolist()
    if "num_beams" in ways:
        out, _ = run(model, STAGED, **ways)
        for i, own in enumerate(TILES):
            one, _ = run(model, STAGED, [ROWS[i]], inputs(own, SEEDS[i]), **ways)
            assert out.sequences[i, -4:].tolist() == one.sequences[0, -4:].tolist()


def test_chat_goes_on_and_a_loaded_model_is_the_same(tmp_path: Path) -> None:
    model, row, images = tiny_internvl(), ROWS[1], inputs(TILES[1], SEEDS[1])
    with STAGED(model):
        out = generate(model, [row], images)
        turn = [*out.sequences[0].tolist(), 11, 12, 13]
        kept = generate(model, [turn], {}, past_key_values=out.past_key_values)
    fresh, _ = run(model, STAGED, [turn], images)
    torch.testing.assert_close(logits(kept), logits(fresh), **CLOSE)
    model.save_pretrained(tmp_path)
    loaded = InternVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(run(loaded, STAGED)[0]), logits(run(model, STAGED)[0]))


def test_keys_name_pictures_not_tiles() -> None:
    model, method = tiny_internvl(), Random(12, seed=1)
    outs = []
    for last in "fg":
        with method(model, keys=["a", "b", "c", "d", "e", last]) as trace:
            generate(model, ROWS, ALL)
        outs.append([sample.to_dict()["stages"] for sample in trace.samples])
    assert outs[0][:3] == outs[1][:3] and outs[0][3][0] == outs[1][3][0]
    assert outs[0][3][1] != outs[1][3][1]
    assert trace.samples[0].key == "a" and trace.samples[1].key == "b"
    with (
        pytest.raises(ValueError, match="5 sample keys for 6 pictures"),
        method(model, keys=[*"abcde"]),
    ):
        generate(model, ROWS, ALL)


def test_known_tiles_are_not_encoded_again() -> None:
    model, cache = tiny_internvl(), TowerCache(1 << 24)
    outs = []
    for _ in range(2):
        with STAGED(model, tower_cache=cache) as trace:
            trace.set_pictures(["a", "b", "c", "d", "e", "f"])
            outs.append(logits(generate(model, ROWS, ALL)))
    assert torch.equal(outs[0], outs[1]) and cache.hits == sum(map(sum, TILES))
    torch.testing.assert_close(outs[0], logits(run(model, STAGED)[0]), **CLOSE)


def test_features_from_outside() -> None:
    """LLM stages take what was encoded before; stages before the LLM refuse it."""
    model = tiny_internvl()
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers takes no features that were encoded before")
    inside = VisionDrop(llm={2: (14, 4), 5: (7, 2)})

    def encoded() -> dict[str, Any]:
        with torch.no_grad():
            return {"image": model.model.get_image_features(**ALL, return_dict=True)}

    with inside(model) as trace:
        expected = generate(model, ROWS, ALL)
    made = encoded()
    with inside(model) as again:
        out = generate(model, ROWS, {"mm_encoder_outputs": made})
    torch.testing.assert_close(logits(out), logits(expected), **CLOSE)
    layers = [sample.tokens_by_picture for sample in trace.samples]
    assert layers == [sample.tokens_by_picture for sample in again.samples]
    made = encoded()
    with STAGED(model), pytest.raises(ValueError, match="encoded elsewhere.*give pixel_values"):
        generate(model, ROWS, {"mm_encoder_outputs": made})
