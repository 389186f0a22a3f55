"""Reading clips: which frames are shown, from folders, GIFs and video files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.eval import clips
from llava.eval.clips import ClipFolder, read_clip, sample_indices
from llava.eval.errors import EvalError
from llava.eval.samples import Sample


def greys(n: int, size: tuple[int, int] = (32, 24)) -> list[Image.Image]:
    """Frame k is grey 10 k, so that a frame tells which one it is."""
    return [Image.new("RGB", size, (10 * k,) * 3) for k in range(n)]


def shown(frames: list[Image.Image]) -> list[int]:
    return [round(np.asarray(f).mean() / 10) for f in frames]


@pytest.mark.parametrize("total", [1, 3, 8, 9, 15, 24, 300])
def test_frames_are_sampled_as_video_llava_does(total):
    """Evenly from the first to the last, rounded down: the loop that np.linspace(dtype=int) is."""
    assert sample_indices(total) == [(total - 1) * k // 7 for k in range(8)]


def test_a_clip_without_a_frame_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no frame"):
        read_clip(tmp_path)


def test_a_folder_of_frames_is_read_in_the_order_of_names(tmp_path):
    for k, frame in enumerate(greys(15)):
        frame.save(tmp_path / f"{k:03d}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert shown(read_clip(tmp_path)) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_gif_counts_frames_for_as_long_as_they_are_shown(tmp_path):
    """Pillow stores equal frames as one that is shown longer; a converter to video would repeat
    it."""
    order = [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3]
    frames = [greys(4)[k] for k in order]
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    with Image.open(path) as image:
        assert image.n_frames == 4
    wanted = [order[(len(order) * 10 - 1) * k // 7 // 10] for k in range(8)]
    assert shown(read_clip(path)) == wanted == [0, 0, 1, 2, 2, 2, 3, 3]


def test_a_gif_that_says_no_duration_has_frames_of_equal_length(tmp_path):
    frames = greys(8)
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=0)
    assert shown(read_clip(path)) == list(range(8))


def write_video(path: Path, frames: list[Image.Image]) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_image(frame)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.mark.parametrize("ending", [".mp4", ".avi"])
def test_video_files_are_decoded_where_there_is_a_decoder(tmp_path, ending):
    write_video(tmp_path / f"clip{ending}", greys(22, (64, 48)))
    frames = read_clip(tmp_path / f"clip{ending}")
    assert shown(frames) == [0, 3, 6, 9, 12, 15, 18, 21] and frames[0].size == (64, 48)


def test_without_a_decoder_the_error_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setattr(clips, "has_decoder", lambda: False)
    with pytest.raises(EvalError, match=r"a\.mp4.*pip install 'visiondrop\[video\]'"):
        ClipFolder(tmp_path).check([Sample(0, "?", "a")])
    with pytest.raises(ImportError, match="folder of the clip's frames"):
        read_clip(tmp_path / "a.mp4")


def test_missing_clips_are_named_before_any_compute(tmp_path):
    greys(1)[0].save(tmp_path / "here.gif")
    folder = ClipFolder(tmp_path)
    folder.check([Sample(0, "?", "here")])
    with pytest.raises(EvalError, match=r"2 of 3 clips are not in .*gone \(question 4\), far"):
        folder.check([Sample(0, "?", n, line=k) for k, n in ((1, "here"), (4, "gone"), (5, "far"))])
    with pytest.raises(EvalError, match="leaves the image folder"):
        folder.check([Sample(0, "?", "../here")])
    with pytest.raises(EvalError, match="not found"):
        ClipFolder(tmp_path / "no").check([])


def test_a_blank_clip_is_grey_and_as_large(tmp_path):
    frames = greys(8)
    for k, frame in enumerate(frames):
        (tmp_path / "c").mkdir(exist_ok=True)
        frame.save(tmp_path / "c" / f"{k}.png")
    blank = ClipFolder(tmp_path).frames("c", blank=True)
    assert len(blank) == 8 and {f.size for f in blank} == {(32, 24)}
    assert all((np.asarray(f) == 127).all() for f in blank)
