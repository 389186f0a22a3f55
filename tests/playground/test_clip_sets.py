"""The bundled sets of clips: as their command makes them, and read by the evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llava.eval.benchmarks import get_benchmark
from llava.eval.clips import read_clip
from playground.pocket.clips import render_clip
from playground.pocket.formats import check
from playground.pocket.sets import SETS, video
from tests.playground.bundled import CLIP_NAMES, NAMES, ROOT, load, notes_of


def test_these_are_the_video_benchmarks():
    assert CLIP_NAMES == ("tgif", "msvd", "msrvtt") and not set(NAMES) & set(CLIP_NAMES)


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_checksums_hold_and_all_is_small(name):
    assert check(ROOT / name) == []
    files = [p for p in (ROOT / name).rglob("*") if p.is_file()]
    listed = {line.split("  ")[1] for line in (ROOT / name / "SHA256SUMS").read_text().splitlines()}
    there = {p.relative_to(ROOT / name).as_posix() for p in files}
    assert there - {"SHA256SUMS"} == listed
    assert sum(p.stat().st_size for p in files) < 3.5e6


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_the_evaluation_reads_it_and_true_answers_score_full(name):
    benchmark = get_benchmark(name)
    files = benchmark.files(ROOT / name)
    samples = benchmark.read(files)
    assert len({s.key for s in samples}) == len(samples) >= 100
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)
    notes = {(e["question_id"], e["prompt"]): e for e in notes_of(name)}
    rows = [
        {"question_id": s.question_id, "prompt": s.prompt, "image": s.image, "metadata": {},
         "text": notes[s.question_id, s.prompt]["answer"]}
        for s in samples
    ]  # fmt: skip
    scores = benchmark.score(rows, files)
    assert scores.score == 100 and all(scores.per_sample)
    assert set(scores.types) == {e["type"] for e in notes.values()}
    wrong = benchmark.score([{**row, "text": "???"} for row in rows], files)
    assert wrong.score == 0 and wrong.figures["contained"] == 0


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_files_have_video_llavas_fields(name):
    questions, answers = load(name, "test_q.json"), load(name, "test_a.json")
    asks = {"question", "video_name", "question_id"}
    assert {frozenset(q) for q in questions} == {frozenset(asks)}
    assert {frozenset(a) for a in answers} == {frozenset({"answer", "type", "question_id"})}
    assert [q["question_id"] for q in questions] == [a["question_id"] for a in answers]
    assert all(a["answer"] == a["answer"].lower() for a in answers)


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_the_frames_that_are_sampled_are_the_eight_of_the_clip(name):
    """From the files, through the evaluation's reader."""
    folder = get_benchmark(name).pictures(get_benchmark(name).files(ROOT / name))
    questions = load(name, "test_q.json")
    for i, video_name in enumerate(list(dict.fromkeys(q["video_name"] for q in questions))[:6]):
        frames = np.stack([np.asarray(f, int) for f in read_clip(folder.find(video_name))])
        true = render_clip(video.clip_of(name, i)).astype(int)
        # JPEG and palettes round; another state of the clip would differ in whole things.
        assert np.abs(frames - true).mean() < 8
        own = np.abs(frames[:, None] - true[None]).mean((2, 3, 4))
        least = own.min(1)
        assert all(own[j, j] == pytest.approx(least[j], abs=0.15) for j in range(8))


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_the_writer_makes_the_same_again(name, tmp_path: Path):
    SETS[name](tmp_path, clips=3)  # type: ignore[call-arg]
    new = json.loads((tmp_path / "regions.json").read_text())
    assert new == notes_of(name)[: len(new)] and len(new) >= 10
    for path in tmp_path.rglob("*"):
        if path.suffix in (".gif", ".jpg"):
            old = ROOT / name / path.relative_to(tmp_path)
            a, b = (np.stack([np.asarray(f, int) for f in read_clip(p)]) if p.suffix == ".gif" else
                    np.asarray(read_clip(p.parent)[0], int) for p in (path, old))  # fmt: skip
            assert np.abs(a - b).mean() < 1
    assert check(tmp_path) == []


def test_no_clip_is_in_two_sets_or_in_training():
    assert video.CLIP_SEED < 1_000_000
    ranges = [set(range(video.FIRST[n], video.FIRST[n] + video.CLIPS[n])) for n in CLIP_NAMES]
    assert len(set.union(*ranges)) == sum(map(len, ranges))
