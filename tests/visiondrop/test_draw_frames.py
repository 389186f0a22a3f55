"""Videos drawn: every patch where it stands in its frame, by what became of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from visiondrop.draw import draw_sample
from visiondrop.draw_frames import GAP, FrameSheet, frame_size
from visiondrop.functional.frame_layout import FrameGrid
from visiondrop.trace import SampleTrace, StageTrace

RED, GREEN = (200, 30, 30), (30, 200, 30)


def centre(sheet: np.ndarray, layout: FrameSheet, frame: int, row: int, column: int) -> np.ndarray:
    """The pixel in the middle of a patch, by its place alone."""
    width, height = frame_size(layout.rows, layout.columns)
    x = frame % layout.across * (width + GAP) + (2 * column + 1) * width // (2 * layout.columns)
    y = frame // layout.across * (height + GAP) + (2 * row + 1) * height // (2 * layout.rows)
    return sheet[y, x]


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("frames", [2, 9])
def test_kept_patches_show_the_frame_and_dropped_ones_are_dark(cls: bool, frames: int) -> None:
    layout = FrameSheet(frames, 2, 3, cls)
    images = [Image.new("RGB", (30, 20), GREEN if f % 2 else RED) for f in range(frames)]
    kept = {f * layout.per_frame + int(cls) + f % 6 for f in range(frames)}
    fate = {token: ("kept", token) for token in kept}
    sheet = np.asarray(layout.panel(images, fate))
    for f in range(frames):
        for patch in range(6):
            pixel = centre(sheet, layout, f, *divmod(patch, 3))
            if patch == f % 6:
                assert tuple(pixel) == (GREEN if f % 2 else RED)
            else:
                assert pixel.max() < 40


def test_as_many_pictures_as_frames_or_several_of_each() -> None:
    layout = FrameSheet(2, 2, 2)
    one, two = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), GREEN)
    assert layout.shown([one, one, two, two]) == [one, two]
    with pytest.raises(ValueError, match="3 pictures for a video of 2 frames"):
        layout.panel([one, two, two])


def test_stages_of_a_video_stand_below_each_other() -> None:
    grid = FrameGrid(2, 2, cls=True, newline=True)
    tokens = torch.arange(grid.unpruned)
    source = torch.tensor([0, 2, 6, 10])  # of the first frame CLS and patch 1, patch 0, newline
    target = torch.full((11,), -1)
    target[source] = torch.arange(4)
    stage = StageTrace("encoder", None, 0, tokens, source, target, torch.zeros(4, dtype=torch.bool))
    sample = SampleTrace(None, [4], [4], 1, [stage], [1], [grid], [[4]])
    frames = [Image.new("RGB", (20, 20), RED)] * 2
    sheet = draw_sample(sample, frames, (2, 2))
    assert sheet.height > 2 * frame_size(2, 2)[1] > 0
    assert sheet.tobytes() == draw_sample(sample, [frames], (2, 2)).tobytes()
    with pytest.raises(ValueError, match="1 pictures for a video of 2 frames"):
        draw_sample(sample, frames[0], (2, 2))
    plain = SampleTrace(None, [4], [4], 1, [], [0], [None], [[4]])
    with pytest.raises(ValueError, match="is no video; give one picture"):
        draw_sample(plain, [frames], (2, 2))
