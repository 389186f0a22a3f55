"""What can be asked of a scene, in no benchmark's form yet: facts with an answer and wrong ones.

The facts of `questions` (TextVQA's) and more: where things stand to each other, what stands next to
what (in one or two steps), which of two kinds is more frequent, whether two things match.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import vocabulary as v
from .labels import thing_patches
from .questions import _in_place
from .scene import Scene, Thing

APART = 30  # pixels between centres from which one thing is left of, or above, another
NEAR = 120  # pixels within which a nearest thing is asked for
DIRECTIONS = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
SIDES, HEIGHTS = ("left", "right"), ("above", "below")
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
WARM = ("red", "orange", "yellow", "pink")


@dataclass(frozen=True)
class Fact:
    """One thing to ask.

    Attributes:
        type: its skill, which names the templates of `asking`.
        words: what the templates need.
        wrong: answers of the same kind that are wrong here, none of them twice.
        region: patch ids (row-major) that are needed to answer.
        evidence: those that show the answer; other than ``region`` for existence alone.
        named: those of the region's things that the question's words name, by colour, shape or
            "sign". "Shape" and "object" name nothing, nor does a place, an option or a value to
            confirm: of "the nearest object above the red star" the star alone is named.
    """

    type: str
    words: Mapping[str, str]
    answer: str
    wrong: tuple[str, ...]
    region: tuple[int, ...]
    evidence: tuple[int, ...]
    named: tuple[int, ...]


def patches(scene: Scene, about: list[Thing]) -> tuple[int, ...]:
    return tuple(sorted({p for t in about for p in thing_patches(t, scene.grid)}))


def make_fact(
    scene: Scene, kind: str, answer: str, wrong: tuple[str, ...] | list[str], about: list[Thing],
    shown: list[Thing] | None = None, names: list[Thing] | None = None, **words: str,
) -> Fact:  # fmt: skip
    """``shown`` and ``names``: the things of the evidence and those named; None for ``about``."""
    region = patches(scene, about)
    evidence = region if shown is None else patches(scene, shown)
    said = region if names is None else patches(scene, names)
    others = tuple(w for w in wrong if w != answer)
    return Fact(kind, words, answer, others, region, evidence, said)


def center(t: Thing) -> tuple[float, float]:
    return (t.box[0] + t.box[2]) / 2, (t.box[1] + t.box[3]) / 2


def name_of(t: Thing) -> str:
    return f"{t.color} {t.shape or 'sign'}"


def named(scene: Scene) -> dict[str, Thing]:
    """Things that colour and shape tell from all others, by "red circle" or "blue sign"."""
    found: dict[str, list[Thing]] = {}
    for t in scene.things:
        found.setdefault(name_of(t), []).append(t)
    return {name: things[0] for name, things in found.items() if len(things) == 1}


def by_shape(scene: Scene) -> dict[str, list[Thing]]:
    return {s: [t for t in scene.shapes() if t.shape == s] for s in v.SHAPES}


def nearest(scene: Scene, of: Thing, where: str) -> Thing | None:
    """The shape nearest to a thing among all on one side of it; None where that is no clear case:
    it must stand within 45 degrees of the direction, and the next one clearly farther off."""
    dx, dy = DIRECTIONS[where]
    x, y = center(of)
    found = []
    for t in scene.things:
        a, b = center(t)
        along, across = (a - x) * dx + (b - y) * dy, abs((a - x) * dy) + abs((b - y) * dx)
        if t is not of and along > 4:
            found.append((float(np.hypot(along, across)), along >= across, t))
    found.sort(key=lambda f: f[0])
    if not found or not found[0][1] or found[0][0] > NEAR or found[0][2].kind != "shape":
        return None
    if len(found) > 1 and found[1][0] < 1.25 * found[0][0] + 4:
        return None
    return found[0][2]


def facts(scene: Scene, rng: np.random.Generator) -> list[Fact]:
    """Everything that the scene allows to ask; pairs and neighbours in a sample."""
    out: list[Fact] = []
    groups = by_shape(scene)
    colors = tuple(v.COLORS)
    for s, found in groups.items():
        if len(found) == 1:
            out.append(make_fact(scene, "color", found[0].color, colors, found, a=s))
    for c in colors:
        found = [t for t in scene.shapes() if t.color == c]
        if len(found) == 1:
            out.append(make_fact(scene, "shape", found[0].shape, v.SHAPES, found, color=c))
    for t in scene.signs():
        out.append(sign_fact(scene, t, rng))
    for place, box in scene.places().items():
        if (one := _in_place(scene, box)) is not None:
            for what, answer, wrong in (
                ("color", one.color, colors), ("shape", one.shape, v.SHAPES)
            ):  # fmt: skip
                kind = f"place_{what}"
                out.append(make_fact(scene, kind, answer, wrong, [one], names=[], place=place))
    for s, found in groups.items():
        if 1 <= len(found) <= 5:
            numbers = [str(n) for n in range(1, 7)]
            out.append(make_fact(scene, "count", str(len(found)), numbers, found, a=s))
    return out + whole(scene) + existence(scene, rng) + pairs(scene, rng) + neighbours(scene, rng)


def whole(scene: Scene) -> list[Fact]:
    """The most frequent shape, the quarter in which a thing stands, warm and cold colours."""
    out: list[Fact] = []
    groups = by_shape(scene)
    ranked = sorted(v.SHAPES, key=lambda s: -len(groups[s]))
    if len(groups[ranked[0]]) > len(groups[ranked[1]]):
        out.append(make_fact(scene, "most", ranked[0], v.SHAPES, scene.shapes(), names=[]))
    middle, center_y = scene.size[0] / 2, scene.size[1] / 2
    for name, t in named(scene).items():
        x, y = center(t)
        if min(abs(x - middle), abs(y - center_y)) >= 20:
            quarter = QUARTERS[2 * int(y > center_y) + int(x > middle)]
            out.append(make_fact(scene, "quarter", quarter, QUARTERS, [t], a=name))
    for s, found in groups.items():
        if len(found) == 1:
            warm = "warm" if found[0].color in WARM else "cold"
            out.append(make_fact(scene, "warm", warm, ("warm", "cold"), found, a=s))
    return out


def sign_fact(scene: Scene, t: Thing, rng: np.random.Generator) -> Fact:
    """What a sign says; wrong answers look like it."""
    if t.text_kind == "number":
        wrong = [t.text[::-1], *map(str, rng.permutation(np.arange(10, 100))[:8])]
        wrong = [w for w in wrong if not w.startswith("0")]
    elif t.text_kind == "letter":
        wrong = [str(c) for c in rng.permutation(list(v.LETTERS))]
    else:
        wrong = [str(w) for w in rng.permutation([w for w in v.WORDS if len(w) == len(t.text)])]
    return make_fact(scene, t.text_kind, t.text, list(dict.fromkeys(wrong)), [t], color=t.color)


def existence(scene: Scene, rng: np.random.Generator) -> list[Fact]:
    """As many yes as no; a no has the shape and the colour in the picture, but apart."""
    groups = by_shape(scene)
    present = sorted({(t.color, t.shape) for t in scene.shapes()})
    shades = {t.color for t in scene.shapes()}
    absent = [
        (c, s) for c in v.COLORS for s in v.SHAPES
        if c in shades and groups[s] and (c, s) not in present
    ]  # fmt: skip
    n, out = min(len(present), len(absent), 3), []
    for answer, found in (("yes", present), ("no", absent)):
        for i in rng.permutation(len(found))[:n]:
            c, s = found[int(i)]
            # The same rule for yes and no, so that the region does not give the answer away.
            meant = [t for t in groups[s] if t.color == c]
            out.append(
                make_fact(scene, "exist", answer, ("yes", "no"), groups[s], meant, a=f"{c} {s}")
            )
    return out


def pairs(scene: Scene, rng: np.random.Generator, most: int = 12) -> list[Fact]:
    """How two things stand to each other, whether they match, of which kind there are more."""
    out: list[Fact] = []
    known = list(named(scene).items())
    for _ in range(most if len(known) > 1 else 0):
        (a, first), (b, second) = (known[int(i)] for i in rng.permutation(len(known))[:2])
        (ax, ay), (bx, by) = center(first), center(second)
        both = [first, second]
        if abs(ax - bx) >= APART:
            side = SIDES[int(ax > bx)]
            out.append(make_fact(scene, "side", side, SIDES, both, a=a, b=b))
        if abs(ay - by) >= APART:
            height = HEIGHTS[int(ay > by)]
            out.append(make_fact(scene, "height", height, HEIGHTS, both, a=a, b=b))
        dx, dy = ax - bx, ay - by
        if max(abs(dx), abs(dy)) >= max(APART, 2 * min(abs(dx), abs(dy))):
            where = SIDES[int(dx > 0)] if abs(dx) > abs(dy) else HEIGHTS[int(dy > 0)]
            out.append(make_fact(scene, "where", where, SIDES + HEIGHTS, both, a=a, b=b))
    groups = by_shape(scene)
    single = [found[0] for found in groups.values() if len(found) == 1]
    couples = [(a, b) for i, a in enumerate(single) for b in single[:i]]
    equal = [c for c in couples if c[0].color == c[1].color]
    other = [c for c in couples if c[0].color != c[1].color]
    other = [other[int(i)] for i in rng.permutation(len(other))[: max(1, len(equal))]]
    for couple in equal + other:
        same = "yes" if couple[0].color == couple[1].color else "no"
        words = {"a": couple[0].shape, "b": couple[1].shape}
        out.append(make_fact(scene, "same", same, ("yes", "no"), list(couple), None, None, **words))
    kinds = [s for s in v.SHAPES if groups[s]]
    for _ in range(4 if len(kinds) > 1 else 0):
        a, b = (kinds[int(i)] for i in rng.permutation(len(kinds))[:2])
        if len(groups[a]) != len(groups[b]):
            more = v.PLURALS[a] if len(groups[a]) > len(groups[b]) else v.PLURALS[b]
            about, names = groups[a] + groups[b], (v.PLURALS[a], v.PLURALS[b])
            out.append(make_fact(scene, "more", more, names, about, a=names[0], b=names[1]))
    return out


def neighbours(scene: Scene, rng: np.random.Generator, most: int = 4) -> list[Fact]:
    """Colour or shape of what stands next to a thing, or next to what stands next to it."""
    single, double = [], []
    for name, thing in named(scene).items():
        for where in DIRECTIONS:
            if (one := nearest(scene, thing, where)) is None:
                continue
            single.append(({"where": where, "b": name}, [one], [thing, one], [thing]))
            for other in DIRECTIONS:
                two = nearest(scene, one, other)
                if two is not None and two is not thing:
                    words = {"where": other, "where2": where, "b": name}
                    double.append((words, [two], [thing, one, two], [thing]))
    out = []
    for kind, found in (("near", single), ("chain", double)):
        for i in rng.permutation(len(found))[:most]:
            words, (end,), about, anchor = found[int(i)]
            if rng.random() < 0.5:
                wrong, answer, what = tuple(v.COLORS), end.color, "color"
            else:
                wrong, answer, what = v.SHAPES, end.shape, "shape"
            kind_of = f"{kind}_{what}"
            out.append(make_fact(scene, kind_of, answer, wrong, about, None, anchor, **words))
    return out
