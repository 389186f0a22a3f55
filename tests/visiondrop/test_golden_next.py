"""Any-resolution pictures end to end: `with method(model)` and `generate` on golden weights as a
LLaVA-NeXT checkpoint, against each repository's released code.

The vision tower is run once for each of the eight images that all tiles are; a test without that
short cut stands beside.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaNextConfig

from llava.model import LlavaNextForConditionalGeneration
from tests.visiondrop import golden_runs
from tests.visiondrop.models import tiny
from visiondrop.adapters.base import TowerOutput
from visiondrop.adapters.llava_next import LlavaNextAdapter
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.methods.controls import Full
from visiondrop.methods.fastervlm import FasterVLM
from visiondrop.methods.globalcom2 import GlobalCom2
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.visionzip import VisionZip
from visiondrop.reducer import Reducer
from visiondrop.scoring import cls_logits

IMAGES = 8


@functools.cache
def model(stem: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    """The golden weights as a LLaVA-NeXT with the file's pinpoints and newline."""
    said, plain = golden_runs.data(stem)["input"], golden_runs.model(dtype, attention)
    shared = {
        key: getattr(plain.config, key)
        for key in ("text_config", "vision_config", "image_token_id", "vision_feature_layer")
    }
    pinpoints = [[height, width] for width, height in said["image_grid_pinpoints"]]
    config = LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints)
    config._attn_implementation = attention
    llava = LlavaNextForConditionalGeneration(config).to(dtype)
    state = {**plain.state_dict(), "model.image_newline": torch.tensor(said["image_newline"])}
    llava.load_state_dict(state)
    llava.set_attn_implementation(attention)
    llava.generation_config = plain.generation_config
    return llava.eval()


def cases(stem: str) -> list[Any]:
    """Every picture of every setting of a file."""
    out = []
    for setting in golden_runs.data(stem)["settings"]:
        for p in setting["pictures"]:
            width, height = p["original_size_width_height"]
            name = f"golden-{stem}-{setting['name']}-{p['picture']}-{width}x{height}"
            out.append(pytest.param(setting["hyperparameters"], p, id=name))
    return out


def grid_of(picture: dict[str, Any]) -> TileGrid:
    columns, rows = picture["grid_width_height"]
    side = golden_runs.geometry().grid[0]
    return TileGrid(rows, columns, tuple(picture["original_size_width_height"]), side)


def tile_images(picture: dict[str, Any]) -> list[int]:
    """Which image each tile is, the thumbnail first."""
    numbers = [(picture["picture"] + t) % IMAGES for t in range(grid_of(picture).tiles)]
    assert numbers == picture.get("tile_images", numbers)
    return numbers


@functools.cache
def tower(stem: str, dtype: torch.dtype) -> TowerOutput:
    """Every image once."""
    with torch.no_grad():
        return LlavaNextAdapter().encode(
            model(stem, dtype), golden_runs.pixels(range(len(golden_runs.images())), dtype)
        )


@contextlib.contextmanager
def known_tiles(stem: str, dtype: torch.dtype, numbers: list[int]) -> Iterator[None]:
    """The tower's output is looked up, for tiles that are these images."""
    whole = tower(stem, dtype)
    index = torch.tensor(numbers)

    def encode(_self: Any, _model: Any, pixel_values: Tensor, **_: Any) -> TowerOutput:
        assert torch.equal(pixel_values, golden_runs.pixels(numbers, dtype))
        return TowerOutput(whole.features[index], whole.query[index], whole.key[index], whole.scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlavaNextAdapter, "encode", encode)
        yield


@contextlib.contextmanager
def fork_grid(llava: Any, picture: dict[str, Any]) -> Iterator[None]:
    """Where a fork has an older rule for the grid: its grid is the only one that can be chosen."""
    columns, rows = picture["grid_width_height"]
    size, before = llava.config.vision_config.image_size, llava.config.image_grid_pinpoints
    if not picture.get("grid_same_as_official_llava", True):
        llava.config.image_grid_pinpoints = [[rows * size, columns * size]]
    try:
        yield
    finally:
        llava.config.image_grid_pinpoints = before


def run(
    stem: str,
    method: Reducer,
    picture: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    look_up: bool = True,
    atol: float = golden_runs.LOGITS,
    steps: int = golden_runs.STEPS,
) -> Any:
    """Generate, check logits, ids, lengths, caches; returns the sample's trace."""
    llava, numbers = model(stem, dtype, attention), tile_images(picture)
    stack = golden_runs.pixels(numbers, dtype)
    known = known_tiles(stem, dtype, numbers) if look_up else contextlib.nullcontext()
    with fork_grid(llava, picture), known, method(llava) as trace:
        out = llava.generate(
            torch.tensor([golden_runs.data(stem)["input"]["input_ids"]]),
            images=[stack],
            image_sizes=[picture["original_size_width_height"]],
            do_sample=False,
            max_new_tokens=steps,
            return_dict_in_generate=True,
            output_logits=True,
        )
    sample = trace.samples[0]
    assert sample.lengths == golden_runs.by_layer(picture["prefill_sequence_length_by_layer"])
    expected = torch.tensor(picture["first_step_logits"])
    torch.testing.assert_close(out.logits[0][0].float(), expected, atol=atol, rtol=0)
    assert out.sequences[0].tolist() == picture["generated_ids"][-golden_runs.STEPS :][:steps]
    if "kv_cache_length_by_layer_at_end" in picture and steps == golden_runs.STEPS:
        held = [layer.get_seq_length() for layer in out.past_key_values.layers]
        assert held == golden_runs.by_layer(picture["kv_cache_length_by_layer_at_end"])
    return sample


def places(sample: Any, stage: int = 0) -> list[list[Any]]:
    """What a stage sends on, in order: [tile, patch], [tile, "cls"], [tile, "ctxN"], [-1, row]."""
    record, grid = sample.stages[stage], sample.grids[0]
    out: list[list[Any]] = []
    merged = dict.fromkeys(range(grid.tiles), 0)
    identity = record.identity[record.source].tolist()
    for token, contextual in zip(identity, record.contextual.tolist(), strict=True):
        kind, tile, row, column = grid.locate(token)
        if contextual:
            out.append([tile, f"ctx{merged[tile]}"])
            merged[tile] += 1
        elif kind == "cls":
            out.append([tile, "cls"])
        else:
            out.append([-1, row] if kind == "newline" else [tile, row * grid.side + column])
    return out


# ------------------------------------------------------------------ unpruned


@pytest.mark.parametrize("_hyper, picture", cases("BASELINE_next"))
def test_unpruned(
    _hyper: dict[str, Any], picture: dict[str, Any], pytestconfig: pytest.Config
) -> None:
    """All eight ids of the smallest pictures, of the others with --all-cells."""
    every = pytestconfig.getoption("--all-cells") or len(tile_images(picture)) < 4
    steps = golden_runs.STEPS if every else 2
    sample = run("BASELINE_next", Full(), picture, steps=steps)
    assert set(sample.tokens_per_layer) == {picture["n_visual_tokens_to_llm"]}
    assert set(sample.newlines_per_layer) == {picture["n_newline"]}
    assert sample.grids == [grid_of(picture)]
    window = picture["kept_row_range_column_range (end exclusive)"]
    assert list(sample.grids[0].window) == window


@pytest.mark.parametrize("_hyper, picture", cases("GlobalCom2")[:4])
def test_unpruned_beside_globalcom2(_hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    length = picture["unpruned_sequence_length"]
    whole = {
        **picture,
        "first_step_logits": picture["unpruned_first_step_logits"],
        "generated_ids": picture["unpruned_generated_ids"],
        "prefill_sequence_length_by_layer": [[0, 31, length]],
    }
    assert run("GlobalCom2", Full(), whole, steps=2).grids[0].unpruned == length - 14  # text


# ------------------------------------------------------------------ VisionZip


@pytest.mark.parametrize("hyper, picture", cases("VisionZip_next"))
def test_visionzip(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    check_visionzip(hyper, picture)


def check_visionzip(hyper: dict[str, Any], picture: dict[str, Any], **kwargs: Any) -> None:
    """The tiles' choices and merges, and the order of all."""
    method = VisionZip(hyper["dominant"], hyper["contextual"])
    sample = run("VisionZip_next", method.on_tiles(**VisionZip.released_tiles), picture, **kwargs)
    assert places(sample) == picture["order_sent_to_llm"]
    patches = golden_runs.geometry().num_patches
    merged = sample.stages[0].merged
    for number, tile in enumerate(picture["tiles"]):
        own = merged[number * method.contextual :][: method.contextual]
        references = [entry["reference"] - number * patches for entry in own]
        assert references == tile["contextual_target_patch_indices"]
        went = {m - number * patches: i for i, entry in enumerate(own) for m in entry["members"]}
        expected = tile["merged_assignment_to_contextual_slot"]
        assert went == dict(zip(tile["merged_patch_indices"], expected, strict=True))


@pytest.mark.parametrize("hyper, picture", cases("VisionZip_next")[2:3])
@pytest.mark.parametrize("dtype, attention", [(torch.float64, "sdpa"), (torch.float32, "eager")])
def test_visionzip_without_short_cut(
    hyper: dict[str, Any], picture: dict[str, Any], dtype: torch.dtype, attention: str
) -> None:
    check_visionzip(hyper, picture, dtype=dtype, attention=attention, look_up=False)


# ------------------------------------------------------------------ FasterVLM


@pytest.mark.parametrize("hyper, picture", cases("FasterVLM_next"))
def test_fastervlm(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    """Both merge types."""
    tiles = dict(FasterVLM.released_tiles)
    if hyper["mm_patch_merge_type in effect"] == "spatial_unpad":
        tiles |= {"newlines": "pool", "padding": "lost"}
    sample = run("FasterVLM_next", FasterVLM(hyper["visual_token_num"]).on_tiles(**tiles), picture)
    assert places(sample) == picture["order_sent_to_llm"]
    assert sample.newlines_per_layer[0] == picture["n_newline"]
    slots = grid_of(picture).slots(sample.stages[0].identity[sample.stages[0].source])
    if tiles["padding"] == "lost":
        assert slots.tolist() == picture["kept_indices_in_unpruned_packed_sequence"]


def test_fastervlm_scores_of_every_image() -> None:
    """What the tiles are judged by, all 576 patches of each image that the figures come with."""
    told = golden_runs.data("FasterVLM_next")["tile_scores_by_image"]
    known = range(len(golden_runs.images()))
    scores = golden_runs.encoder_view(known).cls_attention
    expected = torch.tensor([told[str(image)] for image in known])
    torch.testing.assert_close(scores, expected, atol=1e-7, rtol=2e-4)


# ------------------------------------------------------------------ PyramidDrop


@pytest.mark.parametrize("hyper, picture", cases("PyramidDrop_next"))
def test_pyramiddrop(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    """One pool of thumbnail, crops and newlines. In float32, but in float64 where the file says
    that a score ties in float32.
    """
    tie = picture.get("not_for_parity_in_float32", False)
    check_pyramiddrop(hyper, picture, torch.float64 if tie else torch.float32)


@pytest.mark.parametrize("hyper, picture", cases("PyramidDrop_next")[3:4])
def test_pyramiddrop_in_float64(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    check_pyramiddrop(hyper, picture, torch.float64)


def check_pyramiddrop(hyper: dict[str, Any], picture: dict[str, Any], dtype: torch.dtype) -> None:
    method = PyramidDrop(hyper["layer_list"], hyper["image_token_ratio_list"])
    sample = run("PyramidDrop_next", method, picture, dtype=dtype)
    grid, packed = sample.grids[0], picture["n_visual_tokens_to_llm"]
    for stage, expected in zip(sample.stages, picture["stages"], strict=True):
        assert stage.layer == expected["scored_with_weights_of_layer_index"]
        assert stage.tokens_in == expected["n_visual_in"]
        assert stage.source.tolist() == expected["kept_indices_in_current_visual_sequence"]
        slots = grid.slots(stage.identity[stage.source]).tolist()
        assert slots == expected["kept_packed_indices"]
    assert sample.tokens_per_layer == method.ledger(len(sample.lengths), packed)


# ------------------------------------------------------------------ GlobalCom2


def crop_patches(picture: dict[str, Any]) -> list[list[int]]:
    """The file's kept cells of each crop's unpadded part as patches of the crop."""
    grid, out = grid_of(picture), []
    for crop, kept in enumerate(picture["crop_kept_indices_within_valid_area"]):
        r0, r1, c0, c1 = grid.valid(crop)
        cells = [r * grid.side + c for r in range(r0, r1) for c in range(c0, c1)]
        assert len(cells) == picture["crop_n_valid"][crop]
        out.append([cells[i] for i in kept])
    return out


@pytest.mark.parametrize("hyper, picture", cases("GlobalCom2"))
def test_globalcom2(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    """2e-3: near half a float16 step, float32 noise decides where a token is rounded to."""
    method = GlobalCom2(hyper["retention_ratio"], hyper["temperature"])
    sample = run("GlobalCom2", method, picture, atol=2e-3)
    sent = places(sample)
    count = len(picture["thumbnail_order_sent_to_llm"])
    assert sent[:count] == [[0, patch] for patch in picture["thumbnail_order_sent_to_llm"]]
    for crop, patches in enumerate(crop_patches(picture), 1):
        assert sorted(patch for tile, patch in sent[count:] if tile == crop) == patches
    rows = grid_of(picture).tokens[0]
    assert [row for tile, row in sent if tile < 0] == list(range(rows))


@pytest.mark.parametrize("hyper, picture", cases("GlobalCom2"))
def test_globalcom2_scores(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    method, grid = GlobalCom2(hyper["retention_ratio"], hyper["temperature"]), grid_of(picture)
    view = golden_runs.encoder_view(tile_images(picture)[:1])
    scores = cls_logits(*view.following, view.scale)
    expected = torch.tensor(picture["thumbnail_scores"])
    torch.testing.assert_close(scores[0], expected, atol=2e-5, rtol=1e-4)
    scales = torch.tensor(picture["crop_scales"])
    torch.testing.assert_close(method.scales(scores[0], grid), scales, atol=1e-6, rtol=0)


def test_globalcom2_rounds_crops_alone() -> None:
    tokens, newline = [torch.randn(3, 4), torch.randn(2, 4)], torch.randn(4)
    (first, crop), line = GlobalCom2().finish(tokens, newline)
    assert torch.equal(first, tokens[0])
    for got, given in ((crop, tokens[1]), (line, newline)):
        assert torch.equal(got, given.half().float()) and not torch.equal(got, given)
    assert GlobalCom2(rounding="none").finish(tokens, newline) == (tokens, newline)


def test_globalcom2_needs_crops() -> None:
    with (
        pytest.raises(ValueError, match=r"globalcom2.*crops.*fastervlm.*visionzip"),
        GlobalCom2()(tiny()),
    ):
        raise AssertionError("not refused")
