"""Questions about a scene, their answers, and the patches each of them asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import vocabulary as v
from .labels import thing_patches
from .scene import Scene, Thing

TYPES = (
    "color",
    "shape",
    "exist",
    "count",
    "letter",
    "number",
    "word",
    "place_color",
    "place_shape",
)
_TEXT = {
    "color": ("What color is the {shape}?", "What is the color of the {shape}?"),
    "shape": ("What shape is the {color} object?", "What is the shape of the {color} object?"),
    "exist": ("Is there {a} {color} {shape}?", "Do you see {a} {color} {shape}?"),
    "count": ("How many {plural} are there?", "How many {plural} do you see?"),
    "letter": ("What letter is on the {color} sign?", "What does the {color} sign say?"),
    "number": ("What number is on the {color} sign?", "What does the {color} sign say?"),
    "word": ("What word is on the {color} sign?", "What does the {color} sign say?"),
    "place_color": ("What color is the object in the {place}?",),
    "place_shape": ("What shape is the object in the {place}?",),
}
SUFFIX = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Question:
    """One question. ``region`` holds the patch ids (row-major) that are needed to answer it;
    ``evidence`` those that show the answer: of existence the things meant, none where the answer
    is no. Elsewhere they are the same. ``named`` holds those of things that its words name: all, or
    none where they give a place alone."""

    type: str
    text: str
    answer: str
    region: tuple[int, ...]
    evidence: tuple[int, ...]
    named: tuple[int, ...]


def _in_place(scene: Scene, place: tuple[float, float, float, float]) -> Thing | None:
    """The one shape wholly in the place, if nothing else touches the place."""
    x0, y0, x1, y1 = place
    near = [
        t for t in scene.things
        if t.box[0] < x1 and t.box[2] > x0 and t.box[1] < y1 and t.box[3] > y0
    ]  # fmt: skip
    if len(near) != 1 or near[0].kind != "shape":
        return None
    b = near[0].box
    return near[0] if b[0] >= x0 and b[1] >= y0 and b[2] <= x1 and b[3] <= y1 else None


def all_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Every question that the scene allows, each type's answers balanced as far as it can be."""
    out: list[Question] = []
    shapes = scene.shapes()
    by_shape = {s: [t for t in shapes if t.shape == s] for s in v.SHAPES}
    by_color = {c: [t for t in shapes if t.color == c] for c in v.COLORS}

    def patches(about: list[Thing]) -> tuple[int, ...]:
        return tuple(sorted({p for t in about for p in thing_patches(t, scene.grid)}))

    def add(
        kind: str, answer: str, about: list[Thing], shown: list[Thing] | None = None, **words: str
    ) -> None:
        texts = _TEXT[kind]
        text = texts[int(rng.integers(len(texts)))].format(**words)
        region = patches(about)
        evidence = region if shown is None else patches(shown)
        named = () if kind.startswith("place_") else region
        out.append(Question(kind, text, answer, region, evidence, named))

    for s, found in by_shape.items():
        if len(found) == 1:
            add("color", found[0].color, found, shape=s)
    for c, found in by_color.items():
        if len(found) == 1:
            add("shape", found[0].shape, found, color=c)
    _exist(scene, rng, by_shape, by_color, add)
    _count(rng, by_shape, add)
    for t in scene.signs():
        add(t.text_kind, t.text, [t], color=t.color)
    for place, box in scene.places().items():
        if (one := _in_place(scene, box)) is not None:
            add("place_color", one.color, [one], place=place)
            add("place_shape", one.shape, [one], place=place)
    return out


Add = Callable[..., None]
Groups = dict[str, list[Thing]]


def _exist(
    scene: Scene, rng: np.random.Generator, by_shape: Groups, by_color: Groups, add: Add
) -> None:
    """As many yes as no; a no has the shape and the colour in the picture, but apart."""
    present = sorted({(t.color, t.shape) for t in scene.shapes()})
    absent = [
        (c, s) for c in v.COLORS for s in v.SHAPES
        if by_color[c] and by_shape[s] and (c, s) not in present
    ]  # fmt: skip
    n = min(len(present), len(absent), 3)
    for answer, pairs in (("yes", present), ("no", absent)):
        for i in rng.permutation(len(pairs))[:n]:
            c, s = pairs[int(i)]
            # The same rule for yes and no, so that the region does not give the answer away.
            meant = [t for t in by_shape[s] if t.color == c]
            add(
                "exist",
                answer,
                by_shape[s],
                meant,
                a="an" if c == "orange" else "a",
                color=c,
                shape=s,
            )


def _count(rng: np.random.Generator, by_shape: Groups, add: Add) -> None:
    """At most one question for each number from 0 to 5."""
    numbers: dict[int, list[str]] = {}
    for s, found in by_shape.items():
        numbers.setdefault(len(found), []).append(s)
    for n, names in numbers.items():
        if 1 <= n <= 5:
            s = names[int(rng.integers(len(names)))]
            add("count", str(n), by_shape[s], plural=v.PLURALS[s])


def reference_line(rng: np.random.Generator) -> str:
    """TextVQA's line of reference OCR tokens, empty or with texts drawn without the picture."""
    from .scene import _sign_text

    n = int(rng.choice([0, 0, 1, 2, 3]))
    return "Reference OCR token: " + ", ".join(
        _sign_text(rng, ("letter", "number", "word"))[1] for _ in range(n)
    )
