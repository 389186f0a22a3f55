"""Sample sets of any-resolution pictures: things of the usual size on larger, oblong canvases.

LLaVA-NeXT's crops show these pictures as large as they are, or up to an eighth larger; its
thumbnail shows them at half their size or less in at least one direction, unless they are square
and small.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .formats import write_textvqa
from .pool import Pool
from .scene import Size
from .sets import gqa, pope, vqav2

SIZES: tuple[Size, ...] = (
    (672, 672), (672, 336), (336, 672), (640, 480), (500, 300), (1008, 336), (600, 600), (480, 640),
    (336, 1008), (672, 504), (300, 500), (336, 336),
)  # fmt: skip
"""(width, height) in pixels, in turn: three to five tiles, with and without padding."""

SEED = 20262
POOL = Pool(20263, 60, SIZES)


def textvqa(folder: Path) -> int:
    """240 questions on about 60 pictures."""
    return sum(write_textvqa(folder, 240, 4, SEED, SIZES).values())


SETS: dict[str, Callable[[Path], int]] = {
    "textvqa": textvqa,
    "vqav2": lambda folder: vqav2.write(folder, 36, 1, POOL),
    "gqa": lambda folder: gqa.write(folder, 36, 6, POOL),
    "pope": lambda folder: pope.write(folder, 12, POOL),
}
"""Name -> writer of its files below a folder, which returns the number of questions."""
