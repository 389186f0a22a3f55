"""The committed sample set: complete, as its command makes it, in TextVQA's formats."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from playground import generate
from playground.pocket.formats import ANNOTATIONS, QUESTIONS, REGIONS, check, write_textvqa
from playground.pocket.questions import SUFFIX, TYPES

FOLDER = Path(generate.__file__).parent / "data" / "eval" / "textvqa"


def load(folder: Path):
    lines = [json.loads(x) for x in (folder / QUESTIONS).read_text().splitlines()]
    data = json.loads((folder / ANNOTATIONS).read_text())
    return lines, data, json.loads((folder / REGIONS).read_text())


def test_checksums_hold():
    assert check(FOLDER) == []


def test_formats_join_as_the_official_scorer_joins():
    lines, data, regions = load(FOLDER)
    assert len(lines) == len(data["data"]) == len(regions) >= 2000
    asked = {(x["question_id"], x["text"].split("\n")[0].lower()) for x in lines}
    known = {(x["image_id"], x["question"].lower()): x for x in data["data"]}
    assert asked == set(known) and len(known) == len(lines)
    for line in lines:
        question, reference, suffix = line["text"].split("\n")
        assert reference.startswith("Reference OCR token: ") and suffix == SUFFIX
        assert line["image"] == f"{line['question_id']}.jpg" and line["category"] == "default"
    for row in data["data"]:
        assert len(row["answers"]) == 10 and row["set_name"] == "val"
    for row, region in zip(data["data"], regions, strict=True):
        assert row["question_id"] == region["question_id"]
        most, times = Counter(row["answers"]).most_common(1)[0]
        assert most == region["answer"].lower() and times >= 8
        assert region["grid"] == [24, 24] and region["region"]


def test_pictures_are_there_and_of_the_stated_size():
    lines, data, _ = load(FOLDER)
    names = {x["image"] for x in lines}
    assert names == {p.name for p in (FOLDER / "train_images").iterdir()}
    assert len(names) < len(lines)  # several questions share a picture, as in the real file
    with Image.open(FOLDER / "train_images" / lines[0]["image"]) as im:
        assert im.size == (data["data"][0]["image_width"], data["data"][0]["image_height"])


def test_answers_are_balanced_so_that_guessing_is_weak():
    _, _, regions = load(FOLDER)
    right = 0
    for kind in TYPES:
        answers = Counter(r["answer"] for r in regions if r["type"] == kind)
        assert sum(answers.values()) >= 150, kind
        right += answers.most_common(1)[0][1]
        if kind == "exist":
            assert abs(answers["yes"] - answers["no"]) <= 10
    assert right / len(regions) < 0.25


def test_reference_tokens_do_not_know_the_picture():
    """Distractors meet the answer of a sign no more often than chance does."""
    lines, _, regions = load(FOLDER)
    signs = [
        (line["text"].split("\n")[1].removeprefix("Reference OCR token: ").split(", "), r["answer"])
        for line, r in zip(lines, regions, strict=True)
        if r["type"] in ("letter", "number", "word")
    ]
    empty = sum(tokens == [""] for tokens, _ in signs)
    assert 0.2 < empty / len(signs) < 0.6
    assert sum(answer in tokens for tokens, answer in signs) / len(signs) < 0.06


def test_the_command_makes_the_same_set_again(tmp_path):
    write_textvqa(tmp_path, 30, 6, generate.SAMPLE_SEED)
    new, _, regions = load(tmp_path)
    old, _, old_regions = load(FOLDER)
    assert new == old[:30]
    assert regions == old_regions[:30]
    name = new[0]["image"]
    a, b = (np.asarray(Image.open(f / "train_images" / name), int) for f in (tmp_path, FOLDER))
    assert np.abs(a - b).mean() < 1  # other JPEG and FreeType versions may differ in a few bits


def test_training_seeds_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["generate", "--out", str(tmp_path), "--seed", "1000000"])
    with pytest.raises(SystemExit):
        generate.main()
    assert "1000000" in capsys.readouterr().err
