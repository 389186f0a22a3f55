"""What the token ids of a video mean, as pure functions.

An id is the token's place in the video's unpruned run of placeholders: frame by frame, the CLS of a
frame before its patches where the model feeds it, and behind all frames one newline where the model
has one. Video-LLaVA: frame * 257 + 0 is a CLS and frame * 257 + 1 + p patch p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FrameGrid"]


@dataclass(frozen=True)
class FrameGrid:
    """The frames of one video, or a picture of one tile that a newline closes.

    Attributes:
        frames: how many.
        side: patches along a side of a frame.
        cls: whether each frame has its CLS among the tokens.
        newline: whether a newline closes the video.
    """

    frames: int
    side: int
    cls: bool = False
    newline: bool = False

    @property
    def per_frame(self) -> int:
        """Tokens of a frame."""
        return self.side**2 + int(self.cls)

    @property
    def first_newline(self) -> int:
        """Token id of the newline; ids from here on are newlines."""
        return self.frames * self.per_frame

    @property
    def patches(self) -> int:
        """Tokens in the unpruned model without newlines."""
        return self.first_newline

    @property
    def unpruned(self) -> int:
        """Tokens of the video in the unpruned model, the newline included."""
        return self.first_newline + int(self.newline)

    @property
    def tiles(self) -> int:
        """Frames."""
        return self.frames

    @property
    def ids(self) -> Tensor:
        """[unpruned], the token ids in their order."""
        return torch.arange(self.unpruned)

    def row_of(self, ids: Tensor) -> Tensor:
        """What a newline closes: the whole video, row 0."""
        return torch.zeros_like(ids)

    def locate(self, token: int) -> tuple[str, int, int, int]:
        """What a token id means: ("patch", frame, row, column), ("cls", frame, -1, -1), or
        ("newline", -1, 0, -1).
        """
        if token >= self.first_newline:
            return "newline", -1, 0, -1
        frame, place = divmod(token, self.per_frame)
        patch = place - int(self.cls)
        if patch < 0:
            return "cls", frame, -1, -1
        return "patch", frame, *divmod(patch, self.side)  # type: ignore[return-value]
