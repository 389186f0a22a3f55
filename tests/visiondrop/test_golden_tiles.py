"""Any-resolution pictures on ready tiles: selection, merges, packing, and the decoder by hand.

The mechanism does not run such pictures yet. The tiles go through the tiny tower, the method
chooses and packs, and the test itself projects, feeds the decoder and decodes greedily.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from llava.anyres import get_anyres_image_grid_shape
from tests.visiondrop import golden_runs
from tests.visiondrop.models import tiny
from visiondrop.functional.anyres_layout import NEWLINE, TileGrid, assemble, row_order, tile_order
from visiondrop.methods.fastervlm import FasterVLM
from visiondrop.methods.globalcom2 import GlobalCom2
from visiondrop.methods.visionzip import VisionZip
from visiondrop.scoring import cls_logits
from visiondrop.views import EncoderView

IMAGES = 8


def cases(stem: str) -> list[Any]:
    """Every picture of every setting of a file."""
    out = []
    for setting in golden_runs.data(stem)["settings"]:
        for p in setting["pictures"]:
            width, height = p["original_size_width_height"]
            name = f"golden-{stem}-{setting['name']}-{p['picture']}-{width}x{height}"
            out.append(pytest.param(setting["hyperparameters"], p, id=name))
    return out


def side() -> int:
    """Patches along a tile's side."""
    return golden_runs.geometry().grid[0]


def llava_grid(stem: str, picture: dict[str, Any]) -> list[int]:
    """[columns, rows] by LLaVA's own rule."""
    pinpoints = golden_runs.data(stem)["input"]["image_grid_pinpoints"]
    size = golden_runs.model().config.vision_config.image_size
    original = picture["original_size_width_height"]
    return list(get_anyres_image_grid_shape(original, pinpoints, size))


def grid_of(picture: dict[str, Any]) -> TileGrid:
    columns, rows = picture["grid_width_height"]
    return TileGrid(rows, columns, tuple(picture["original_size_width_height"]), side())


def tile_images(picture: dict[str, Any]) -> list[int]:
    """Which image each tile is, the thumbnail first."""
    columns, rows = picture["grid_width_height"]
    first = picture["picture"]
    return [(first + t) % IMAGES for t in range(1 + rows * columns)]


@functools.cache
def tower(dtype: torch.dtype = torch.float32) -> EncoderView:
    """Every image once."""
    return golden_runs.encoder_view(range(len(golden_runs.images())), dtype)


def tiles_of(picture: dict[str, Any], dtype: torch.dtype = torch.float32) -> EncoderView:
    """The tiles of a picture as a group of T."""
    numbers, whole = tile_images(picture), tower(dtype)
    assert numbers == picture.get("tile_images", numbers)
    query, key = whole.following
    return EncoderView(
        whole.features[numbers],
        whole.query[numbers],
        whole.key[numbers],
        whole.scale,
        whole.has_cls,
        whole.grid,
        whole.make_keys,
        lambda: (query[numbers], key[numbers]),
    )


def newline(stem: str) -> Tensor:
    return torch.tensor(golden_runs.data(stem)["input"]["image_newline"])


def project(features: Tensor) -> Tensor:
    with torch.no_grad():
        return golden_runs.model().model.multi_modal_projector(features)


@torch.no_grad()
def decode(visual: Tensor, prompt: Sequence[int]) -> tuple[Tensor, list[int], list[int]]:
    """First-step logits [V], the 8 greedy ids and each layer's cache length, by hand."""
    llava = golden_runs.model()
    at = list(prompt).index(-200)
    words = llava.get_input_embeddings()(torch.tensor([w for w in prompt if w >= 0]))
    step = torch.cat([words[:at], visual, words[at:]])[None]
    cache = DynamicCache(config=llava.config.text_config)
    first, ids = None, []
    for _ in range(golden_runs.STEPS):
        states = llava.model.language_model(
            inputs_embeds=step, past_key_values=cache, use_cache=True
        )
        logits = llava.lm_head(states[0][0, -1])
        first = logits if first is None else first
        ids.append(int(logits.argmax()))
        step = llava.get_input_embeddings()(torch.tensor([ids[-1:]]))
    assert first is not None
    return first, ids, [layer.get_seq_length() for layer in cache.layers]


def check_decode(
    stem: str, picture: dict[str, Any], visual: Tensor, atol: float = golden_runs.LOGITS
) -> None:
    prompt = golden_runs.data(stem)["input"]["input_ids"]
    length = len(prompt) - 1 + visual.shape[0]
    lengths = golden_runs.by_layer(picture["prefill_sequence_length_by_layer"])
    assert lengths == [length] * golden_runs.geometry().num_layers
    logits, ids, held = decode(visual, prompt)
    torch.testing.assert_close(
        logits, torch.tensor(picture["first_step_logits"]), atol=atol, rtol=0
    )
    assert ids == picture["generated_ids"][-golden_runs.STEPS :]
    if "kv_cache_length_by_layer_at_end" in picture:
        assert held == golden_runs.by_layer(picture["kv_cache_length_by_layer_at_end"])


# ------------------------------------------------------------------ the unpruned packing


@pytest.mark.parametrize("_hyper, picture", cases("BASELINE_next"))
def test_unpruned_packing(_hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    """LLaVA's own packing: nothing chosen, thumbnail first, rows unpadded, newlines."""
    grid, view = grid_of(picture), tiles_of(picture)
    assert llava_grid("BASELINE_next", picture) == picture["grid_width_height"]
    assert list(grid.tokens) == picture["padded_token_grid_rows_columns"]
    assert list(grid.window) == picture["kept_row_range_column_range (end exclusive)"]
    patches = torch.arange(side() ** 2)
    order = torch.cat(
        [
            tile_order(0, patches),
            row_order([patches] * grid.crops, grid, unpad=True, newlines="window"),
        ]
    )
    assert len(order) == picture["n_visual_tokens_to_llm"]
    assert int((order[:, 0] == NEWLINE).sum()) == picture["n_newline"]
    visual = assemble(order, list(project(view.patches)), newline("BASELINE_next"))
    sums = visual.sum(1)
    ends = torch.cat([sums[:10], sums[-10:]])
    torch.testing.assert_close(
        ends,
        torch.tensor(picture["visual_embeddings_row_sums_first_and_last_10"]),
        atol=1e-3,
        rtol=1e-4,
    )
    assert float(visual.abs().sum()) == pytest.approx(
        picture["visual_embeddings_abs_sum"], rel=1e-5
    )


# ------------------------------------------------------------------ VisionZip


@pytest.mark.parametrize("hyper, picture", cases("VisionZip_next"))
def test_visionzip(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    method = VisionZip(hyper["dominant"], hyper["contextual"])
    out = method.encoder_stage(tiles_of(picture))
    for tile, expected in enumerate(picture["tiles"]):
        source, merged = out.source[tile] - 1, out.contextual[tile]
        assert source[~merged].tolist() == [-1, *expected["dominant_patch_indices"]]
        assert source[merged].tolist() == expected["contextual_target_patch_indices"]
        went = out.target[tile, 1:][torch.tensor(expected["merged_patch_indices"])]
        assert (went - method.dominant).tolist() == expected["merged_assignment_to_contextual_slot"]
    order = method.pack(out, grid_of(picture))
    labels = []
    for tile, slot in order.tolist():
        patch = int(out.source[tile, slot]) - 1
        merged = slot >= method.dominant
        name = f"ctx{slot - method.dominant}" if merged else "cls" if patch < 0 else patch
        labels.append([tile, name])
    assert labels == picture["order_sent_to_llm"]
    visual = assemble(order, list(project(out.features)))
    assert float(visual.abs().sum()) == pytest.approx(
        picture["visual_embeddings_abs_sum"], rel=1e-5
    )
    check_decode("VisionZip_next", picture, visual)


# ------------------------------------------------------------------ FasterVLM


@pytest.mark.parametrize("hyper, picture", cases("FasterVLM_next"))
def test_fastervlm(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    """Both merge types. The fork has an older rule for the grid; grids come from the file."""
    method, grid, view = FasterVLM(hyper["visual_token_num"]), grid_of(picture), tiles_of(picture)
    same = llava_grid("FasterVLM_next", picture) == picture["grid_width_height"]
    assert same == picture.get("grid_same_as_official_llava", True)
    out = method.encoder_stage(view)
    kept = (out.source - 1).tolist()
    assert kept == [tile["kept_patch_indices"] for tile in picture["tiles"]]
    unpad = hyper["mm_patch_merge_type in effect"] == "spatial_unpad"
    order = method.pack(out, grid, unpad=unpad)
    labels = [[t, s if t == NEWLINE else kept[t][s]] for t, s in order.tolist()]
    assert labels == picture["order_sent_to_llm"]
    lost = sum(map(len, kept)) - sum(tile != NEWLINE for tile, _ in labels)
    assert lost == picture["n_kept_in_tiles_but_in_padding (lost)"]
    visual = assemble(order, list(project(out.features)), newline("FasterVLM_next"))
    check_decode("FasterVLM_next", picture, visual)


@pytest.mark.parametrize(
    "stem", [pytest.param("FasterVLM_next", id="golden-FasterVLM_next-scores")]
)
def test_fastervlm_tile_scores(stem: str) -> None:
    scores = golden_runs.data(stem)["tile_scores_by_image"]
    attention = tower().cls_attention
    expected = torch.tensor([scores[str(image)] for image in range(len(attention))])
    torch.testing.assert_close(attention, expected, atol=1e-7, rtol=1e-4)


# ------------------------------------------------------------------ GlobalCom2


def globalcom2(hyper: dict[str, Any]) -> GlobalCom2:
    return GlobalCom2(hyper["retention_ratio"], hyper["temperature"])


def crop_patches(picture: dict[str, Any]) -> list[list[int]]:
    """The file's kept cells of each crop's unpadded part as patches of the crop."""
    grid, out = grid_of(picture), []
    for crop, kept in enumerate(picture["crop_kept_indices_within_valid_area"]):
        r0, r1, c0, c1 = grid.valid(crop)
        cells = [r * side() + c for r in range(r0, r1) for c in range(c0, c1)]
        assert len(cells) == picture["crop_n_valid"][crop]
        out.append([cells[i] for i in kept])
    return out


@pytest.mark.parametrize("hyper, picture", cases("GlobalCom2"))
def test_globalcom2_selection(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    method, grid, view = globalcom2(hyper), grid_of(picture), tiles_of(picture)
    scores = cls_logits(*view.following, view.scale)
    torch.testing.assert_close(
        scores[0], torch.tensor(picture["thumbnail_scores"]), atol=2e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        method.scales(scores[0], grid), torch.tensor(picture["crop_scales"]), atol=1e-6, rtol=0
    )
    kept = method.select(scores, grid)
    assert kept[0].tolist() == picture["thumbnail_order_sent_to_llm"]
    assert kept[0].sort().values.tolist() == picture["thumbnail_kept_patch_indices"]
    assert [k.tolist() for k in kept[1:]] == crop_patches(picture)


@pytest.mark.parametrize("hyper, picture", cases("GlobalCom2"))
def test_globalcom2_packing(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    """2e-3: near half a float16 step, float32 noise decides where a token is rounded to."""
    method, grid, view = globalcom2(hyper), grid_of(picture), tiles_of(picture)
    kept = method.select(cls_logits(*view.following, view.scale), grid)
    visual = method.sequence(project(view.patches), kept, grid, newline("GlobalCom2"))
    check_decode("GlobalCom2", picture, visual, atol=2e-3)


@pytest.mark.parametrize("hyper, picture", cases("GlobalCom2")[:1])
def test_globalcom2_rounds_crops_alone(hyper: dict[str, Any], picture: dict[str, Any]) -> None:
    method, grid, view = globalcom2(hyper), grid_of(picture), tiles_of(picture)
    kept = method.select(cls_logits(*view.following, view.scale), grid)
    given = project(view.patches), kept, grid, newline("GlobalCom2")
    plain = replace(method, rounding="none").sequence(*given)
    first = len(kept[0])
    expected = torch.cat([plain[:first], plain[first:].half().float()])
    assert torch.equal(method.sequence(*given), expected) and not torch.equal(plain, expected)


@pytest.mark.parametrize(
    "stem", [pytest.param(s, id=f"golden-{s}-float64") for s in ("VisionZip_next", "GlobalCom2")]
)
def test_selection_in_float64(stem: str) -> None:
    """No choice hangs on float32's rounding."""
    for setting in golden_runs.data(stem)["settings"]:
        hyper = setting["hyperparameters"]
        for picture in setting["pictures"]:
            view = tiles_of(picture, torch.float64)
            if stem == "GlobalCom2":
                scores = cls_logits(*view.following, view.scale)
                kept = globalcom2(hyper).select(scores, grid_of(picture))
                assert scores.dtype == torch.float64
                assert kept[0].tolist() == picture["thumbnail_order_sent_to_llm"]
                assert [k.tolist() for k in kept[1:]] == crop_patches(picture)
                continue
            out = VisionZip(hyper["dominant"], hyper["contextual"]).encoder_stage(view)
            for tile, expected in enumerate(picture["tiles"]):
                kept_patches = (out.source[tile, 1 : hyper["dominant"]] - 1).tolist()
                assert kept_patches == expected["dominant_patch_indices"]
                rest = torch.tensor(expected["merged_patch_indices"])
                went = (out.target[tile, 1:][rest] - hyper["dominant"]).tolist()
                assert went == expected["merged_assignment_to_contextual_slot"]


def test_globalcom2_needs_crops() -> None:
    with (
        pytest.raises(ValueError, match=r"globalcom2.*crops.*fastervlm.*visionzip"),
        GlobalCom2()(tiny()),
    ):
        raise AssertionError("not refused")
