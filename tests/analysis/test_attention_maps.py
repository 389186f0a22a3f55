"""Attention over the picture is that of stock attention maps; panels lie where tokens do."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.asked import token_boxes
from analysis.attention_maps import choose, compute, even_rows, main, reader
from analysis.panels import panels
from analysis.probe import Probe
from analysis.setting import open_setting
from llava.eval.errors import EvalError
from tests.visiondrop import models, next_models
from tests.visiondrop.models import PATCHES
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.trace import SampleTrace

BEFORE, AFTER, LOOKED = 5, 7, (0, 3, 7)


def plain(attention):
    model = models.tiny("clip", attention=attention, kv_heads=2)
    return model, models.prompt(BEFORE, AFTER, seed=1), {"pixel_values": models.pixels(1)}


def tiled(attention):
    model = next_models.tiny_next(kv_heads=2, attention=attention)
    sizes = [next_models.SIZES[0]]
    row = next_models.prompt(BEFORE, AFTER, 3, sizes)
    return model, row, next_models.inputs(sizes, [4])


def read(make, **how):
    model, row, pictures = make("sdpa")
    probe = Probe(LOOKED, reader(**how))
    with probe(model, keys=["one"]), torch.inference_mode():
        model(**models.batch([row]), **pictures, logits_to_keep=1)
    return probe.take()


@pytest.mark.parametrize("make", [plain, tiled])
def test_rows_are_those_of_stock_attention_maps(make):
    model, row, pictures = make("eager")
    with torch.inference_mode():
        out = model(**models.batch([row]), **pictures, output_attentions=True, use_cache=False)
    start = BEFORE + 1
    found = read(make, heads=[0, 3])
    end = start + len(found[0].identity)
    assert end == len(row) - AFTER
    mean = read(make, text_from="all", image_from=2)
    word = read(make, text_from=-2)
    for i, layer in enumerate(LOOKED):
        maps = out.attentions[layer][0].double().numpy()  # [H, N, N]
        picture = maps[[0, 3], :, start:end]
        expected = {
            "image_to_image": picture[:, start:end].mean(1),
            "text_to_image": picture[:, -1],
        }
        for kind, value in expected.items():
            assert np.allclose(found[i].values[kind], value, rtol=1e-3, atol=1e-6), (kind, layer)
        one = maps[:, start + 2, start:end].mean(0)
        assert np.allclose(mean[i].values["image_to_image"][0], one, rtol=1e-3, atol=1e-6)
        words = maps[:, end:, start:end].mean((0, 1))
        assert np.allclose(mean[i].values["text_to_image"][0], words, rtol=1e-3, atol=1e-6)
        second = maps[:, -2, start:end].mean(0)
        assert np.allclose(word[i].values["text_to_image"][0], second, rtol=1e-3, atol=1e-6)


def test_the_correction_takes_out_what_evenly_spread_attention_gives():
    places = torch.tensor([2, 4, 5])
    expected = np.zeros(6)
    for place in places.tolist():
        expected[: place + 1] += 1 / (place + 1) / 3
    assert np.allclose(even_rows(places, torch.arange(6)), expected)
    as_it_is, corrected = (read(plain, corrected=c)[0].values for c in (False, True))
    columns = torch.arange(BEFORE + 1, BEFORE + 1 + PATCHES)
    even = even_rows(columns, columns).numpy()
    found = corrected["image_to_image"] * even
    assert np.allclose(found, as_it_is["image_to_image"])
    assert np.allclose(corrected["text_to_image"], as_it_is["text_to_image"])


def test_rows_heads_and_layers_that_are_none_are_refused():
    for how, words in (
        ({"heads": [4]}, "heads .4.: this decoder has 0 to 3"),
        ({"image_from": 99}, "no visual token has id 99"),
        ({"text_from": 50}, f"word 50: {AFTER} tokens"),
    ):
        with pytest.raises(EvalError, match=words):
            read(plain, **how)


def trace(**more) -> SampleTrace:
    return SampleTrace(None, [4], [4], 1, **more)


def test_one_tile_is_one_panel():
    found = panels(np.arange(6), np.arange(6) * 1.0, trace(), (2, 3))
    assert [p.name for p in found] == ["picture"] and found[0].box == pytest.approx((0, 0, 1, 1))
    assert found[0].values.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "layout",
    [
        TileGrid(1, 2, (8, 3), 2),  # padding above and below
        TileGrid(2, 1, (30, 60), 3),
        TileGrid(2, 2, (40, 40), 2, "flat"),
        PackedGrid(side=2, rows=3, columns=4, tiles=3),
    ],
)
def test_cells_of_panels_lie_where_their_tokens_do(layout):
    sample = trace(grids=[layout])
    count = layout.first_newline
    ids = np.random.default_rng(0).permutation(count + 1)  # and one newline
    boxes = token_boxes(ids, sample, (2, 2))
    for panel in panels(ids, ids * 1.0, sample, (2, 2)):
        left, top, right, bottom = panel.box
        rows, columns = panel.values.shape
        for r in range(rows):
            for c in range(columns):
                own = boxes[ids == panel.values[r, c]][0]
                wide, high = (right - left) / columns, (bottom - top) / rows
                cell = [left + c * wide, top + r * high, left + (c + 1) * wide]
                assert np.allclose(own, [*cell, top + (r + 1) * high])


def test_a_region_asks_with_its_own_tokens():
    setting = open_setting(limit=3, dtype="float32", batch_size=3)
    cases = setting.cases[:3]
    found, table = compute(setting, cases, [5], image_from="region", heads=[1])
    for case, maps in zip(cases, found):
        singles = [
            compute(setting, [case], [5], image_from=token, heads=[1])[0][0]
            for token in case.region
        ]
        mean = np.mean([m.values["image_to_image"] for m in singles], 0)
        assert np.allclose(maps.values["image_to_image"], mean, rtol=1e-3, atol=1e-7)
        own = table[(table["question"] == case.sample.key) & (table["kind"] == "image_to_image")]
        assert np.allclose(own["attention"], mean[0, 0], rtol=1e-3, atol=1e-7)
    assert len(table) == 3 * 2 * 576 and table["x"].between(0, 1).all()


def test_what_is_not_there_cannot_be_chosen():
    setting = open_setting(limit=8, dtype="float32")
    assert choose(setting, None, 0, 2) == [setting.cases[0], setting.cases[6]]
    name = setting.cases[0].picture
    assert choose(setting, name, 1, 9) == [setting.cases[1]]
    with pytest.raises(EvalError, match="has 6, from 0"):
        choose(setting, name, 6, 1)
    with pytest.raises(EvalError, match="no question is about 'x'"):
        choose(setting, "x", 0, 1)
    with pytest.raises(EvalError, match="layers .16.: this decoder has 0 to 15"):
        compute(setting, setting.cases[:1], [16])


def test_the_command_draws_pictures_of_tiles(tmp_path):
    status = main(
        ["--model-path", "checkpoints/pocket-llava-next", "--layers", "2", "--pictures", "1"]
        + ["--data", "playground/data/eval_anyres/textvqa", "--limit", "2", "--thumbnails"]
        + ["--out", str(tmp_path), "--stem", "figure1"]
    )
    assert status == 0
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["figure1.csv", "figure1.json", "figure1.pdf", "figure1.png"]
    table = pd.read_csv(tmp_path / "figure1.csv")
    rows = table[table["kind"] == "text_to_image"]
    assert 0 < rows["attention"].sum() < 1  # newlines, text and padding have the rest
    about = json.loads((tmp_path / "figure1.json").read_text())
    assert about["layers"] == [2] and math.isfinite(table["attention"].max())
