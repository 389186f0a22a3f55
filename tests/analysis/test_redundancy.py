"""Redundancy by layer on tiny models, against stock hidden states; sentences from tables."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import redundancy
from analysis.kept_sets import Span, spans
from analysis.probe import Probe
from analysis.setting import open_setting
from llava.eval.errors import EvalError
from tests.visiondrop import models
from tests.visiondrop.models import LAYERS, PATCHES
from visiondrop import VisionDrop


def by_numpy(hidden, kept):
    """Share of the dropped states' variance outside the kept ones' span, as layers read them."""
    states = hidden / np.sqrt((hidden**2).mean(1, keepdims=True))
    states = states - states.mean(0)
    dropped = np.setdiff1d(np.arange(len(states)), kept)
    weights, *_ = np.linalg.lstsq(states[kept].T, states[dropped].T, rcond=None)
    residual = ((states[dropped].T - states[kept].T @ weights) ** 2).sum()
    values = np.linalg.svd(states, compute_uv=False) ** 2
    return residual / (states[dropped] ** 2).sum(), values.sum() ** 2 / (values**2).sum()


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_every_layer_is_that_of_the_unpruned_model(tower):
    model = models.tiny(tower)
    rows = [models.prompt(3, 4, seed=1), models.prompt(6, 9, seed=2)]
    images = models.pixels(2)
    method = VisionDrop(
        encoder=(10, 4), llm={2: (8, 2), 5: (4, 1)}, query="cls" if tower == "clip" else "patches"
    )
    with method(model, keys=["a", "b"]) as trace, torch.inference_mode():
        model(**models.batch(rows), pixel_values=images, logits_to_keep=1)
    kept = {key: spans(trace.samples[i]) for i, key in enumerate("ab")}
    end = dict.fromkeys("ab", sys.maxsize)
    reader = redundancy.LayerReader({"visiondrop": kept}, end, ("visual", "last_text"), 7, k=3)
    with Probe(tuple(range(LAYERS)), reader)(model, keys=["a", "b"]), torch.inference_mode():
        model(**models.batch(rows), pixel_values=images, logits_to_keep=1)
    for i, key in enumerate("ab"):
        with torch.inference_mode():
            out = model(
                **models.batch(rows[i : i + 1]), pixel_values=images[i : i + 1],
                output_hidden_states=True, logits_to_keep=1,
            )  # fmt: skip
        start = rows[i].index(models.IMAGE)
        for layer in range(LAYERS):
            hidden = out.hidden_states[layer][0, start : start + PATCHES].double().numpy()
            ids = [p for s in kept[key] if s.first <= layer < s.first + s.layers for p in s.kept]
            ids = np.array([p for p in ids if p >= 0])
            error, participation = by_numpy(hidden, ids)
            (row,) = [
                r for r in reader.rows["sets"]
                if (r["key"], r["layer"], r["set"]) == (key, layer, "visiondrop")
            ]  # fmt: skip
            (rank,) = [
                r for r in reader.rows["rank"] if (r["key"], r["layer"]) == (key, layer)
            ]  # fmt: skip
            assert row["kept"] == len(ids)
            assert row["error"] == pytest.approx(error, rel=2e-3, abs=1e-6)
            assert rank["participation"] == pytest.approx(participation, rel=2e-3)
            assert rank["tokens"] == PATCHES
    assert {r["set"] for r in reader.rows["sets"]} == {"visiondrop", "top visual", "top last_text"}
    tops = [r["kept"] for r in reader.rows["sets"] if r["set"].startswith("top")]
    assert tops == [7] * len(tops)


def test_a_method_that_keeps_all_loses_nothing():
    states = torch.randn(PATCHES, 8, generator=torch.Generator().manual_seed(0))
    everything = {"full": {"a": [Span(0, LAYERS, tuple(range(PATCHES)), tuple(range(PATCHES)))]}}
    reader = redundancy.LayerReader(everything, {"a": sys.maxsize}, (), 4)
    reader._read("a", 0, states, torch.arange(PATCHES), {})
    (row,) = reader.rows["sets"]
    assert (row["error"], row["left"], row["cosine"], row["near"]) == (0, 1, 0, 1)
    assert row["near_chance"] == 1 and row["error_over"] == 0


def test_newlines_are_no_patches():
    seen = []

    class Reader(redundancy.LayerReader):
        def _read(self, key, layer, hidden, identity, scores):
            seen.append((hidden.shape, identity.tolist(), {k: len(v) for k, v in scores.items()}))

    class View:
        keys, layer = ["a"], 0
        hidden, identity = torch.zeros(1, 6, 2), torch.tensor([[0, 1, 50, 2, 3, 51]])

    Reader({}, {"a": 50}, (), 2)(View())
    assert seen == [((4, 2), [0, 1, 2, 3], {})]


def test_a_random_order_is_seeded_by_picture_and_layer():
    first = redundancy.drawn("a", 3, 50)
    assert sorted(first) == list(range(50))
    assert (first == redundancy.drawn("a", 3, 50)).all()
    assert (first != redundancy.drawn("b", 3, 50)).any()
    assert (first != redundancy.drawn("a", 4, 50)).any()


def test_the_conclusion_says_what_planted_tables_hold():
    rank = pd.DataFrame(
        {"layer": [0, 1, 2, 3], "tokens": 36.0, "dims_90": [9.0, 6.0, 3.0, 4.0],
         "needed": [12.0, 8.0, 5.0, 6.0], "needed_random": [15.0, 10.0, 6.0, 7.0]}
    )  # fmt: skip
    sets = pd.DataFrame(
        {"set": "visiondrop", "layer": [0, 1, 2, 3], "kept": [14.0, 14.0, 4.0, 4.0],
         "error": [0.1, 0.2, 0.5, 0.4], "error_over": [0.0, 0.1, 0.3, 0.1],
         "error_random": [0.1, 0.1, 0.2, 0.3], "cosine": [0.1, 0.3, 0.9, 0.2],
         "cosine_random": [0.1, 0.1, 0.25, 0.2]}
    )  # fmt: skip
    first, second, third, fourth = redundancy.conclusion({"rank": rank, "sets": sets})
    assert "9.0 dimensions before layer 0" in first and "3.0 before layer 2" in first
    assert "1.8 times" in second and "before layer 1 (14.0 for 8.0)" in second
    assert "0.7 times before layer 3" in second and "before layers 0-1." in second
    assert "layer 2: 50.0 % lost, 20.0 % at random" in third
    assert "0.90 from the nearest" in fourth and "layer 2, and of 0.25" in fourth
    assert redundancy.runs([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_the_command_on_bundled_pictures(tmp_path, capsys):
    args = ["--limit", "2", "--layers", "0,8", "--methods", "visiondrop,random", "--scores",
            "visual", "--out", str(tmp_path)]  # fmt: skip
    assert redundancy.main(args) == 0
    names = {f"redundancy_{part}.{kind}" for part in ("rank", "sets") for kind in ("csv", "json")}
    assert names | {"redundancy.png", "redundancy.pdf"} == {
        path.name for path in tmp_path.iterdir()
    }
    sets = pd.read_csv(tmp_path / "redundancy_sets.csv")
    assert set(sets["set"]) == {"visiondrop", "random", "top visual"}
    assert sets["error"].between(0, 1).all() and (sets["n"] == 2).all()
    rank = pd.read_csv(tmp_path / "redundancy_rank.csv")
    assert (rank["dims_90"] <= rank["needed"]).all()
    assert (rank["needed"] <= rank["needed_random"]).all()
    tables = {"rank": rank, "sets": sets}
    assert redundancy.findings(tables)["error/random/8"] == pytest.approx(
        float(sets.query("set == 'random' and layer == 8")["error"].iloc[0])
    )
    assert "of the variance" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, says",
    [
        ({"scores": ["wrong"]}, "no score 'wrong'; there are: last_text"),
        ({"tokens": 0}, "give 1 to 576"),
        ({"layers": [16]}, "layers 0 to 15"),
        ({"methods": ["wrong"]}, "unknown method"),
    ],
)
def test_what_cannot_be_is_refused(options, says):
    setting = open_setting(limit=1)
    with pytest.raises(EvalError, match=says):
        redundancy.compute(setting, **{"methods": ["uniform"], "limit": 1, **options})
