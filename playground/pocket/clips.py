"""Clips: a still ground on which things stand, move, appear and disappear, and signs change their
text.

A clip is a list of actors. Times are counted in frames: the eight frames that a model is shown are
at the times 0 to 7, and files may hold times between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import vocabulary as v
from .labels import thing_patches
from .render import _clutter, _draw
from .scene import PATCH, Scene, Thing, _Floor, _place, _sign_text, sign_size
from .textures import background

SIDE = 224  # pixels; 16 x 16 patches
FRAMES = 8
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BEHAVIOURS = ("still", "appears", "disappears", "passes", "moves")
_SHARES = (0.3, 0.2, 0.2, 0.15, 0.15)


@dataclass(frozen=True)
class Actor:
    """A thing and what becomes of it.

    Attributes:
        thing: as it is at time 0.
        behaviour: one of ``BEHAVIOURS``; "changes" for a sign with a second text.
        first, last: seen at times first <= t < last.
        move: (x, y) pixels by which it has moved when the clip ends.
        later: the text that a sign shows from the time ``change`` on.
    """

    thing: Thing
    behaviour: str = "still"
    first: int = 0
    last: int = 10**6
    move: tuple[int, int] = (0, 0)
    later: str = ""
    change: int = 0

    def at(self, time: float, frames: int) -> Thing | None:
        """The thing at a time; None while it is not there."""
        if not self.first <= time < self.last:
            return None
        share = time / max(frames - 1, 1)
        dx, dy = round(self.move[0] * share), round(self.move[1] * share)
        x0, y0, x1, y1 = self.thing.box
        text = self.later if self.later and time >= self.change else self.thing.text
        return replace(self.thing, box=(x0 + dx, y0 + dy, x1 + dx, y1 + dy), text=text)


@dataclass(frozen=True)
class Clip:
    """Actors on a square canvas of ``size`` pixels, ``frames`` frames long."""

    size: int
    frames: int
    actors: tuple[Actor, ...]
    seed: tuple[int, ...]

    @property
    def grid(self) -> int:
        return self.size // PATCH

    def scene(self, time: float) -> Scene:
        """What is there at a time."""
        found = (a.at(time, self.frames) for a in self.actors)
        things = tuple(t for t in found if t is not None)
        return Scene((self.size, self.size), things, self.seed)

    def shapes(self) -> list[Actor]:
        return [a for a in self.actors if a.thing.kind == "shape"]

    def signs(self) -> list[Actor]:
        return [a for a in self.actors if a.thing.kind == "sign"]

    def patches(self, actors: Sequence[Actor], frames: Sequence[int] | None = None) -> list[int]:
        """Ids of the patches that show the actors, in all frames or some: frame, row, column as one
        number, frame * grid * grid + row * grid + column."""
        found = set()
        for j in range(self.frames) if frames is None else frames:
            for a in actors:
                if (t := a.at(j, self.frames)) is not None:
                    found |= {
                        j * self.grid**2 + p for p in thing_patches(t, (self.grid, self.grid))
                    }
        return sorted(found)

    def is_there(self, actor: Actor, frame: int) -> bool:
        return actor.at(frame, self.frames) is not None


def _behave(
    rng: np.random.Generator, floor: _Floor, thing: tuple[str, str], frames: int
) -> Actor | None:
    """An actor of that (shape, colour) with a behaviour drawn at random; None where no place is."""
    kind = BEHAVIOURS[int(rng.choice(len(BEHAVIOURS), p=_SHARES))]
    s = int(rng.integers(15, 24))
    dx, dy, length = 0, 0, 0
    if kind == "moves":
        dx, dy = list(DIRECTIONS.values())[int(rng.integers(4))]
        length = int(rng.integers(3 * PATCH, max(3 * PATCH + 1, floor.size[0] // 2)))
    w, h = s + abs(dx) * length, s + abs(dy) * length
    box = _place(rng, floor, w, h, None, 0)
    if box is None:
        return None
    x0 = box[2] - s if dx < 0 else box[0]
    y0 = box[3] - s if dy < 0 else box[1]
    made = Actor(
        Thing("shape", thing[1], (x0, y0, x0 + s, y0 + s), thing[0]), kind,
        move=(dx * length, dy * length),
    )  # fmt: skip
    long = 2 if frames > 4 else 1  # it is there, and not there, for so many frames at least
    if kind == "appears":
        return replace(made, first=int(rng.integers(long, frames - long + 1)))
    if kind == "disappears":
        return replace(made, last=int(rng.integers(long, frames - long + 1)))
    if kind == "passes":
        first = int(rng.integers(1, frames - long))
        return replace(made, first=first, last=int(rng.integers(first + long, frames)))
    return made


def _sign(
    rng: np.random.Generator, floor: _Floor, color: str, frames: int, changes: float
) -> Actor | None:
    """A sign; a share ``changes`` of all changes its text once."""
    kind, text = _sign_text(rng, ("letter", "number", "word"))
    font = int(rng.integers(len(v.FONTS)))
    cap = int(rng.integers(23, 28) if kind == "word" else rng.integers(26, 33))
    w, h = sign_size(text, font, cap)
    later, change = "", 0
    if rng.random() < changes:
        while later in ("", text):
            later = _sign_text(rng, (kind,))[1]
        w2, h2 = sign_size(later, font, cap)
        w, h = max(w, w2), max(h, h2)
        change = int(rng.integers(max(1, frames // 4), frames - frames // 4 + 1))
    box = _place(rng, floor, w, h, None, 0)
    if box is None:
        return None
    thing = Thing("sign", color, box, "", text, kind, font, cap)
    return Actor(thing, "changes" if later else "still", later=later, change=change)


def make_clip(*seed: int, size: int = SIDE, frames: int = FRAMES, changes: float = 0.5) -> Clip:
    """The clip of a seed.

    Three shapes occur once (so "the star" is one thing all the time), two colours likewise; one
    shape comes one to five times, often one after the other, so that it counts up. A smaller canvas
    holds fewer things. ``changes`` is the share of signs that change their text.
    """
    rng = np.random.default_rng([*seed, 7101])
    large = size >= 168
    shapes = [str(s) for s in rng.permutation(v.SHAPES)]
    colors = [str(c) for c in rng.permutation(list(v.COLORS))]
    common, rare = colors[:5], colors[5:]
    floor = _Floor((size, size))
    actors: list[Actor | None] = []
    for i in range(int(rng.integers(1, 3)) if large else int(rng.random() < 0.8)):
        actors.append(_sign(rng, floor, common[i], frames, changes))
    things = [(s, common[int(rng.integers(5))]) for s in shapes[: 3 if large else 2]]
    for i in range(2 if large else 1):
        things.append((shapes[4 + int(rng.integers(4))], rare[i]))
    actors += [_behave(rng, floor, thing, frames) for thing in things]
    n = int(rng.integers(1, 6)) if large else int(rng.integers(0, 4))
    up = rng.random() < 0.6
    starts = sorted(int(t) for t in rng.integers(0, frames, n)) if up else [0] * n
    for start in starts:
        s = int(rng.integers(15, 24))
        if box := _place(rng, floor, s, s, None, 0):
            thing = Thing("shape", common[int(rng.integers(5))], box, shapes[3])
            actors.append(Actor(thing, "appears" if start else "still", first=start))
    return Clip(size, frames, tuple(a for a in actors if a is not None), tuple(seed))


def render_clip(clip: Clip, times: Sequence[float] | None = None) -> np.ndarray:
    """(times, size, size, 3) uint8; the frames 0, 1, 2, ... unless other times are given.

    The ground is the same all the time, and so is the colour of each thing."""
    rng = np.random.default_rng([*clip.seed, 7102])
    ground = background(rng, (clip.size, clip.size))
    _clutter(ground, rng)
    out = []
    for time in range(clip.frames) if times is None else times:
        canvas = ground.copy()
        for k, actor in enumerate(clip.actors):
            thing = actor.at(time, clip.frames)
            if thing is not None:
                _draw(canvas, thing, np.random.default_rng([*clip.seed, 7103, k]))
        out.append(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))
    return np.stack(out)
