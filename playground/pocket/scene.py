"""What is where: a scene is a list of things with boxes, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import vocabulary as v

PATCH = 14
WORLD = 336
Box = tuple[int, int, int, int]
Size = tuple[int, int]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Thing:
    """A small shape, or a sign with one to four characters. ``box`` is in pixels, end excluded."""

    kind: str  # "shape" | "sign"
    color: str
    box: Box
    shape: str = ""
    text: str = ""
    text_kind: str = ""  # "letter" | "number" | "word"
    font: int = 0
    cap: int = 0  # height of capitals in pixels


@dataclass(frozen=True)
class Scene:
    """Things on a canvas of ``size`` (width, height) pixels.

    A canvas may be a window on a larger ``world`` (width, height), with its corner at ``origin``
    (x, y): places are those of the whole, so that what is learned on windows holds for full
    pictures.
    """

    size: Size
    things: tuple[Thing, ...]
    seed: tuple[int, ...]
    origin: tuple[int, int] = (0, 0)
    world: Size = (WORLD, WORLD)

    @property
    def grid(self) -> Grid:
        """(rows, columns) of squares of 14 x 14 pixels; the last ones may be cut."""
        return -(-self.size[1] // PATCH), -(-self.size[0] // PATCH)

    def places(self) -> dict[str, tuple[float, float, float, float]]:
        """Boxes, in pixels of this canvas, of the places that lie wholly inside it."""
        return visible_places(self.size, self.origin, self.world)

    def shapes(self) -> list[Thing]:
        return [t for t in self.things if t.kind == "shape"]

    def signs(self) -> list[Thing]:
        return [t for t in self.things if t.kind == "sign"]


def visible_places(
    size: Size, origin: tuple[int, int], world: Size
) -> dict[str, tuple[float, float, float, float]]:
    out = {}
    (ox, oy), (w, h) = origin, world
    for name, (x0, y0, x1, y1) in v.PLACES.items():
        box = (x0 * w - ox, y0 * h - oy, x1 * w - ox, y1 * h - oy)
        if min(box) >= 0 and box[2] <= size[0] and box[3] <= size[1]:
            out[name] = box
    return out


class _Floor:
    """Free space, at one pixel: keeps things apart by a gap."""

    def __init__(self, size: Size) -> None:
        self.size, self.boxes = size, np.zeros((0, 4), dtype=np.int64)

    def free(self, b: Box, gap: int) -> bool:
        if b[0] < 1 or b[1] < 1 or b[2] > self.size[0] - 1 or b[3] > self.size[1] - 1:
            return False
        o = self.boxes
        hit = (o[:, 0] < b[2] + gap) & (o[:, 2] > b[0] - gap)
        hit &= (o[:, 1] < b[3] + gap) & (o[:, 3] > b[1] - gap)
        return not hit.any()

    def take(self, b: Box) -> None:
        self.boxes = np.concatenate([self.boxes, np.array([b], dtype=np.int64)])


def _place(
    rng: np.random.Generator, floor: _Floor, w: int, h: int, center: tuple[int, int] | None,
    spread: float, within: tuple[float, ...] | None = None,
) -> Box | None:  # fmt: skip
    """A free box of w x h pixels: near ``center``, or anywhere, or ``within`` a box."""
    wide, high = floor.size
    if w > wide - 4 or h > high - 4:
        return None
    for _ in range(24):
        if within is not None:
            x = int(rng.integers(int(within[0]) + 1, int(within[2]) - w))
            y = int(rng.integers(int(within[1]) + 1, int(within[3]) - h))
        elif center is not None:
            x = int(center[0] + rng.normal() * spread - w / 2)
            y = int(center[1] + rng.normal() * spread - h / 2)
        else:
            x, y = int(rng.integers(1, wide - w)), int(rng.integers(1, high - h))
        box = (x, y, x + w, y + h)
        if floor.free(box, 3):
            floor.take(box)
            return box
    return None


def _sign_text(rng: np.random.Generator, kinds: tuple[str, ...]) -> tuple[str, str]:
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "letter":
        return kind, v.LETTERS[int(rng.integers(len(v.LETTERS)))]
    if kind == "number":
        return kind, str(int(rng.integers(10, 100)))
    return kind, v.WORDS[int(rng.integers(len(v.WORDS)))]


def sign_size(text: str, font: int, cap: int) -> tuple[int, int]:
    """Width and height in pixels of the board that holds ``text``."""
    from .render import text_mask

    mask = text_mask(text, font, cap)
    return mask.shape[1] + 8, max(mask.shape[0], cap) + 6


def make_scene(
    *seed: int, size: Size = (WORLD, WORLD), kinds: tuple[str, ...] = ("letter", "number", "word"),
    signs: tuple[int, int] = (2, 5), origin: tuple[int, int] = (0, 0), few: bool = False,
    world: Size = (WORLD, WORLD),
) -> Scene:  # fmt: skip
    """The scene of a seed: crowded clusters of one- and two-patch things beside empty ground.

    ``size`` is that of the canvas, ``world`` of the whole on which it is a window; a picture of
    another size than 336 x 336 is its own world. Things are equally large on every canvas.

    Rare shapes occur once (so "the star" is one thing), rare colours likewise; the others repeat.
    ``signs`` is the range of their number, end excluded. ``few`` leaves out most shapes: where only
    two or three stand, which colour belongs to which shape is learned far sooner.
    """
    rng = np.random.default_rng(list(seed) + [7001])
    area = size[0] * size[1] / WORLD**2
    shapes = list(rng.permutation(v.SHAPES))
    colors = list(rng.permutation(list(v.COLORS)))
    rare_s, common_s = shapes[:4], shapes[4:]
    rare_c, common_c = colors[:3], colors[3:]
    floor, things = _Floor(size), []
    centers: list[tuple[int, int]] = []
    for _ in range(2 if area > 0.5 else 1):
        x, y = (int(rng.integers(n // 5, n - n // 5)) for n in size)
        centers.append((x, y))
    spread = 30 + 20 * area

    n_rs, n_rc = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    n_cc = int(rng.integers(6, 15)) if area > 0.5 else int(rng.integers(1, 5))
    if few:
        n_rs, n_rc, n_cc = min(n_rs, 2), min(n_rc, 1), n_cc // 4
    plan = [(rare_s[i], common_c[int(rng.integers(5))]) for i in range(n_rs)]
    plan += [(common_s[int(rng.integers(4))], rare_c[i]) for i in range(n_rc)]
    # Common things lean to one of the four common shapes, so that counts above two happen.
    plan += [
        (common_s[min(int(rng.integers(6)), 3)], common_c[int(rng.integers(5))])
        for _ in range(n_cc)
    ]
    plan = [plan[int(j)] for j in rng.permutation(len(plan))]

    def put(near: tuple[int, int] | None, within: tuple[float, ...] | None = None) -> None:
        shape, color = plan.pop()
        s = int(rng.integers(15, 24))
        if box := _place(rng, floor, s, s, near, spread, within):
            things.append(Thing("shape", str(color), box, str(shape)))

    for place in visible_places(size, origin, world).values():
        if rng.random() < 0.5 and plan:  # one thing alone in a corner
            put(None, place)
            floor.take((int(place[0]), int(place[1]), int(place[2]), int(place[3])))

    sign_colors = rng.permutation(common_c)
    for i in range(int(rng.integers(*signs))):
        text_kind, text = _sign_text(rng, kinds)
        font = int(rng.integers(len(v.FONTS)))
        cap = int(rng.integers(23, 28) if text_kind == "word" else rng.integers(26, 33))
        w, h = sign_size(text, font, cap)
        near = centers[0] if rng.random() < 0.3 else None
        if box := _place(rng, floor, w, h, near, spread):
            things.append(Thing("sign", str(sign_colors[i]), box, "", text, text_kind, font, cap))
    while plan:
        put(None if rng.random() < 0.4 else centers[int(rng.integers(len(centers)))])
    return Scene(size, tuple(things), tuple(seed), origin, world)
