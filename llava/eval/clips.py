"""Clips of the video benchmarks: frames of a file or a folder, sampled as Video-LLaVA does.

A clip is a folder of frames, an animated GIF, or a video file. Pillow reads the first two; video
files need a decoder, the optional package ``av`` (PyAV): ``pip install 'visiondrop[video]'``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from llava.eval.errors import EvalError
from llava.eval.pictures import GREY
from llava.eval.samples import SHOWN, Sample, check_image_name

FRAMES = 8
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")  # Video-LLaVA's, and one more
FILES = (*VIDEOS, ".gif")
UNSAID = 10  # hundredths of a second that a GIF's frame is shown whose file does not say
NEEDS_AV = (
    "video files need the package av (PyAV), which is not installed: pip install "
    "'visiondrop[video]'; or put a folder of the clip's frames, or an animated GIF, in their place"
)


def sample_indices(total: int, frames: int = FRAMES) -> list[int]:
    """Which of ``total`` frames are shown: ``frames`` spread evenly from the first to the last,
    rounded down, as Video-LLaVA samples; a shorter clip's frames repeat."""
    if total < 1:
        raise ValueError("the clip has no frame")
    return [int(i) for i in np.linspace(0, total - 1, frames, dtype=int)]


def read_clip(path: str | Path, frames: int = FRAMES) -> list[Image.Image]:
    """``frames`` frames of a clip in RGB.

    Raises ValueError or OSError where it cannot be read, ImportError where it needs a decoder."""
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        return [_picture(files[i]) for i in sample_indices(len(files), frames)]
    if path.suffix.lower() == ".gif":
        return _read_gif(path, frames)
    return _read_video(path, frames)


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _read_gif(path: Path, frames: int) -> list[Image.Image]:
    """A GIF's frames count for as long as they are shown, in its unit of 1/100 s: as in the video
    that a converter would make of it."""
    with Image.open(path) as image:
        shown: list[int] = []
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            shown += [k] * (round(image.info.get("duration", 0) / 10) or UNSAID)
        wanted = [shown[i] for i in sample_indices(len(shown), frames)]
        out = []
        for k in wanted:
            image.seek(k)
            out.append(image.convert("RGB"))
    return out


def _read_video(path: Path, frames: int) -> list[Image.Image]:
    """By PyAV: once to count the frames, since what files say of their number is often wrong, and
    once for the frames themselves."""
    if not has_decoder():
        raise ImportError(f"{path.name}: {NEEDS_AV}")
    import av

    with av.open(str(path)) as container:
        total = sum(1 for _ in container.decode(video=0))
    wanted = sample_indices(total, frames)
    found: dict[int, Image.Image] = {}
    with av.open(str(path)) as container:
        for k, frame in enumerate(container.decode(video=0)):
            if k in wanted:
                found[k] = frame.to_image().convert("RGB")
    return [found[k] for k in wanted]


def has_decoder() -> bool:
    """Whether video files can be read here."""
    return importlib.util.find_spec("av") is not None


class ClipFolder:
    """Clips below a folder, named without their ending."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def check(self, samples: Sequence[Sample]) -> None:
        """EvalError unless every sample's clip is there in a form that can be read here."""
        if not self.path.is_dir():
            raise EvalError(f"folder of clips not found: {self.path}")
        missing: dict[str, int] = {}
        undecodable: list[str] = []
        seen: set[str] = set()
        for sample in samples:
            if sample.image is None or sample.image in seen:
                continue
            seen.add(sample.image)
            check_image_name(sample.image, f"question {sample.question_id!r}")
            try:
                file = self.find(sample.image)
            except FileNotFoundError:
                missing[sample.image] = sample.line
            else:
                if file.suffix.lower() in VIDEOS and not file.is_dir() and not has_decoder():
                    undecodable.append(file.name)
        if missing:
            names = [f"{name} (question {line})" for name, line in list(missing.items())[:SHOWN]]
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            raise EvalError(
                f"{len(missing)} of {len(seen)} clips are not in {self.path}: {', '.join(names)}"
                f"{more}; a clip is NAME{', NAME'.join(FILES)} or a folder NAME of frames"
            )
        if undecodable:
            raise EvalError(f"{len(undecodable)} clips such as {undecodable[0]}: {NEEDS_AV}")

    def find(self, name: str) -> Path:
        """The clip's file or folder of frames; FileNotFoundError where there is none."""
        places = [self.path / name, *(self.path / f"{name}{ending}" for ending in FILES)]
        for place in places:
            if place.exists():
                return place
        raise FileNotFoundError(f"no clip {name} in {self.path}")

    def frames(self, name: str, blank: bool = False) -> list[Image.Image]:
        """The clip's frames in RGB; with ``blank`` uniform grey ones of their size."""
        found = read_clip(self.find(name))
        return [Image.new("RGB", f.size, GREY) for f in found] if blank else found
