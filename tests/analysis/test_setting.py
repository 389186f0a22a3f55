"""What is opened: the bundled data with its truth, and pictures of which nothing is known."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from analysis.probe import Probe
from analysis.scores import ENCODER_SCORES
from analysis.setting import Unknown, open_setting, picture_setting
from llava.eval.errors import EvalError
from visiondrop.methods import build_method

DATA = Path("playground/data/eval/textvqa")


@pytest.fixture(scope="module")
def setting():
    return open_setting(limit=8, batch_size=3)


def cls(view):
    return {"cls": ENCODER_SCORES["cls"](view)}


def test_the_bundled_data_know_where_answers_and_things_are(setting):
    assert len(setting.cases) == 8
    assert len(setting.first_of_pictures) == 2
    assert setting.first_of_pictures[0] is setting.cases[0]
    for case in setting.cases:
        things = setting.objects(case)
        shown = {patch for thing in things.objects for patch in thing.patches}
        assert case.region and set(case.region) <= shown
        assert set(case.named) <= set(case.region)
        assert case.answer and case.kind and "\n" not in case.question
    facts = setting.describe()
    assert (facts["questions"], facts["pictures"], facts["dtype"]) == (8, 2, "float32")


def test_a_walk_shows_each_case_once_in_order_whatever_the_batch(setting):
    looks = list(setting.walk(Probe(encoder=cls)))
    assert [look.case for look in looks] == setting.cases
    single = list(setting.walk(Probe(encoder=cls), setting.cases[4:5]))[0]
    assert abs(single.at(None).values["cls"] - looks[4].at(None).values["cls"]).max() < 1e-6
    # Questions of one picture have one encoder score.
    assert (looks[0].at(None).values["cls"] == looks[1].at(None).values["cls"]).all()


def test_a_walk_under_a_method_tells_what_it_kept(setting):
    method = build_method("visiondrop", 64, geometry=setting.geometry)
    look = next(iter(setting.walk(method, setting.cases[:1])))
    assert look.trace.mean_tokens == 64 and look.readings == []


def test_pictures_can_be_changed_and_blanked(setting):
    case = setting.cases[:1]
    plain = next(iter(setting.walk(Probe(encoder=cls), case))).at(None).values["cls"]
    same = next(iter(setting.walk(Probe(encoder=cls), case, change=lambda t: t))).at(None)
    assert (same.values["cls"] == plain).all()
    flipped = next(iter(setting.walk(Probe(encoder=cls), case, change=lambda t: t.flip(-2))))
    assert not (flipped.at(None).values["cls"] == plain).all()
    blank = next(iter(setting.walk(Probe(encoder=cls), case, blank=True))).at(None).values["cls"]
    zero = next(iter(setting.walk(Probe(encoder=cls), case, change=torch.zeros_like))).at(None)
    assert abs(blank - zero.values["cls"]).max() < 0.2 * plain.max()


def test_plain_pictures_have_no_truth(tmp_path):
    name = next((DATA / "train_images").glob("*.jpg"))
    shutil.copy(name, tmp_path / "a.jpg")
    Image.new("RGB", (80, 40), "red").save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = picture_setting("checkpoints/pocket-llava", tmp_path, "What is this?", batch_size=2)
    assert [case.picture for case in found.cases] == ["a.jpg", "b.png"]
    assert found.cases[0].region is None
    with pytest.raises(Unknown, match="does not say what its pictures show"):
        found.objects(found.cases[0])
    assert len(list(found.walk(Probe(encoder=cls)))) == 2
    assert found.image(found.cases[1]).size == (336, 336)
    with pytest.raises(EvalError, match="no picture in"):
        (tmp_path / "empty").mkdir()
        picture_setting("checkpoints/pocket-llava", tmp_path / "empty", "What is this?")


def test_bad_input_is_refused_before_any_compute():
    with pytest.raises(EvalError, match="limit must be at least 1"):
        open_setting(limit=0)
    with pytest.raises(EvalError, match="unknown benchmark"):
        open_setting(benchmark="none")
    with pytest.raises(EvalError, match="video model"):
        open_setting("checkpoints/pocket-video-llava", limit=1)
    with pytest.raises(EvalError, match="no/such/model"):
        open_setting("no/such/model", limit=1)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    found = picture_setting("checkpoints/pocket-llava", tmp_path, "What is this?")
    with pytest.raises(EvalError, match=r"bad\.jpg"):
        list(found.walk(Probe(encoder=cls)))
