"""The frames of a video on one sheet, with what became of their patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from visiondrop.draw_patches import Box, Fate, paint

__all__ = ["FrameSheet"]

SIDE = 144
"""The longer side of a frame, in pixels."""
GAP = 4
ACROSS = 8
"""Frames side by side, at most: stages stand below each other, so that frames can be compared."""


@dataclass(frozen=True)
class FrameSheet:
    """How the tokens of a video lie: frame by frame, each with its CLS first or without.

    Attributes:
        frames: how many the model saw; of Qwen's two make one.
        rows, columns: of a frame's tokens.
        cls: whether each frame has its CLS among the tokens.
        newlines: whether a newline closes the video.
    """

    frames: int
    rows: int
    columns: int
    cls: bool = False
    newlines: bool = False

    @property
    def per_frame(self) -> int:
        """Tokens of a frame."""
        return self.rows * self.columns + int(self.cls)

    @property
    def across(self) -> int:
        """Frames side by side."""
        return min(self.frames, ACROSS)

    def newline_count(self, fate: Fate) -> int:
        """Newlines that were kept."""
        last = self.frames * self.per_frame
        return sum(token >= last and what == "kept" for token, (what, _) in fate.items())

    def shown(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """One picture a frame: every n-th where there are n times as many.

        Raises `ValueError` where their number fits neither.
        """
        if not images or len(images) % self.frames:
            raise ValueError(
                f"{len(images)} pictures for a video of {self.frames} frames: give one each"
            )
        return list(images[:: len(images) // self.frames])

    def panel(
        self,
        images: Sequence[Image.Image],
        fate: Fate | None = None,
        merged: set[int] | None = None,
    ) -> Image.Image:
        """The frames in reading order.

        Args:
            images: of the video's frames, see `shown`; each fills its place, as the model saw it.
            fate: as of `SampleTrace.fates`; None shows the frames as they are. What a frame's CLS
                became is not shown.
        """
        width, height = frame_size(self.rows, self.columns)
        down = math.ceil(self.frames / self.across)
        size = (
            self.across * (width + GAP) - GAP,
            down * (height + GAP) - GAP,
        )
        sheet = Image.new("RGB", size, "white")
        boxes: dict[int, Box] = {}
        for f, image in enumerate(self.shown(images)):
            left, top = f % self.across * (width + GAP), f // self.across * (height + GAP)
            frame = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(frame, (left, top))
            first = f * self.per_frame + int(self.cls)
            for patch in range(self.rows * self.columns):
                row, column = divmod(patch, self.columns)
                boxes[first + patch] = (
                    left + column * width // self.columns,
                    top + row * height // self.rows,
                    left + (column + 1) * width // self.columns,
                    top + (row + 1) * height // self.rows,
                )
        if fate is not None:
            paint(sheet, boxes, fate, merged or set())
        return sheet


def frame_size(rows: int, columns: int) -> tuple[int, int]:
    """(width, height) of a frame in pixels, in the proportions of its tokens."""
    scale = SIDE / max(rows, columns)
    return round(columns * scale), round(rows * scale)
