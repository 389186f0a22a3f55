"""POPE: is there such an object? Three that are there and three that are not on each picture, the
latter chosen at random, by frequency (popular) or by company (adversarial).

The objects are 80, as in COCO: 8 shapes, 64 shapes of a colour, 8 signs of a colour.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import vocabulary as v
from ..asking import SHORT, Asked, a_or_an
from ..facts import name_of, patches
from ..pool import SQUARE, Pool, SampleSet
from ..scene import Scene, Thing

CATEGORIES = ("adversarial", "popular", "random")
COLORED = tuple(f"{c} {s}" for s in (*v.SHAPES, "sign") for c in v.COLORS)
OBJECTS = (*v.SHAPES, *COLORED)
EACH = 3


def objects(scene: Scene) -> list[str]:
    """What is there, in the order of ``OBJECTS``."""
    there = {name_of(t) for t in scene.things} | {t.shape for t in scene.shapes()}
    return [name for name in OBJECTS if name in there]


def about(scene: Scene, name: str) -> tuple[list[Thing], list[Thing]]:
    """Things to look at, all of the object's shape whether there is one or not; and those meant."""
    shape = name.split()[-1]
    alike = [t for t in scene.things if (t.shape or "sign") == shape]
    return alike, [t for t in alike if name in (t.shape, name_of(t))]


@lru_cache(maxsize=2)
def company(pool: Pool = SQUARE) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """How many of the pool's pictures have an object; and, with an object, each other one."""
    often: Counter[str] = Counter()
    beside: dict[str, Counter[str]] = {name: Counter() for name in OBJECTS}
    for i in range(pool.count):
        there = objects(pool.scene(i))
        often.update(there)
        for name in there:
            beside[name].update(other for other in there if other != name)
    return often, beside


def negatives(
    category: str, there: list[str], asked_for: list[str], rng: np.random.Generator,
    pool: Pool = SQUARE,
) -> list[str]:  # fmt: skip
    """Three objects that are not there."""
    often, beside = company(pool)
    absent = [name for name in OBJECTS if name not in there]
    if category == "random":
        return [absent[int(i)] for i in rng.permutation(len(absent))[:EACH]]
    if category == "popular":
        ranked = sorted(absent, key=lambda name: (-often[name], OBJECTS.index(name)))
        return ranked[:EACH]
    out: list[str] = []
    for name in asked_for:  # for each that is there, what comes most often with it
        count = beside[name]
        rest = [other for other in absent if other not in out]
        out.append(min(rest, key=lambda other: (-count[other], OBJECTS.index(other))))
    return out


def question(scene: Scene, name: str) -> Asked:
    text = f"Is there {a_or_an(name)} in the image?"
    alike, meant = about(scene, name)
    kind = "object" if name in v.SHAPES else "sign" if name.endswith("sign") else "colored object"
    return Asked(
        kind, f"{text}\n{SHORT}", "yes" if meant else "no", patches(scene, alike),
        patches(scene, meant), text,
    )  # fmt: skip


def positives(scene: Scene, rng: np.random.Generator) -> list[str]:
    there = objects(scene)
    return [there[int(i)] for i in rng.permutation(len(there))[:EACH]]


def asked(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """As many yes as no; half of the absent objects have their shape in the picture."""
    there = objects(scene)
    shapes = {name.split()[-1] for name in there}
    hard = [n for n in OBJECTS if n not in there and n.split()[-1] in shapes]
    easy = [n for n in OBJECTS if n not in there and n.split()[-1] not in shapes]
    names = [n for _ in range(2) for n in positives(scene, rng)]
    for pool in (hard, easy):
        names += [pool[int(i)] for i in rng.permutation(len(pool))[:EACH]]
    return [question(scene, name) for name in dict.fromkeys(names)]


def write(folder: Path, pictures: int = 30, pool: Pool = SQUARE) -> int:
    """LLaVA's question file, POPE's three label files, and the pictures.

    Categories alternate picture by picture, so that the first questions are of all three; labels
    belong to the questions of their category by position, as always."""
    out = SampleSet(folder, pool)
    lines: list[dict[str, Any]] = []
    labels: dict[str, list[dict[str, Any]]] = {category: [] for category in CATEGORIES}
    for i in range(pictures):
        scene, image = pool.scene(i), f"COCO_val2014_{310_196 + 11 * i:012d}.jpg"
        out.picture(f"val2014/{image}", i)
        there, yes = objects(scene), positives(scene, pool.rng("pope", i))
        for category, rows in labels.items():
            no = negatives(category, there, yes, pool.rng(f"pope {category}", i), pool)
            for name in (name for pair in zip(yes, no, strict=True) for name in pair):
                q = question(scene, name)
                rows.append({"question_id": len(rows) + 1, "image": image, "text": q.text,
                             "label": q.answer})  # fmt: skip
                lines.append({"question_id": len(lines), "image": image, "text": q.prompt,
                              "category": category})  # fmt: skip
                out.note(len(lines) - 1, q, picture=i)
    for category, rows in labels.items():
        out.lines(f"coco/coco_pope_{category}.json", rows)
    out.lines("llava_pope_test.jsonl", lines)
    return out.finish()
