"""What a tiny LLaVA-OneVision does beside the identities: sizes, beams, names, the family's own
image processor, saving, refusals.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
)

from tests.visiondrop.models import IMAGE, LAYERS, batch, logits
from tests.visiondrop.onevision_models import (
    CLIP_TOKENS,
    FRAMES,
    LARGEST,
    MOST,
    PATCHES,
    PINPOINTS,
    SIDE,
    SIZES,
    TILE,
    VIDEO,
    Things,
    clip,
    generate,
    inputs,
    prompt,
    tiles_of,
    tiny_onevision,
    unpruned,
)
from tests.visiondrop.test_onevision import CLOSE, SEEDS, SETTINGS, STAGED, THINGS, run
from visiondrop import Random, VisionDrop
from visiondrop.adapters import geometry_of
from visiondrop.functional.packed_layout import PackedGrid, shrunk
from visiondrop.methods import METHODS
from visiondrop.methods.dtd import DTD
from visiondrop.methods.visiondrop_div import VisionDropDiv
from visiondrop.tower_cache import TowerCache

ROWS = [prompt(3 + i, 5, i, own) for i, own in enumerate(THINGS)]


def test_geometry_of_the_released_models() -> None:
    """A 2 x 5 grid of tiles is the largest that is not shrunk: 729 + 10 x 729 tokens."""
    geometry = geometry_of(
        LlavaOnevisionConfig(vision_config={"model_type": "siglip_vision_model", "image_size": 384,
                                            "patch_size": 14, "vision_use_head": False})
    )  # fmt: skip
    assert geometry.num_patches == 11 * 729 and geometry.grid == (27, 27)
    assert geometry_of(tiny_onevision()).num_patches == LARGEST
    with pytest.raises(ValueError, match="clip_vision_model.*without CLS"):
        geometry_of(LlavaOnevisionConfig(vision_config={"model_type": "clip_vision_model"}))


@pytest.mark.parametrize("size", [*SIZES, (60, 60), (60, 20), (33, 60), (57, 41)])
def test_ids_are_those_of_the_stock_packing(size: tuple[int, int]) -> None:
    """Newlines stand where stock packing puts them, and the grid has its rows and columns."""
    model = tiny_onevision().model
    packed, _ = model.pack_image_features(
        [torch.zeros(tiles_of(size), PATCHES, 1)],
        torch.tensor([size]),
        image_newline=torch.ones(1),
        vision_aspect_ratio=f"anyres_max_{MOST}",
    )
    lines = packed[0][:, 0].bool()
    _, trace = run(tiny_onevision(), STAGED, [prompt(2, 3, 0, [size])], inputs([[size]], [[0]]))
    grid = trace.samples[0].grids[0]
    assert isinstance(grid, PackedGrid)
    assert torch.equal(grid.ids >= grid.first_newline, lines)
    assert grid.rows == int(lines.sum()) and grid.unpruned == len(lines) == unpruned(size)
    assert sorted(grid.ids.tolist()) == list(range(grid.unpruned))
    places = [grid.locate(int(token)) for token in grid.ids]
    assert places[PATCHES] == ("token", 1, 0, 0)
    assert places[PATCHES + grid.columns] == ("newline", -1, 0, -1)
    assert places[-1] == ("newline", -1, grid.rows - 1, -1)
    row = grid.row_of(grid.ids)
    assert row[:PATCHES].eq(-1).all() and row[PATCHES:].diff().ge(0).all()
    whole = shrunk(3 * SIDE, 3 * SIDE, SIDE, MOST)
    assert whole == (7, 7)


def test_beams_samples_and_forward() -> None:
    model = tiny_onevision()
    things: list[Things] = [[SIZES[0]], ["v", SIZES[2]], ["v", "v"]]
    seeds = [[1], [2, 3], [4, 5]]
    rows, pixels = [prompt(3 + i, 5, i, own) for i, own in enumerate(things)], inputs(things, seeds)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 3}
    out, _ = run(model, STAGED, rows, pixels, **options)
    for i in range(3):
        own = inputs(things[i : i + 1], seeds[i : i + 1])
        one, _ = run(model, STAGED, rows[i : i + 1], own, **options)
        assert out.sequences[i, -4:].tolist() == one.sequences[0, -4:].tolist()
    keep, _ = run(model, VisionDrop(llm={2: (LARGEST, 0)}), rows, pixels, **options)
    assert torch.equal(keep.sequences, generate(model, rows, pixels, **options).sequences)
    alone = inputs(things[:1], seeds[:1])
    greedy, _ = run(model, STAGED, rows[:1], alone)
    with STAGED(model), torch.no_grad():
        first = model(**batch(rows[:1]), **alone, logits_to_keep=1).logits[:, 0]
    torch.testing.assert_close(first, logits(greedy)[0], **CLOSE)


def test_keys_and_names_of_pictures_and_clips() -> None:
    model, pixels, method = tiny_onevision(), inputs(THINGS, SEEDS), Random(9, seed=1)
    count = sum(thing != "v" for own in THINGS for thing in own)
    names, clips, outs = [f"p{i}" for i in range(count)], ["a", "b", "c"], []
    for videos in (clips, clips, ["x", "b", "c"]):
        with method(model) as trace:
            trace.set_keys({"image": names, "video": videos})
            generate(model, ROWS, pixels)
        outs.append([sample.to_dict()["stages"] for sample in trace.samples])
    changed = [a != b for a, b in zip(outs[0], outs[2], strict=True)]
    assert outs[0] == outs[1] and changed == [False, True, False, False, False, False]
    cache, made = TowerCache(1 << 24), []
    for _ in range(2):
        with STAGED(model, tower_cache=cache) as trace:
            trace.set_pictures({"image": names, "video": clips})
            made.append(logits(generate(model, ROWS, pixels)))
    assert torch.equal(made[0], made[1]) and cache.hits == cache.misses > 3 * FRAMES
    torch.testing.assert_close(made[0], logits(run(model, STAGED, ROWS, pixels)[0]), **CLOSE)


def test_save_and_load(tmp_path: Path) -> None:
    model, pixels = tiny_onevision(), inputs(THINGS, SEEDS)
    out, _ = run(model, STAGED, ROWS, pixels)
    with STAGED(model):
        model.save_pretrained(tmp_path)
    loaded = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path).eval()
    loaded.generation_config.pad_token_id = 0
    torch.testing.assert_close(logits(run(loaded, STAGED, ROWS, pixels)[0]), logits(out), **CLOSE)


def test_pictures_of_the_familys_own_processor() -> None:
    """PIL pictures of several sizes, alone and several in a prompt, prepared by the family's image
    processor, as a batch and one by one.
    """
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS
    )
    draw = np.random.default_rng(0)
    sizes = [[(60, 45)], [(40, 30), (14, 60)], [(33, 70)]]
    pictures = [
        [Image.fromarray(draw.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in own]
        for own in sizes
    ]
    model = tiny_onevision()
    rows = [prompt(3, 4, i, list(own)) for i, own in enumerate(sizes)]
    pixels = processor(pictures, return_tensors="pt")
    plain = generate(model, rows, dict(pixels))
    keep, _ = run(model, VisionDrop(llm={2: (LARGEST, 0)}), rows, dict(pixels))
    torch.testing.assert_close(logits(keep), logits(plain), **CLOSE)
    out, trace = run(model, STAGED, rows, dict(pixels))
    assert [len(sample.grids) for sample in trace.samples] == [1, 2, 1]
    for i, own in enumerate(pictures):
        one, _ = run(model, STAGED, rows[i : i + 1], dict(processor([own], return_tensors="pt")))
        torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], **CLOSE)


def test_framed_methods_see_a_clip_pooled() -> None:
    """dtd on the frames of a clip = a loop over the pooled tokens; the newline stays."""
    model = tiny_onevision()
    with torch.no_grad():
        hidden = model.model.vision_tower(clip(1), output_hidden_states=True).hidden_states[-1]
        frames = model.model.apply_pooling(model.model.multi_modal_projector(hidden))
    expected, n = list(range(9)), frames.shape[1]
    for f in range(1, FRAMES):
        for p in range(n):
            alike = torch.cosine_similarity(frames[f - 1, p], frames[f, p], dim=0)
            if not float(alike) > 0.8:
                expected.append(f * n + p)
    assert 9 < len(expected) < FRAMES * n
    row = prompt(3, 5, 1, ["v"])
    _, trace = run(model, DTD(threshold=0.8), [row], inputs([["v"]], [[1]]))
    assert trace.samples[0].stages[0].kept == [*expected, CLIP_TOKENS - 1]
    assert trace.samples[0].newlines_per_layer == [1] * LAYERS


def test_what_is_not_defined_is_refused() -> None:
    model = tiny_onevision()
    tested = {method.name for method in SETTINGS.values()} - {"composed"}
    names = ["dart", "divprune", "dtd", "fastv", "framewise", "full", "pyramiddrop", "random"]
    works = f"methods that work (here|without): {', '.join(names)}.*visionzip"
    for name in sorted(set(METHODS) - tested - {"cdpruner"}):
        with pytest.raises(ValueError, match=works):
            METHODS[name]()(model).__enter__()
    with pytest.raises(ValueError, match="radius=.*set radius=0"):
        VisionDropDiv(encoder=(15, 4))(model).__enter__()
    for option, value in (("padding", "shown"), ("share", "equal")):
        with pytest.raises(ValueError, match="packs a picture before anything"):
            STAGED.on_tiles(**{option: value})(model).__enter__()
    with pytest.raises(ValueError, match="newlines='pool'"):
        METHODS["fastv"](2, tokens=9).on_tiles(newlines="row")(model).__enter__()
    with pytest.raises(ValueError, match="prompt 0 has pictures of several tiles"), DTD()(model):
        generate(model, ROWS, inputs(THINGS, SEEDS))
    ids = torch.tensor([[1, *[IMAGE] * 5, VIDEO]])
    with pytest.raises(ValueError, match="logits_to_keep"), STAGED(model):
        model(input_ids=ids, pixel_values_videos=clip(1)[None])
