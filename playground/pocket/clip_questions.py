"""Questions about a clip, their answers, and the patches of the frames that show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import vocabulary as v
from .asking import Asked, a_or_an
from .clips import DIRECTIONS, Actor, Clip

CLIP_TYPES = (
    "color", "shape", "exist", "letter", "number", "word", "text_start", "text_end", "count_end",
    "exist_start", "exist_end", "appears_shape", "appears_color", "disappears_shape",
    "disappears_color", "moves_shape", "moves_color", "direction",
)  # fmt: skip
"""Skills: of a thing whenever it is there; of a sign that never changes; of the first or the last
frame alone; of what happens."""
TEXTS = {
    "color": "What color is the {a}?",
    "shape": "What shape is the {color} object?",
    "exist": "Is there {an a}?",
    "text": "What does the {color} sign say?",
    "text_start": "What does the {color} sign say at the start?",
    "text_end": "What does the {color} sign say at the end?",
    "count_end": "How many {a} are there at the end?",
    "exist_start": "Is there {an a} at the start?",
    "exist_end": "Is there {an a} at the end?",
    "appears_shape": "What shape appears?",
    "appears_color": "What color is the object that appears?",
    "disappears_shape": "What shape disappears?",
    "disappears_color": "What color is the object that disappears?",
    "moves_shape": "What shape moves?",
    "moves_color": "What color is the object that moves?",
    "direction": "In which direction does the {a} move?",
}
MOST = 3  # of questions of one type about existence


class _Asker:
    def __init__(self, clip: Clip) -> None:
        self.clip, self.out = clip, list[Asked]()

    def add(
        self, kind: str, answer: str, about: Sequence[Actor], frames: Sequence[int] | None = None,
        shown: Sequence[Actor] | None = None, text: str = "", a: str = "", color: str = "",
    ) -> None:  # fmt: skip
        """``about``: what is needed to answer; ``shown``: what shows the answer, the same unless
        given. Both in ``frames``, or whenever they are there."""
        region = tuple(self.clip.patches(about, frames))
        evidence = region if shown is None else tuple(self.clip.patches(shown, frames))
        prompt = TEXTS[text or kind].replace("{a}", a).replace("{color}", color)
        if "{an a}" in prompt:
            prompt = prompt.replace("{an a}", a_or_an(a))
        self.out.append(Asked(kind, prompt, answer, region, evidence, prompt))


def clip_questions(clip: Clip, rng: np.random.Generator) -> list[Asked]:
    """Every question that the clip allows; of those about existence as many yes as no.

    ``region`` and ``evidence`` number patches over frames, rows and columns (`Clip.patches`).
    """
    ask = _Asker(clip)
    shapes = clip.shapes()
    by_shape = {s: [a for a in shapes if a.thing.shape == s] for s in v.SHAPES}
    by_color = {c: [a for a in shapes if a.thing.color == c] for c in v.COLORS}
    for s, found in by_shape.items():
        if len(found) == 1:
            ask.add("color", found[0].thing.color, found, a=s)
    for c, found in by_color.items():
        if len(found) == 1:
            ask.add("shape", found[0].thing.shape, found, color=c)
    _signs(ask)
    last = clip.frames - 1
    for s, found in by_shape.items():
        n = sum(clip.is_there(a, last) for a in found)
        if 1 <= n <= 5:
            ask.add("count_end", str(n), found, [last], a=v.PLURALS[s])
    _exist(ask, rng, by_shape, by_color)
    for kind, frame in (("exist_start", 0), ("exist_end", last)):
        _exist_then(ask, rng, kind, frame)
    _events(ask)
    return ask.out


def _signs(ask: _Asker) -> None:
    for sign in ask.clip.signs():
        color, text = sign.thing.color, sign.thing.text
        if not sign.later:
            ask.add(sign.thing.text_kind, text, [sign], text="text", color=color)
        else:
            ask.add("text_start", text, [sign], [0], color=color)
            ask.add("text_end", sign.later, [sign], [ask.clip.frames - 1], color=color)


def _exist(
    ask: _Asker, rng: np.random.Generator, by_shape: dict[str, list[Actor]],
    by_color: dict[str, list[Actor]],
) -> None:  # fmt: skip
    """Whether a thing is there at any time; a no has shape and colour in the clip, apart."""
    present = sorted({(a.thing.color, a.thing.shape) for a in ask.clip.shapes()})
    absent = [
        (c, s) for c in v.COLORS for s in v.SHAPES
        if by_color[c] and by_shape[s] and (c, s) not in present
    ]  # fmt: skip
    n = min(len(present), len(absent), MOST)
    for answer, pairs in (("yes", present), ("no", absent)):
        for i in rng.permutation(len(pairs))[:n]:
            c, s = pairs[int(i)]
            meant = [a for a in by_shape[s] if a.thing.color == c]
            ask.add("exist", answer, by_shape[s], shown=meant, a=f"{c} {s}")


def _exist_then(ask: _Asker, rng: np.random.Generator, kind: str, frame: int) -> None:
    """Whether a thing of the clip is there in one frame; a no is there in others."""
    names: dict[str, list[Actor]] = {}
    for a in ask.clip.shapes():
        names.setdefault(f"{a.thing.color} {a.thing.shape}", []).append(a)
    there = {k: [a for a in found if ask.clip.is_there(a, frame)] for k, found in names.items()}
    yes = sorted(k for k, found in there.items() if found)
    no = sorted(k for k, found in there.items() if not found)
    n = min(len(yes), len(no), MOST)
    for answer, known in (("yes", yes), ("no", no)):
        for i in rng.permutation(len(known))[:n]:
            name = known[int(i)]
            shown = there[name]
            ask.add(kind, answer, names[name], [frame] if shown else None, shown, a=name)


def _events(ask: _Asker) -> None:
    """What appears, disappears or moves, where it is one thing."""
    shapes = ask.clip.shapes()
    found = {
        "appears": [a for a in shapes if a.first > 0],
        "disappears": [a for a in shapes if a.last < ask.clip.frames],
        "moves": [a for a in shapes if a.move != (0, 0)],
    }
    for event, actors in found.items():
        if len(actors) == 1:
            thing = actors[0].thing
            ask.add(f"{event}_shape", thing.shape, actors)
            ask.add(f"{event}_color", thing.color, actors)
    for a in found["moves"]:
        if sum(b.thing.shape == a.thing.shape for b in shapes) == 1:
            sign = tuple(int(np.sign(d)) for d in a.move)
            way = next(name for name, d in DIRECTIONS.items() if d == sign)
            ask.add("direction", way, [a], a=a.thing.shape)
