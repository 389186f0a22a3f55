"""The sample sets of ten benchmarks: as their command makes them, and read by the evaluation."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.oracle import without_placeholder
from playground import generate
from playground.pocket.formats import check
from playground.pocket.pool import POOL_SEED, jpeg_of
from playground.pocket.questions import TYPES
from playground.pocket.scene import make_scene
from playground.pocket.sets import FORMS, SETS, gqa, mmbench, mme, pope, seed, sqa, vizwiz, vqav2
from tests.playground.bundled import NAMES, ROOT, notes_of


@pytest.mark.parametrize("name", NAMES)
def test_checksums_hold(name: str) -> None:
    assert check(ROOT / name) == []
    listed = {line.split("  ")[1] for line in (ROOT / name / "SHA256SUMS").read_text().splitlines()}
    there = {p.relative_to(ROOT / name).as_posix() for p in (ROOT / name).rglob("*") if p.is_file()}
    assert there - {"SHA256SUMS"} == listed


def test_all_of_it_is_small() -> None:
    files = [p for name in NAMES for p in (ROOT / name).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 26e6


@pytest.mark.parametrize("name", NAMES)
def test_the_evaluation_reads_it_and_true_answers_score_full(name: str) -> None:
    benchmark = get_benchmark(name)
    files = benchmark.files(ROOT / name)
    samples = benchmark.read(files)
    assert len({s.key for s in samples}) == len(samples) >= 300
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)
    notes = {(str(e["question_id"]), e["prompt"]): e for e in notes_of(name)}
    rows, wrong = [], []
    for s in samples:
        note = notes[str(s.question_id), without_placeholder(s.prompt)]
        row = {"question_id": s.question_id, "prompt": s.prompt, "image": s.image,
               "round_id": s.round_id, "metadata": {}}  # fmt: skip
        rows.append({**row, "text": note["answer"]})
        wrong.append({**row, "text": "???"})
    score = benchmark.score(rows, files)
    if name == "mmvet":
        assert score.score is None
        return
    assert score.score == (2800 if name == "mme" else 100)
    assert all(score.per_sample)
    if name not in ("pope",):  # where all that is not "no" is yes
        assert benchmark.score(wrong, files).score == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_finds_its_regions(name: str) -> None:
    benchmark = get_benchmark(name)
    files = benchmark.files(ROOT / name)
    samples = benchmark.read(files)
    regions = benchmark.regions(samples, files)
    assert set(regions) == {s.key for s in samples}
    assert all(0 <= p < 576 for region in regions.values() for p in region)
    empty = sum(not region for region in regions.values()) / len(regions)
    # Only what is not there, and questions without a picture, ask for no patch.
    assert empty < {"vizwiz": 0.45, "sqa": 0.65, "pope": 0.3}.get(name, 0.001)


SMALL = {
    "vqav2": lambda f: vqav2.write(f, pictures=2, test=1),
    "vizwiz": lambda f: vizwiz.write(f, pictures=4, test=1),
    "gqa": lambda f: gqa.write(f, pictures=2),
    "pope": lambda f: pope.write(f, pictures=2),
    "mme": lambda f: mme.write(f, each=1),
    "mmbench": lambda f: mmbench.write(f, pictures=2),
    "mmbench_cn": lambda f: mmbench.write_cn(f, pictures=2),
    "sqa": lambda f: sqa.write(f, problems=6),
    "seed": lambda f: seed.write(f, pictures=2),
    "mmvet": lambda f: SETS["mmvet"].__globals__["write"](f, pictures=2),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_writer_makes_the_same_again(name: str, tmp_path: Path) -> None:
    """Its first questions, and pictures byte for byte (other versions of the JPEG and font
    libraries may differ in a few bits)."""
    SMALL[name](tmp_path)
    new, old = json.loads((tmp_path / "regions.json").read_text()), notes_of(name)
    if name == "vqav2":  # test-dev's questions come behind val's, wherever those end
        new = [e for e in new if e["question_id"] < 1000 * (262_001 + 2 * 17)]
    if name.startswith("mmbench"):  # circular rows come behind all questions
        known = {e["question_id"]: e for e in old}
        assert all(known[e["question_id"]] == e for e in new) and len(new) > 24
    else:
        assert [e["prompt"] for e in new if e["question_id"] != "VizWiz_test_00000000.jpg"] == [
            e["prompt"] for e in old
        ][: len(new) - (name == "vizwiz")]
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    pictures = [p for p in files if p.read_bytes()[:2] == b"\xff\xd8"] if (
        name not in ("vizwiz", "vqav2")
    ) else sorted((tmp_path / ("val" if name == "vizwiz" else "val2014")).iterdir())  # fmt: skip
    for path in pictures:
        a, b = (
            np.asarray(Image.open(f / path.relative_to(tmp_path)), int)
            for f in (tmp_path, ROOT / name)
        )
        assert np.abs(a - b).mean() < 1
    assert check(tmp_path) == []


def test_writing_again_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    pope.write(tmp_path, pictures=2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_text("mine")
    pope.write(tmp_path, pictures=1)
    assert len(list((tmp_path / "val2014").iterdir())) == 1
    assert (tmp_path / "mine.txt").exists() and (tmp_path / "images" / "mine.jpg").exists()


def test_the_pool_is_not_the_sample_set_of_textvqa_nor_training() -> None:
    assert POOL_SEED != generate.SAMPLE_SEED and POOL_SEED < 1_000_000
    assert jpeg_of(0) == (ROOT / "gqa" / "data" / "images" / "n161000.jpg").read_bytes() or (
        np.abs(
            np.asarray(Image.open(io.BytesIO(jpeg_of(0))), int)
            - np.asarray(Image.open(ROOT / "gqa" / "data" / "images" / "n161000.jpg"), int)
        ).mean()
        < 1
    )


@pytest.mark.parametrize("name", NAMES)
def test_training_gets_every_form_from_any_scene(name: str) -> None:
    """Of windows on the world, too, and of scenes with few things."""
    found = []
    for i in range(6):
        scene = make_scene(1_000_000, i, size=(168, 168), origin=(0, 168), few=i % 2 == 0)
        for q in FORMS[name](scene, np.random.default_rng(i)):
            assert all(0 <= p < 144 for p in q.region) and set(q.evidence) <= set(q.region)
            assert q.text in q.prompt and "{" not in q.prompt and "}" not in q.prompt
            assert not q.options or q.answer in "ABCDE"[: len(q.options)]
            found.append(q)
    assert len({q.type for q in found}) >= 3 or len(TYPES) < 3
