"""Grey backgrounds with edges that mean nothing: noise, stripes, checks, waves, cracks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SIDE = 512
COUNT = 40


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Noise of ``cells`` x ``cells`` values, bilinear to SIDE x SIDE, in 0..1."""
    g = rng.random((cells + 1, cells + 1))
    t = np.linspace(0, cells, SIDE, endpoint=False)
    i, f = t.astype(int), t - t.astype(int)
    a = g[i] * (1 - f)[:, None] + g[i + 1] * f[:, None]
    return a[:, i] * (1 - f) + a[:, i + 1] * f


def _texture(k: int) -> np.ndarray:
    rng = np.random.default_rng([k, 4242])
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    kind = k % 8
    angle, period = rng.random() * np.pi, float(rng.integers(6, 40))
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == 0:
        t = _smooth_noise(rng, int(rng.integers(2, 6)))
    elif kind == 1:
        t = _smooth_noise(rng, int(rng.integers(20, 90)))
    elif kind == 2:
        t = ((along / period) % 1 < 0.5).astype(float)
    elif kind == 3:
        t = (((x // period) + (y // period)) % 2).astype(float)
    elif kind == 4:
        t = 0.5 + 0.5 * np.sin(along / period * 6.28 + 3 * _smooth_noise(rng, 5))
    elif kind == 5:
        n = _smooth_noise(rng, int(rng.integers(6, 16)))
        t = (np.abs((n * 7) % 1 - 0.5) < 0.12).astype(float)
    elif kind == 6:
        t = (((x % period) < 3) | ((y % (period / 2)) < 3)).astype(float)
    else:
        t = rng.random((SIDE, SIDE))
    return ((t - t.min()) / (t.max() - t.min() + 1e-9)).astype(np.float32)


@lru_cache(maxsize=1)
def texture_bank() -> list[np.ndarray]:
    """COUNT arrays of SIDE x SIDE float32 in 0..1; made once in each process (about 1 s)."""
    return [_texture(k) for k in range(COUNT)]


def background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(height, width, 3) float32 in 0..255 of a size (width, height): one or two textures in
    greys, split by a random line. Where a side is as long as a texture's, that is mirrored on."""
    bank = texture_bank()
    wide, high = size

    def layer() -> np.ndarray:
        t = bank[int(rng.integers(COUNT))]
        i, j = (int(rng.integers(0, max(SIDE - n, SIDE // 4))) for n in (high, wide))
        t = np.pad(t, [(0, max(0, k + n - SIDE)) for k, n in ((i, high), (j, wide))], "symmetric")
        base, contrast = rng.uniform(50, 200), rng.uniform(-60, 60)
        tint = rng.normal(0, 5, 3).astype(np.float32)
        grey = base + contrast * (t[i : i + high, j : j + wide] - 0.5) * 2
        return np.clip(grey[..., None] + tint, 8, 245).astype(np.float32)

    out = layer()
    if rng.random() < 0.6:
        y, x = np.mgrid[0:high, 0:wide].astype(np.float32)
        a, c = rng.random() * 6.283, rng.uniform(-0.25, 0.25) * min(wide, high)
        side = (x - wide / 2) * np.cos(a) + (y - high / 2) * np.sin(a) > c
        out = np.where(side[..., None], layer(), out)
    return out
