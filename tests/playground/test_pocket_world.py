"""The generator: answers against a second reading of the scene, regions against pixels."""

import numpy as np
import pytest

from playground.pocket import vocabulary as v
from playground.pocket.labels import HEADS, IGNORE, cls_target, dense_labels, thing_patches
from playground.pocket.questions import TYPES, all_questions
from playground.pocket.render import render, shape_mask
from playground.pocket.scene import PATCH, Scene, Thing, make_scene

SEEDS = range(60)


def questions(scene: Scene, seed: int = 0):
    return all_questions(scene, np.random.default_rng(seed))


def test_a_seed_gives_one_scene_and_one_picture():
    a, b = make_scene(3, 1), make_scene(3, 1)
    assert a == b
    assert np.array_equal(render(a), render(b))
    assert make_scene(3, 2) != a


def test_things_do_not_touch_and_lie_inside():
    for i in SEEDS:
        scene = make_scene(0, i)
        mask = np.zeros(scene.size[::-1], int)
        for t in scene.things:
            x0, y0, x1, y1 = t.box
            assert 0 < x0 < x1 < scene.size[0] and 0 < y0 < y1 < scene.size[1]
            mask[y0:y1, x0:x1] += 1
        assert mask.max() == 1


def _answer(scene: Scene, kind: str, text: str) -> str:
    """Reads the question's words and answers from the list of things: independent of the asker."""
    words = text.lower().rstrip("?").split()
    shapes = [t for t in scene.things if t.kind == "shape"]
    one = {p: s for s, p in v.PLURALS.items()}
    shape = next((one.get(w, w) for w in words if one.get(w, w) in v.SHAPES), None)
    color = next((w for w in words if w in v.COLORS), None)
    if kind == "color":
        (found,) = [t for t in shapes if t.shape == shape]
        return found.color
    if kind == "shape":
        (found,) = [t for t in shapes if t.color == color]
        return found.shape
    if kind == "exist":
        return "yes" if any(t.shape == shape and t.color == color for t in shapes) else "no"
    if kind == "count":
        return str(sum(t.shape == shape for t in shapes))
    if kind in ("letter", "number", "word"):
        (found,) = [t for t in scene.things if t.kind == "sign" and t.color == color]
        return found.text
    right, bottom = "right" in words, "bottom" in words
    wide, high = scene.size

    def inside(t: Thing) -> bool:
        x = t.box[0] >= 0.75 * wide if right else t.box[2] <= wide / 4
        y = t.box[1] >= 0.75 * high if bottom else t.box[3] <= high / 4
        return x and y

    (found,) = [t for t in scene.things if inside(t)]
    return found.color if kind == "place_color" else found.shape


def test_every_answer_holds_by_a_second_reading():
    seen = set()
    for i in SEEDS:
        scene = make_scene(1, i)
        for q in questions(scene, i):
            assert _answer(scene, q.type, q.text) == q.answer, (i, q)
            seen.add(q.type)
    assert seen == set(TYPES)


def test_yes_and_no_are_balanced_and_a_no_has_both_its_parts_in_the_picture():
    answers = []
    for i in SEEDS:
        scene = make_scene(2, i)
        for q in questions(scene, i):
            if q.type == "exist":
                answers.append(q.answer)
                words = q.text.rstrip("?").split()
                shapes = scene.shapes()
                assert any(t.color in words for t in shapes)
                assert any(t.shape in words for t in shapes)
    assert answers.count("yes") == answers.count("no") > 100


def test_regions_hold_the_things_and_little_else():
    """The region lies in the thing's box and shows most of its pixels."""
    for i in SEEDS:
        scene = make_scene(4, i)
        for q in questions(scene, i):
            assert q.region == tuple(sorted(set(q.region))) and q.region
            assert q.region[0] >= 0 and q.region[-1] < scene.grid[0] * scene.grid[1]
            if q.type != "color":
                continue
            (t,) = [t for t in scene.shapes() if q.text.rstrip("?").endswith(t.shape)]
            x0, y0, x1, y1 = t.box
            box = {
                y * scene.grid[1] + x
                for y in range(y0 // PATCH, (y1 - 1) // PATCH + 1)
                for x in range(x0 // PATCH, (x1 - 1) // PATCH + 1)
            }
            assert set(q.region) <= box
            mask = shape_mask(t.shape, x1 - x0)
            kept = sum(
                mask[y - y0, x - x0]
                for y in range(y0, y1)
                for x in range(x0, x1)
                if (y // PATCH) * scene.grid[1] + x // PATCH in q.region
            )
            assert kept > 0.8 * mask.sum()


def test_region_of_exist_does_not_tell_the_answer():
    """Yes and no ask for the same patches: all things of the shape."""
    for i in SEEDS:
        scene = make_scene(5, i)
        for q in questions(scene, i):
            if q.type == "exist":
                (shape,) = [s for s in v.SHAPES if s in q.text]
                found = [t for t in scene.shapes() if t.shape == shape]
                patches = {p for t in found for p in thing_patches(t, scene.grid)}
                assert set(q.region) == patches


@pytest.mark.parametrize("color", list(v.COLORS))
def test_dense_labels_agree_with_the_pixels(color):
    """Patches labelled with a sure colour show it: their most coloured pixel is near it."""
    code = list(v.COLORS).index(color) + 1
    seen = 0
    for i in range(12):
        scene = make_scene(6, i)
        picture = render(scene).astype(int)
        labels = dense_labels(scene)["color"]
        for p in np.flatnonzero(labels == code):
            y, x = divmod(int(p), scene.grid[1])
            patch = picture[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].reshape(-1, 3)
            distance = np.abs(patch - np.array(v.COLORS[color])).max(axis=1)
            assert distance.min() < 45, (i, p)
            seen += 1
    assert seen > 10


def test_dense_labels_and_cls_target_speak_of_the_same_things():
    for i in range(20):
        scene = make_scene(7, i)
        labels = dense_labels(scene)
        assert set(labels) == set(HEADS)
        for name, classes in HEADS.items():
            assert labels[name].shape == (576,)
            assert labels[name].min() >= IGNORE and labels[name].max() < classes
        target = cls_target(scene)
        pairs = {(t.color, t.shape) for t in scene.shapes()}
        assert target[: len(v.COLORS) * len(v.SHAPES)].sum() == len(pairs)
        for t in scene.shapes():
            at = list(v.COLORS).index(t.color) * len(v.SHAPES) + v.SHAPES.index(t.shape)
            assert target[at] == 1


def test_a_window_keeps_the_places_of_the_whole():
    corners = {"top left corner": (0, 0), "bottom right corner": (168, 168)}
    for name, origin in corners.items():
        assert set(make_scene(8, 0, size=(168, 168), origin=origin).places()) == {name}
    assert make_scene(8, 0, size=(168, 168), origin=(70, 70)).places() == {}
    assert set(make_scene(8, 0).places()) == set(v.PLACES)
