"""Kept prefixes on the disk: they come back as they were, and only to whom they belong."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import visiondrop
from tests.visiondrop import next_models as anyres
from tests.visiondrop.models import logits, tiny
from tests.visiondrop.test_image_cache import CLOSE, DROP, KEPT, QUESTIONS, ask, build
from visiondrop import ImageCache, Uniform, VisionDrop


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file with two prefixes."""
    cache = ImageCache(tiny(), DROP)
    build(cache)
    cache.save(tmp_path / "new" / "kept.safetensors")
    return tmp_path / "new" / "kept.safetensors"


def test_what_comes_back_is_what_was_kept(saved: Path) -> None:
    """Bit for bit, with its ledger, and found by the same inputs."""
    before, after = ImageCache(tiny(), DROP), ImageCache(tiny(), DROP)
    old = build(before)
    assert after.load(saved) == 2 and after.stats.entries == 2
    new = build(after)
    assert after.stats.misses == 0 and after.stats.hits == 2
    for a, b in zip(old, new, strict=True):
        assert a.ids.tolist() == b.ids.tolist() and a.key == b.key
        assert (a.blocks, a.positions) == (b.blocks, b.positions)
        for first, second in zip(a.layers, b.layers, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
        assert a.sample is not None and b.sample is not None
        assert a.sample.to_dict() == b.sample.to_dict()
        assert a.sample.fates() == b.sample.fates()
    one, two = (ask(c, p[1], QUESTIONS) for c, p in ((before, old), (after, new)))
    torch.testing.assert_close(logits(one), logits(two), **CLOSE)
    assert os.listdir(saved.parent) == [saved.name], "nothing is left beside it"


def test_pictures_of_any_resolution_and_text(tmp_path: Path) -> None:
    model = anyres.tiny_next()
    method = VisionDrop(encoder=(14, 4), llm={2: (10, 3)})
    cache, size = ImageCache(model, method), anyres.SIZES[0]
    prompt = {"input_ids": anyres.prompt(2, 0, 0, [size]), **anyres.inputs([size], [0])}
    cache.build_all([prompt, {"input_ids": [1, 5, 6]}])
    cache.save(tmp_path / "kept.safetensors")
    other = ImageCache(model, method)
    assert other.load(tmp_path / "kept.safetensors") == 2
    kept, was = other.build(**prompt), cache.build(**prompt)
    assert kept.sample is not None and was.sample is not None
    assert kept.sample.grids == was.sample.grids != [None]
    assert kept.sample.to_dict() == was.sample.to_dict()
    assert other.build([1, 5, 6]).sample is None and other.stats.misses == 0


def test_an_empty_cache_and_a_small_one(saved: Path, tmp_path: Path) -> None:
    ImageCache(tiny(), DROP).save(tmp_path / "none.safetensors")
    cache = ImageCache(tiny(), DROP, max_bytes=build(ImageCache(tiny(), DROP))[1].kv_bytes)
    assert cache.load(tmp_path / "none.safetensors") == 0
    cache.load(saved)
    assert cache.stats.entries == 1, "the most recently used stays"


def other_weights() -> Any:
    """The same model with one layer's weights scaled."""
    model = copy.deepcopy(tiny())
    with torch.no_grad():
        model.model.language_model.layers[3].mlp.up_proj.weight *= 1.01
    return model


def test_another_model_or_method_is_refused(saved: Path) -> None:
    for model, method, what in (
        (other_weights(), DROP, "model"),
        (tiny(), Uniform(8), "method"),
        (tiny(), KEPT, "method"),
        (copy.deepcopy(tiny()).double(), DROP, "model"),
    ):
        cache = ImageCache(model, method)
        with pytest.raises(ValueError, match=f"belongs to another {what}.* build .* anew"):
            cache.load(saved)
        assert cache.stats.entries == 0


def test_another_version_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visiondrop, "__version__", "99.0")
    with pytest.raises(ValueError, match='belongs to another version: .* there, "99.0" here'):
        ImageCache(tiny(), DROP).load(saved)
    monkeypatch.undo()
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["visiondrop"])
    header["format"] = 0
    save_file(load_file(saved), saved, {"visiondrop": json.dumps(header)})
    with pytest.raises(ValueError, match="belongs to another format: 0 there"):
        ImageCache(tiny(), DROP).load(saved)


def test_damaged_foreign_and_missing_files(saved: Path, tmp_path: Path) -> None:
    cache = ImageCache(tiny(), DROP)
    for content in (saved.read_bytes()[:-9], b"", b"no tensors", saved.read_bytes()[:40]):
        saved.write_bytes(content)
        with pytest.raises(ValueError, match="is no file of kept prefixes, or a damaged one"):
            cache.load(saved)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no file of kept prefixes"):
        cache.load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no file of kept prefixes at"):
        cache.load(tmp_path / "nothing")


def test_a_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    cache = ImageCache(tiny(), DROP)
    cache.load(saved)

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        cache.save(saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]
