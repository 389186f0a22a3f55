"""Clips and the questions about them, against answers read off the frames' own scenes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from playground.pocket import vocabulary as v
from playground.pocket.clip_questions import CLIP_TYPES, clip_questions
from playground.pocket.clips import BEHAVIOURS, Clip, make_clip, render_clip

CLIPS = [make_clip(77, i) for i in range(40)] + [
    make_clip(78, i, size=112, frames=4) for i in range(20)
]
SINGULAR = {plural: one for one, plural in v.PLURALS.items()}


def asked(clip: Clip):
    return clip_questions(clip, np.random.default_rng(clip.seed[-1]))


def shapes_at(clip: Clip, frame: int) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(t.color, t.shape, t.box) for t in clip.scene(frame).shapes()]


def slow_answer(clip: Clip, text: str) -> str:
    """The answer, worked out from the words of the question and what is there in each frame."""
    frames = [shapes_at(clip, j) for j in range(clip.frames)]
    ever = {(c, s) for frame in frames for c, s, _ in frame}
    last, words = clip.frames - 1, text.rstrip("?").split()
    if m := re.fullmatch(r"What color is the (\w+)\?", text):
        (color,) = {c for c, s in ever if s == m[1]}
        return color
    if m := re.fullmatch(r"What shape is the (\w+) object\?", text):
        (shape,) = {s for c, s in ever if c == m[1]}
        return shape
    if m := re.fullmatch(r"Is there an? (\w+) (\w+)( at the (\w+))?\?", text):
        seen = ever
        if m[4]:
            seen = {(c, s) for c, s, _ in frames[0 if m[4] == "start" else last]}
        return "yes" if (m[1], m[2]) in seen else "no"
    if m := re.fullmatch(r"How many (\w+) are there at the end\?", text):
        return str(sum(s == SINGULAR[m[1]] for _, s, _ in frames[last]))
    if m := re.fullmatch(r"What does the (\w+) sign say( at the (\w+))?\?", text):
        said = [
            [t.text for t in clip.scene(j).signs() if t.color == m[1]] for j in range(clip.frames)
        ]
        assert bool(m[3]) == (len({t for one in said for t in one}) > 1)
        return said[last if m[3] == "end" else 0][0]
    # What happens: a thing is told from others by colour and shape and where it begins.
    first, end = frames[0], frames[last]
    if "appears" in words and "disappears" not in words:
        found = [a for a in clip.shapes() if not clip.is_there(a, 0)]
    elif "disappears" in words:
        found = [
            a
            for a in clip.shapes()
            if any(
                clip.is_there(a, j) and not clip.is_there(a, j + 1) for j in range(clip.frames - 1)
            )
        ]
    else:
        found = [a for a in clip.shapes() if a.at(0, clip.frames) and a.at(last, clip.frames)]
        found = [a for a in found if a.at(0, clip.frames).box != a.at(last, clip.frames).box]
    if "direction" in words:
        (a,) = [a for a in found if a.thing.shape == words[-2]]
        (x0, y0), (x1, y1) = (a.at(j, clip.frames).box[:2] for j in (0, last))
        return {(1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}[
            int(np.sign(x1 - x0)), int(np.sign(y1 - y0))
        ]
    assert len(found) == 1 and (first or end)
    return found[0].thing.shape if words[1] == "shape" else found[0].thing.color


def test_answers_are_what_the_frames_show():
    seen = set()
    for clip in CLIPS:
        for q in asked(clip):
            assert slow_answer(clip, q.text) == q.answer, (clip.seed, q.text)
            seen.add(q.type)
    assert seen == set(CLIP_TYPES)


def test_a_clip_is_a_function_of_its_seed():
    assert make_clip(77, 3) == CLIPS[3] != CLIPS[4]
    assert np.array_equal(render_clip(CLIPS[3]), render_clip(make_clip(77, 3)))
    assert {a.behaviour for clip in CLIPS for a in clip.actors} == {*BEHAVIOURS, "changes"}


def test_yes_and_no_come_equally_often():
    for kind in ("exist", "exist_start", "exist_end"):
        answers = [q.answer for clip in CLIPS for q in asked(clip) if q.type == kind]
        assert answers.count("yes") == answers.count("no") > 20


@pytest.mark.parametrize("number", range(6))
def test_regions_are_the_patches_that_change_when_the_thing_is_left_out(number):
    """Of the rendered frames: most pixels that differ lie in the region, and every patch of
    the region differs."""
    clip = CLIPS[number]
    whole = render_clip(clip).astype(int)
    for k, actor in enumerate(clip.actors):
        region = clip.patches([actor])
        # An actor that is never there, in place: the others keep their drawing's numbers.
        away = tuple(
            type(a)(a.thing, first=10**6) if i == k else a for i, a in enumerate(clip.actors)
        )
        bare = render_clip(Clip(clip.size, clip.frames, away, clip.seed)).astype(int)
        differ = np.abs(whole - bare).sum(-1) > 0
        g = clip.grid
        per_patch = differ.reshape(clip.frames, g, 14, g, 14).sum((2, 4)).reshape(-1)
        assert all(per_patch[p] > 0 for p in region)
        assert per_patch[region].sum() >= 0.75 * per_patch.sum()
        seen = {p // g**2 for p in region}
        assert seen == {j for j in range(clip.frames) if clip.is_there(actor, j)}


def test_the_ground_stays_and_half_times_lie_between():
    clip = next(c for c in CLIPS if any(a.behaviour == "moves" for a in c.shapes()))
    mover = next(a for a in clip.shapes() if a.behaviour == "moves")
    a, b, c = (mover.at(t, clip.frames).box for t in (2, 2.5, 3))
    assert all(min(p, r) <= q <= max(p, r) for p, q, r in zip(a, b, c, strict=True))
    frames = render_clip(clip)
    free = np.ones(clip.grid**2, bool)
    for j in range(clip.frames):
        for p in clip.patches(clip.actors, [j]):
            free[p % clip.grid**2] = False
    g = clip.grid
    parts = frames.reshape(clip.frames, g, 14, g, 14, 3).transpose(0, 1, 3, 2, 4, 5)
    parts = parts.reshape(clip.frames, g * g, -1)[:, free]
    # All but the slight touches at a thing's edge that no region counts.
    assert (parts == parts[0]).mean() > 0.99


def test_questions_about_one_frame_ask_for_that_frame_alone():
    for clip in CLIPS[:20]:
        for q in asked(clip):
            frames = {p // clip.grid**2 for p in q.evidence}
            if q.type.endswith("_end") and q.evidence:
                assert frames == {clip.frames - 1}
            if q.type.endswith("_start") and q.evidence:
                assert frames == {0}
            assert set(q.evidence) <= set(q.region)
            assert (not q.evidence) == (q.answer == "no")
