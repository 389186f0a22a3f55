"""The Triton kernel of the visual column mean beside the plain version."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import torch

from visiondrop.kernels import column_sums_usable
from visiondrop.profiling.latency import spread
from visiondrop.scoring import chunked_column_sums

__all__ = ["SHAPES", "compare"]

SHAPES = ((1, 32, 32, 80, 113, 128), (1, 32, 32, 360, 400, 128), (1, 32, 32, 2880, 2940, 128),
          (8, 32, 32, 360, 400, 128), (8, 32, 8, 720, 760, 128))  # fmt: skip
"""(pictures, query heads, key heads, visual tokens, keys, head size) of 7B stages."""


@torch.inference_mode()
def compare(
    device: str,
    dtype: torch.dtype,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    repeats: int = 20,
) -> dict[str, Any]:
    """By shape: largest relative difference from float64, and times of both. Where the kernel
    cannot run, the plain version alone.
    """
    out: dict[str, Any] = {}
    for seed, (groups, heads, shared, n, total, size) in enumerate(shapes):
        generator = torch.Generator(device=device).manual_seed(seed)

        def draw(
            count: int, tokens: int, g: Any = generator, b: int = groups, d: int = size
        ) -> Any:
            made = torch.randn(b, tokens, count, d, generator=g, device=device)
            return made.transpose(1, 2).to(dtype)

        query, key, scale = draw(heads, n), draw(shared, total), size**-0.5
        exact = chunked_column_sums(query.double(), key.double(), scale, True)
        ways = {"chunks": functools.partial(chunked_column_sums, query, key, scale, True)}
        if column_sums_usable(query):
            from visiondrop.kernels.column_sums import column_sums

            at = torch.arange(total - n, total, device=device)
            ways["triton"] = functools.partial(column_sums, query, key, scale, at, True)
        found: dict[str, Any] = {}
        for name, way in ways.items():
            worst = ((way().double() - exact).abs() / exact).max()
            found[name] = {"relative": float(worst), "ms": vars(spread(_times(way, repeats), 1e3))}
        out["x".join(map(str, (groups, heads, shared, n, total, size)))] = found
    return out


def _times(way: Any, repeats: int) -> list[float]:
    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    seconds = []
    for turn in range(3 + repeats):
        wait()
        began = time.perf_counter()
        way()
        wait()
        if turn >= 3:
            seconds.append(time.perf_counter() - began)
    return seconds
