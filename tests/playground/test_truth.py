"""objects.json and ``named``: against pixels, and against a second reading of the questions."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.samples import Sample
from llava.eval.truth import Object, Objects, named_of, read_objects, unnamed_of
from playground.generate import ANYRES, SAMPLE_SEED
from playground.pocket import anyres
from playground.pocket import vocabulary as v
from playground.pocket.formats import image_id
from playground.pocket.objects import objects_of
from playground.pocket.pool import SQUARE
from playground.pocket.render import render
from playground.pocket.scene import PATCH, Scene, make_scene
from playground.pocket.sets import FORMS
from tests.playground.bundled import ROOT

SQUARES = ("textvqa", "gqa", "pope", "vqav2", "mme", "seed", "mmbench", "vizwiz")
ANY = ROOT.parent / ANYRES.name
FOLDERS = [*(ROOT / name for name in SQUARES), *(ANY / name for name in sorted(anyres.SETS))]
IDS = [f"{f.parent.name}/{f.name}" for f in FOLDERS]


@cache
def objects(folder: Path) -> dict[str, Objects]:
    return read_objects(folder / "objects.json")


@cache
def samples(folder: Path) -> list[Sample]:
    benchmark = get_benchmark(folder.name)
    return benchmark.read(benchmark.files(folder))


def notes(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "regions.json").read_text())


# --- objects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_every_picture_is_there_by_the_name_that_samples_give_it(folder: Path) -> None:
    """But VizWiz's blurred ones."""
    asked = {s.image for s in samples(folder)}
    out = {e["question_id"] for e in notes(folder) if e["type"] == "blurred"}
    assert bool(out) == (folder.name == "vizwiz") and not out & set(objects(folder))
    assert asked - out == asked & set(objects(folder))
    unasked = set(objects(folder)) - asked  # pictures of parts without answers
    assert all("test" in name for name in unasked)
    assert len(unasked) <= 6


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_picture_files_show_each_thing_in_its_colour(folder: Path) -> None:
    """Nothing of the generator is used but the colours' values: the box holds pixels of the thing's
    colour, more than of any other."""
    files = get_benchmark(folder.name).files(folder)
    pictures = get_benchmark(folder.name).pictures(files)
    colors = np.array(list(v.COLORS.values()), float)
    right = count = 0
    for name in sorted({s.image for s in samples(folder)} & set(objects(folder)))[:40]:
        with Image.open(pictures.find(name)) as opened:
            picture = np.asarray(opened.convert("RGB"), float)
        entry = objects(folder)[name]
        assert picture.shape[:2] == entry.size[::-1]
        for o in entry.objects:
            x0, y0, x1, y1 = o.box
            off = np.abs(picture[y0:y1, x0:x1, None] - colors).max(-1)
            near = (off < 45).sum((0, 1))
            right += list(v.COLORS)[int(near.argmax())] == o.name.split()[0] and near.max() > 8
            count += 1
    assert count > 100 and right > 0.98 * count


def changed(scene: Scene, k: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Pixels of each square, (rows * columns,), that differ without thing ``k``; their box.

    The thing goes last, so that the others keep the numbers that their drawing takes.
    """
    others = scene.things[:k] + scene.things[k + 1 :]
    pictures = [
        render(replace(scene, things=things)).astype(int)
        for things in ((*others, scene.things[k]), others)
    ]
    differ = np.abs(pictures[0] - pictures[1]).sum(-1) > 0
    rows, columns = scene.grid
    padded = np.zeros((rows * PATCH, columns * PATCH), bool)
    padded[: differ.shape[0], : differ.shape[1]] = differ
    counts = padded.reshape(rows, PATCH, columns, PATCH).sum((1, 3)).reshape(-1)
    ys, xs = np.nonzero(differ)
    return counts, (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)


def made_again() -> list[tuple[Path, str, Scene]]:
    """Pictures of four sets with the scenes that their seeds give."""
    out = []
    for folder, seed, sizes in (
        (ROOT / "textvqa", SAMPLE_SEED, ((336, 336),)),
        (ANY / "textvqa", anyres.SEED, anyres.SIZES),
    ):
        for i in range(0, 5, 2):
            size = sizes[i % len(sizes)]
            scene = make_scene(seed, i, size=size, world=size)
            out.append((folder, f"{image_id(seed, i)}.jpg", scene))
    for folder, pool in ((ROOT / "gqa", SQUARE), (ANY / "gqa", anyres.POOL)):
        out += [(folder, f"n{161_000 + 7 * i}.jpg", pool.scene(i)) for i in (1, 4)]
    return out


@pytest.mark.parametrize(("folder", "name", "scene"), made_again())
def test_patches_are_those_that_change_when_the_thing_is_left_out(
    folder: Path, name: str, scene: Scene
) -> None:
    entry = objects(folder)[name]
    kept = []
    assert (entry.size, entry.grid) == (scene.size, scene.grid)
    assert len(entry.objects) == len(scene.things) >= 8
    for k, (o, t) in enumerate(zip(entry.objects, scene.things, strict=True)):
        assert o.name == f"{t.color} {t.shape or 'sign'}"
        counts, box = changed(scene, k)
        # Thin points of a shape may be too faint to change a pixel.
        assert all(0 <= (a - b) * side <= 3 for a, b, side in zip(box, o.box, (1, 1, -1, -1)))
        assert all(counts[p] >= 5 for p in o.patches)
        beside = np.delete(counts, list(o.patches))
        assert beside.max() <= 0.1 * PATCH**2
        kept.append(counts[list(o.patches)].sum() / counts.sum())
    assert min(kept) > 0.75 and np.mean(kept) > 0.92


def test_pool_sets_that_share_a_scene_say_the_same() -> None:
    for i in (0, 3):
        there = objects_of(SQUARE.scene(i))
        for folder, name in (
            ("gqa", f"n{161_000 + 7 * i}.jpg"),
            ("vizwiz", f"VizWiz_val_{i:08d}.jpg"),
            ("seed", f"SEED-Bench-image/{1_454_426 + 13 * i}_{2_591_111_986 + 101 * i}"),
        ):
            pictures = json.loads((ROOT / folder / "objects.json").read_text())
            assert pictures[name] == there


def test_one_picture_a_line_and_small() -> None:
    total = 0
    for folder in FOLDERS:
        text = (folder / "objects.json").read_text()
        assert len(text.splitlines()) == len(objects(folder)) + 2
        total += len(text)
    assert total < 1.9e6


# --- what the words name -------------------------------------------------------------------------

ONE = {plural: shape for shape, plural in v.PLURALS.items()}
VALUE = re.compile(r"^Is the (?P<subject>.*) (a |an )?(?P<value>\w+)\?$")


def is_sign(o: Object) -> bool:
    return o.name.endswith(" sign")


def meant(text: str, there: Objects) -> list[Object]:
    """Things that a question's words name: "red star", "star", "stars", "red object", "red sign".
    Of existence all of the shape, whatever the colour."""
    words = text.rstrip("?").replace(",", "").split()
    out: list[Object] = []
    exist = text.startswith(("Is there", "Are there either", "Are there both", "Do you see"))
    for before, word in zip(["", *words], words, strict=False):
        kind = ONE.get(word, word)
        color = before if before in v.COLORS and not exist else None
        if kind in (*v.SHAPES, "sign", "object"):
            out += [
                o for o in there.objects
                if color in (None, o.name.split()[0])
                and (kind == o.name.split()[1] or (kind == "object" and color and not is_sign(o)))
            ]  # fmt: skip
    return out


def question_of(entry: dict[str, Any]) -> str:
    """The question's line, without a value to confirm or two to choose from."""
    text = entry.get("question") or entry["prompt"].split("\n")[0]
    if entry["type"].startswith("is_") and entry["type"] not in ("is_side", "is_height"):
        return VALUE.sub(r"\g<subject>", text).removesuffix(" a").removesuffix(" an")
    return re.sub(r" \w+ or \w+\?$", "", text) if entry["type"] == "choose_color" else text


ASKED = ("textvqa", "gqa", "pope", "vqav2", "seed")


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name in ASKED], ids=str)
def test_named_is_what_a_second_reading_of_the_words_finds(folder: Path) -> None:
    """In objects.json the things that the words mean: their patches are ``named``."""
    images = {str(s.question_id): s.image for s in samples(folder)}
    seen: Counter[str] = Counter()
    for e in notes(folder):
        image = f"{e['image_id']}.jpg" if "image_id" in e else images.get(str(e["question_id"]))
        if image is None:  # of a part without answers
            continue
        text = question_of(e)
        found = {p for o in meant(text, objects(folder)[image]) for p in o.patches}
        assert set(named_of(e)) == found, (e, text)
        seen[e["type"]] += 1
    assert sum(seen.values()) >= 200


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_named_is_a_part_of_the_region_and_written_only_where_it_is_another(folder: Path) -> None:
    for e in notes(folder):
        named, region = named_of(e), set(e["region"])
        assert set(named) <= region and ("named" in e) == (set(named) != region)
        kind = e["type"].removeprefix("is_")
        if kind.startswith(("near_", "chain_")) or kind in ("landmark", "commonsense_reasoning"):
            assert named and unnamed_of(e), e
        if kind.startswith("place_") or kind in ("posters", "most"):
            assert not named and unnamed_of(e)
        if kind in ("color", "count", "exist", "side", "height", "same", "and", "or", "quarter"):
            assert not unnamed_of(e)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_named_holds_of_any_scene_in_every_form(name: str) -> None:
    """Of windows on the world, too."""
    some = 0
    for i in range(8):
        scene = make_scene(1_000_007, i, size=(336, 252), origin=(0, 84))
        for q in FORMS[name](scene, np.random.default_rng(i)):
            if q.named is None:
                continue
            assert set(q.named) <= set(q.region) and list(q.named) == sorted(set(q.named))
            some += q.named != q.region
    assert some or name == "pope"
