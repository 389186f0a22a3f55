"""Draws a scene: (height, width, 3) uint8. Shapes and characters come from cached masks."""

from __future__ import annotations

import io
import os
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import vocabulary as v
from .scene import Scene, Thing
from .textures import background

_OVER = 4  # supersampling of shape masks


@lru_cache(maxsize=1)
def _font_dir() -> str:
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf")


@cache
def _font(font: int, cap: int) -> ImageFont.FreeTypeFont:
    """The font scaled so that a capital H is ``cap`` pixels high."""
    path = os.path.join(_font_dir(), v.FONTS[font])
    probe = ImageFont.truetype(path, 100, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = probe.getbbox("H")
    size = round(100 * cap / (bottom - top))
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def text_mask(text: str, font: int, cap: int) -> np.ndarray:
    """(h, w) float32 in 0..1: the tight mask of ``text`` with two pixels between characters."""
    f = _font(font, cap)
    parts = [np.zeros((0, 0))]
    boxes = [f.getbbox(c) for c in text]
    top, bottom = min(b[1] for b in boxes), max(b[3] for b in boxes)
    parts = []
    for char, b in zip(text, boxes, strict=True):
        img = Image.new("L", (int(b[2] - b[0]), int(bottom - top)))
        ImageDraw.Draw(img).text((-b[0], -top), char, fill=255, font=f)
        parts += [np.asarray(img, dtype=np.float32) / 255, np.zeros((img.height, 2), np.float32)]
    return np.concatenate(parts[:-1], axis=1)


def char_spans(text: str, font: int, cap: int) -> list[tuple[int, int]]:
    """Columns (start, end) of each character inside ``text_mask``."""
    spans, x = [], 0
    f = _font(font, cap)
    for char in text:
        b = f.getbbox(char)
        w = int(b[2] - b[0])
        spans.append((x, x + w))
        x += w + 2
    return spans


@cache
def shape_mask(shape: str, s: int) -> np.ndarray:
    """(s, s) float32 in 0..1."""
    n = s * _OVER
    img = Image.new("L", (n, n))
    d = ImageDraw.Draw(img)
    c = n / 2
    if shape == "circle":
        d.ellipse((0, 0, n - 1, n - 1), fill=255)
    elif shape == "ring":
        d.ellipse((0, 0, n - 1, n - 1), fill=255)
        d.ellipse((n * 0.27, n * 0.27, n * 0.73, n * 0.73), fill=0)
    elif shape == "square":
        d.rectangle((n * 0.06, n * 0.06, n * 0.94, n * 0.94), fill=255)
    elif shape == "triangle":
        d.polygon([(c, 0), (n - 1, n * 0.95), (0, n * 0.95)], fill=255)
    elif shape == "diamond":
        d.polygon([(c, 0), (n * 0.88, c), (c, n - 1), (n * 0.12, c)], fill=255)
    elif shape == "cross":
        d.rectangle((n * 0.33, 0, n * 0.67, n - 1), fill=255)
        d.rectangle((0, n * 0.33, n - 1, n * 0.67), fill=255)
    elif shape == "star":
        a = np.arange(10) * np.pi / 5 - np.pi / 2
        r = np.where(np.arange(10) % 2 == 0, 0.54, 0.22) * n
        d.polygon(
            [(c + q * np.cos(t), n * 0.54 + q * np.sin(t)) for q, t in zip(r, a, strict=True)],
            fill=255,
        )
    elif shape == "heart":
        d.ellipse((0, n * 0.05, n * 0.53, n * 0.55), fill=255)
        d.ellipse((n * 0.47, n * 0.05, n - 1, n * 0.55), fill=255)
        d.polygon([(n * 0.04, n * 0.42), (n * 0.96, n * 0.42), (c, n - 1)], fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(v.SHAPES)}")
    a8 = np.asarray(img, dtype=np.float32).reshape(s, _OVER, s, _OVER)
    return a8.mean(axis=(1, 3)) / 255


def _blend(canvas: np.ndarray, x: int, y: int, mask: np.ndarray, rgb: np.ndarray) -> None:
    h, w = mask.shape
    part = canvas[y : y + h, x : x + w]
    part += (rgb - part) * mask[..., None]


def _draw(canvas: np.ndarray, t: Thing, rng: np.random.Generator) -> None:
    x0, y0, x1, y1 = t.box
    rgb = np.array(v.COLORS[t.color], dtype=np.float32) + rng.normal(0, 7, 3).astype(np.float32)
    if t.kind == "shape":
        _blend(canvas, x0, y0, shape_mask(t.shape, x1 - x0), rgb)
        return
    canvas[y0:y1, x0:x1] = rgb * 0.6
    canvas[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = rgb
    mask = text_mask(t.text, t.font, t.cap)
    tx, ty = x0 + (x1 - x0 - mask.shape[1]) // 2, y0 + (y1 - y0 - mask.shape[0]) // 2
    ink = rng.uniform(0, 30) if t.color in v.DARK_TEXT else rng.uniform(225, 255)
    _blend(canvas, tx, ty, mask, np.full(3, ink, np.float32))


def _clutter(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Grey strokes: edges without meaning."""
    high, wide = canvas.shape[:2]
    n = int(rng.integers(0, 7 if max(wide, high) > 200 else 3))
    if not n:
        return
    img = Image.new("L", (wide, high))
    d = ImageDraw.Draw(img)
    for _ in range(n):
        x, y = rng.integers(0, wide), rng.integers(0, high)
        dx, dy = rng.integers(-60, 61, 2)
        d.line((int(x), int(y), int(x + dx), int(y + dy)), fill=255, width=int(rng.integers(1, 5)))
    _blend(
        canvas,
        0,
        0,
        np.asarray(img, np.float32) / 255,
        np.full(3, rng.uniform(20, 235), np.float32),
    )


def render(scene: Scene, jpeg: int | None = None) -> np.ndarray:
    """(height, width, 3) uint8. ``jpeg`` is a quality: it is coded and decoded once."""
    rng = np.random.default_rng(list(scene.seed) + [7002])
    canvas = background(rng, scene.size)
    _clutter(canvas, rng)
    for t in scene.things:
        _draw(canvas, t, rng)
    out = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    if jpeg is not None:
        buffer = io.BytesIO()
        Image.fromarray(out).save(buffer, "JPEG", quality=jpeg)
        out = np.asarray(Image.open(buffer).convert("RGB"))
    return out
