"""Targets that the generator knows for free: what each patch shows, and what the scene holds."""

from __future__ import annotations

import numpy as np

from . import vocabulary as v
from .render import char_spans, shape_mask, text_mask
from .scene import PATCH, Grid, Scene, Thing

_COLORS = {c: i + 1 for i, c in enumerate(v.COLORS)}
_SHAPES = {s: i + 1 for i, s in enumerate(v.SHAPES)}
_CHARS = {c: i + 1 for i, c in enumerate(v.CHARS)}
SIGN = len(v.SHAPES) + 1
HEADS = {"color": len(v.COLORS) + 1, "shape": len(v.SHAPES) + 2, "char": len(v.CHARS) + 1}
CLS_SIZE = len(v.COLORS) * len(v.SHAPES) + len(v.COLORS) + len(v.CHARS)
IGNORE = -100


def _patches(weight: np.ndarray, x: int, y: int, grid: Grid) -> dict[int, float]:
    """Share of each patch's area that the mask covers; the mask's corner is at pixel (x, y)."""
    (h, w), (rows, columns) = weight.shape, grid
    gx0, gy0 = x // PATCH, y // PATCH
    gx1, gy1 = -(-(x + w) // PATCH), -(-(y + h) // PATCH)
    pad = np.zeros(((gy1 - gy0) * PATCH, (gx1 - gx0) * PATCH), np.float32)
    pad[y - gy0 * PATCH : y - gy0 * PATCH + h, x - gx0 * PATCH : x - gx0 * PATCH + w] = weight
    cover = pad.reshape(gy1 - gy0, PATCH, gx1 - gx0, PATCH).mean(axis=(1, 3))
    return {
        (gy0 + i) * columns + gx0 + j: float(cover[i, j])
        for i in range(gy1 - gy0)
        for j in range(gx1 - gx0)
        if cover[i, j] > 0 and gy0 + i < rows and gx0 + j < columns
    }


def thing_patches(t: Thing, grid: Grid, least: float = 0.04) -> list[int]:
    """Patch ids (row-major) that show at least ``least`` of their area of the thing."""
    if t.kind == "shape":
        cover = _patches(shape_mask(t.shape, t.box[2] - t.box[0]), t.box[0], t.box[1], grid)
    else:
        x0, y0, x1, y1 = t.box
        cover = _patches(np.ones((y1 - y0, x1 - x0), np.float32), x0, y0, grid)
    best = max(cover.values())
    return sorted(p for p, c in cover.items() if c >= min(least, best))


def dense_labels(scene: Scene) -> dict[str, np.ndarray]:
    """Three class maps of (rows * columns,) int64: colour, shape (or sign), character; 0 is none.

    A patch shows a thing when it covers enough of the patch; slight touches are ignored (-100).
    """
    n = scene.grid[0] * scene.grid[1]
    out = {k: np.zeros(n, np.int64) for k in HEADS}
    for t in scene.things:
        x0, y0, x1, y1 = t.box
        if t.kind == "shape":
            cover = _patches(shape_mask(t.shape, x1 - x0), x0, y0, scene.grid)
            shape = _SHAPES[t.shape]
        else:
            cover = _patches(np.ones((y1 - y0, x1 - x0), np.float32), x0, y0, scene.grid)
            shape = SIGN
        best = max(cover.values())
        for p, c in cover.items():
            sure = c >= min(0.12, best)
            out["color"][p] = _COLORS[t.color] if sure else IGNORE
            out["shape"][p] = shape if sure else IGNORE
        if t.kind == "sign":
            mask = text_mask(t.text, t.font, t.cap)
            tx, ty = x0 + (x1 - x0 - mask.shape[1]) // 2, y0 + (y1 - y0 - mask.shape[0]) // 2
            shares: dict[int, list[tuple[float, int]]] = {}
            for char, (a, b) in zip(t.text, char_spans(t.text, t.font, t.cap), strict=True):
                box = np.ones((mask.shape[0], b - a), np.float32)
                for p, c in _patches(box, tx + a, ty, scene.grid).items():
                    shares.setdefault(p, []).append((c, _CHARS[char]))
            for p, found in shares.items():
                c, char_id = max(found)
                out["char"][p] = char_id if c >= 0.3 else IGNORE
    return out


def cls_target(scene: Scene) -> np.ndarray:
    """(CLS_SIZE,) float32 multi-hot: (colour, shape) pairs, sign colours, characters present.

    A fixed function of the scene, never of a question.
    """
    out = np.zeros(CLS_SIZE, np.float32)
    pairs = len(v.COLORS) * len(v.SHAPES)
    for t in scene.things:
        color = _COLORS[t.color] - 1
        if t.kind == "shape":
            out[color * len(v.SHAPES) + _SHAPES[t.shape] - 1] = 1
        else:
            out[pairs + color] = 1
            for char in t.text:
                out[pairs + len(v.COLORS) + _CHARS[char] - 1] = 1
    return out
