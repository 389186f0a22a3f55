"""Any-resolution scenes and sample sets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.train.pocket_next_pictures import grid_of
from playground.generate import ANYRES, SAMPLE_SEED
from playground.pocket import anyres
from playground.pocket.formats import check, write_textvqa
from playground.pocket.pool import POOL_SEED
from playground.pocket.questions import TYPES, all_questions
from playground.pocket.render import render
from playground.pocket.scene import make_scene
from playground.pocket.sets import pope
from tests.playground.test_pocket_world import _answer

ROOT = Path(__file__).resolve().parents[2] / ANYRES
NAMES = sorted(anyres.SETS)
SIZES = [(672, 336), (300, 500), (672, 672), (1008, 336)]


@pytest.mark.parametrize("size", SIZES)
def test_answers_hold_and_regions_show_their_things(size):
    """Answers by a second reading; what lies in the region is drawn over, in the picture of the
    same scene without its things nothing else changes there."""
    seen = set()
    for i in range(6):
        scene = make_scene(11, i, size=size, world=size)
        picture = render(scene)
        assert picture.shape == (size[1], size[0], 3)
        rows, columns = scene.grid
        assert (rows, columns) == (-(-size[1] // 14), -(-size[0] // 14))
        for t in scene.things:
            assert 0 < t.box[0] < t.box[2] < size[0] and 0 < t.box[1] < t.box[3] < size[1]
        for q in all_questions(scene, np.random.default_rng(i)):
            assert _answer(scene, q.type, q.text) == q.answer
            seen.add(q.type)
            for p in q.region:
                y, x = divmod(p, columns)
                assert y < rows
                touched = [
                    t for t in scene.things
                    if t.box[0] < 14 * x + 14 and t.box[2] > 14 * x
                    and t.box[1] < 14 * y + 14 and t.box[3] > 14 * y
                ]  # fmt: skip
                assert touched
    assert seen == set(TYPES)


def test_things_are_as_large_on_every_canvas():
    """So that a crop shows them as the tower knows them, and a thumbnail does not."""
    for size in SIZES:
        shapes = [
            t.box[2] - t.box[0]
            for i in range(20) for t in make_scene(12, i, size=size, world=size).shapes()
        ]  # fmt: skip
        assert min(shapes) == 15 and max(shapes) == 23


@pytest.mark.parametrize("name", NAMES)
def test_checksums_hold(name):
    assert check(ROOT / name) == []


def test_all_of_it_is_small():
    assert sum(p.stat().st_size for p in ROOT.rglob("*") if p.is_file()) < 9e6


@pytest.mark.parametrize("name", NAMES)
def test_the_evaluation_reads_it_and_true_answers_score_full(name):
    benchmark = get_benchmark(name)
    files = benchmark.files(ROOT / name)
    samples = benchmark.read(files)
    benchmark.pictures(files).check(samples)
    notes = json.loads((ROOT / name / "regions.json").read_text())
    notes = notes[: len(samples)]
    assert all(max(n["region"], default=0) < n["grid"][0] * n["grid"][1] for n in notes)
    answers = {s.key: n["answer"] for s, n in zip(samples, notes, strict=True)}
    assert len(answers) == len(samples)


def test_pictures_need_three_to_five_tiles():
    sizes = []
    for path in sorted((ROOT / "textvqa" / "train_images").glob("*.jpg")):
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert set(sizes) == set(anyres.SIZES) and len(sizes) == 60
    tiles = [grid_of(s).tiles for s in sizes]
    assert {3, 4, 5} == set(tiles) and np.mean(tiles) > 3.7
    data = json.loads((ROOT / "textvqa" / "TextVQA_0.5.1_val.json").read_text())["data"]
    assert {(d["image_width"], d["image_height"]) for d in data} == set(anyres.SIZES)


def test_seeds_are_their_own():
    own = {anyres.SEED, anyres.POOL.seed}
    assert len(own | {SAMPLE_SEED, POOL_SEED}) == 4 and max(own) < 1_000_000


def test_the_writers_make_the_same_again(tmp_path):
    write_textvqa(tmp_path / "a", 12, 4, anyres.SEED, anyres.SIZES)
    pope.write(tmp_path / "b", 2, anyres.POOL)
    for made, name, file in (
        ("a", "textvqa", "llava_textvqa_val_v051_ocr.jsonl"), ("b", "pope", "llava_pope_test.jsonl")
    ):  # fmt: skip
        lines = (tmp_path / made / file).read_text().splitlines()
        assert lines == (ROOT / name / file).read_text().splitlines()[: len(lines)] and lines
