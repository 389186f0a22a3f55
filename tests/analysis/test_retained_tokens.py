"""The command: pictures that are found, figures and files that are written, on tiles, too."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.retained_drawing import draw_panel, outline_edges, panel_size, place_views
from analysis.retained_geometry import CROPS, PICTURE, THUMBNAIL, region_share
from analysis.retained_looks import parse_methods, pick_cases, plan, split_label, title_of
from analysis.retained_tokens import compute, counts, main, patches
from analysis.setting import open_setting
from llava.eval.errors import EvalError
from llava.eval.oracle import Oracle

DATA = Path("playground/data/eval/textvqa")
NEXT = ["--model-path", "checkpoints/pocket-llava-next"]
NEXT += ["--data", "playground/data/eval_anyres/textvqa", "--dtype", "bfloat16"]


@pytest.fixture(scope="module")
def setting():
    return open_setting(limit=14)


def test_methods_are_read_with_their_fields():
    assert parse_methods("visiondrop, prumerge+,random+seed=1,random+seed=1") == [
        *("visiondrop", "prumerge+", "random+seed=1"),
    ]
    staged = 'visiondrop+encoder=[42,6]+llm={"8":[30,5]},visionzip@64'
    assert parse_methods(staged) == ['visiondrop+encoder=[42,6]+llm={"8":[30,5]}', "visionzip@64"]
    assert split_label("prumerge++ratio=0.125") == ("prumerge+", {"ratio": "0.125"})
    assert title_of("visiondrop+causal=expectation") == "VisionDrop, causal=expectation"
    for text, message in (
        ("nothing", "unknown method 'nothing'"),
        ("visiondrop+speed=2", "no argument 'speed'; it has: .*causal"),
        ("visionzip@3", "no preset '3'"),
        (" , ", "no method given"),
    ):
        with pytest.raises(EvalError, match=message):
            parse_methods(text)


def test_a_picture_that_is_not_there_is_named_with_some_that_are(setting):
    first = setting.cases[0].picture
    stem = first.removesuffix(".jpg")
    assert pick_cases(setting, [first, stem, f"{stem}:2"], 1) == [
        *(setting.cases[0], setting.cases[0], setting.cases[1]),
    ]
    assert pick_cases(setting, [], 2) == [setting.cases[0], setting.cases[7]]
    with pytest.raises(EvalError, match=f"no picture 'cat'.*it has 3, among them {first}"):
        pick_cases(setting, ["cat"], 1)
    with pytest.raises(EvalError, match="questions 1 to 6"):
        pick_cases(setting, [f"{stem}:7"], 1)


def test_budgets_that_cannot_be_say_why_and_the_others_go_on(setting):
    planned = plan(setting, ["fastv", "random"], [64, 32])
    assert [one.method is None for one in planned] == [False, True, False, False]
    assert "least is 36.94" in planned[1].reason
    with pytest.raises(EvalError, match="least is 36.94"):
        plan(setting, ["fastv"], [32])


def test_the_share_of_the_region_is_what_the_truth_says(setting):
    case = setting.cases[0]
    looks, planned = compute(setting, ["uniform", "visiondrop", "full"], [64], [case])
    assert len(looks) == 3 and planned[2].tokens is None
    for one in looks:
        table = patches([one])
        last = table[table["stage"] == one.stages[-1].name]
        own = set(last.loc[last["fate"].isin(["kept", "contextual"]), "patch"])
        share = len(own & set(case.region)) / len(case.region)
        assert one.share(one.stages[-1]) == pytest.approx(share)
        assert one.shown.full and one.shown.full == looks[2].answer
    assert looks[2].share(looks[2].stages[-1]) == 1
    even = looks[0].stages[-1]
    assert even.counts() == {"kept": 64, "contextual": 0, "absorbed": 0, "dropped": 512}
    assert region_share(even.patches, looks[0].shown.squares, ("dropped",)) == pytest.approx(
        1 - looks[0].share(even)
    )
    table = counts(looks)
    rows = table[table["method"] == "visiondrop"]
    assert list(rows["stage"]) == ["encoder", "layer 4", "layer 8", "layer 12"]
    assert list(rows["tokens"]) == [96, 70, 52, 38]
    # Every patch is somewhere; CLS, which has no patch, may be among the tokens.
    assert (rows[["kept", "contextual", "absorbed", "dropped"]].sum(axis=1) == 576).all()
    assert set(rows["tokens"] - rows["kept"] - rows["contextual"]) <= {0, 1}


def test_an_oracle_keeps_the_whole_region(setting):
    from analysis.retained_looks import Planned, look_at

    case = setting.cases[1]
    oracle = Oracle(64, {case.sample.key: case.region})
    (one,) = look_at(setting, [case], [Planned("random", 64, oracle)])
    assert one.share(one.stages[-1]) == 1


def test_views_and_borders():
    assert place_views([PICTURE], (30, 20)) == {PICTURE: (1, 0, 0)}
    views = [THUMBNAIL, CROPS]
    assert place_views(views, (200, 100)) == {CROPS: (1, 0, 0), THUMBNAIL: (0.5, 0, 105)}
    assert place_views(views, (100, 200))[THUMBNAIL] == (0.5, 105, 0)
    assert panel_size(views, (200, 100)) == (200, 155)
    # Three squares in an L: the sides between them are no border.
    squares = [(0, 0, 1, 1), (0, 1, 1, 2), (1, 1, 2, 2)]
    assert len(outline_edges(squares)) == 8
    assert ((0, 1), (1, 1)) not in outline_edges(squares)


def test_a_panel_draws_each_link_from_middle_to_middle(setting):
    from analysis import plots

    looks, _ = compute(setting, ["visiondrop"], [64], setting.cases[:1])
    (one,) = looks
    with plots.figure() as (_, axis):
        draw_panel(axis, one.shown.image, one.stages[1], one.shown.squares)
        lines = [c for c in axis.collections if type(c).__name__ == "LineCollection"]
        joined = max((c.get_segments() for c in lines), key=len)
        links = one.stages[1].links()
        assert len(joined) == len(links) > 400
        for segment, (patch, token) in zip(joined, links, strict=True):
            for (x, y), end in zip(segment, (patch, token), strict=True):
                row, column = divmod(end.token, 24)
                assert (x, y) == (14 * column + 7, 14 * row + 7)


def test_stages_and_grid_are_written(tmp_path):
    flags = ["--methods", "visiondrop,fastv", "--tokens", "64,32", "--pictures", "2"]
    assert main([*flags, "--out", str(tmp_path), "--name", "f"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    for part in ("f", "f_grid"):
        assert {f"{part}.{kind}" for kind in ("png", "pdf", "csv", "json")} <= names
        with Image.open(tmp_path / f"{part}.png") as image:
            assert image.width > 600 and np.asarray(image.convert("L")).std() > 20
        facts = json.loads((tmp_path / f"{part}.json").read_text())
        assert facts["dtype"] == "float32" and facts["batch_size"] and facts["versions"]
    table = pd.read_csv(tmp_path / "f.csv")
    assert table["picture"].nunique() == 2 and set(table["method"]) == {"visiondrop", "fastv"}
    assert set(table["fate"]) == {"kept", "contextual", "absorbed"}
    stays = table["patch"] == table["to"]
    assert (stays == (table["fate"] != "absorbed")).all()
    facts = json.loads((tmp_path / "f_grid.json").read_text())["f_grid"]
    assert "least is 36.94" in facts["cannot be"]["fastv@32"]
    assert len(facts["panels"]) == 6


def test_a_photo_of_ones_own(tmp_path):
    Image.new("RGB", (90, 50), "olive").save(tmp_path / "photo.png")
    shutil.copy(next((DATA / "train_images").glob("*.jpg")), tmp_path / "scene.jpg")
    out = tmp_path / "out"
    flags = ["--question", "What is this?", "--methods", "visiondrop", "--tokens", "64"]
    one = ["--images", str(tmp_path / "photo.png"), *flags, "--out", str(out)]
    assert main([*one, "--grid"]) == 0
    table = pd.read_csv(out / "grid_counts.csv")
    assert table["region"].isna().all() and table["tokens"].tolist() == [96, 70, 52, 38]
    some = ["--images", str(tmp_path), *flags, "--out", str(out)]
    with pytest.raises(EvalError, match=r"no picture 'cat'.*photo\.png, scene\.jpg"):
        main([*some, "--picture", "cat"])
    # What needs two pictures says so, and the rest goes on.
    assert main([*one, "--grid", "--agreement", "--name", "p"]) == 0
    assert (out / "p.png").exists() and not (out / "p_agreement.png").exists()
    with pytest.raises(EvalError, match="two pictures or more"):
        main([*one, "--agreement"])


def test_pictures_in_tiles_are_drawn_in_their_own_coordinates(tmp_path):
    flags = ["--methods", "visiondrop,random", "--tokens", "320", "--picture", "79f9b151b5183e42"]
    assert main([*NEXT, "--grid", *flags, "--out", str(tmp_path), "--name", "f"]) == 0
    table = pd.read_csv(tmp_path / "f.csv")
    assert set(table["view"]) == {CROPS, THUMBNAIL}
    facts = json.loads((tmp_path / "f.json").read_text())["f"]
    (grid,) = facts["tiles"]["79f9b151b5183e42.jpg"]
    assert grid["original"] == [336, 672] and (grid["rows"], grid["columns"]) == (2, 1)
    assert (table.loc[table["view"] == THUMBNAIL, "patch"] < 576).all()
    shown = counts_of(tmp_path / "f_counts.csv")
    assert 0 <= shown["random"] <= 1 and 0 <= shown["visiondrop"] <= 1


def counts_of(path):
    table = pd.read_csv(path)
    return table.groupby("method")["region"].last().to_dict()
