"""TGIF-QA, MSVD-QA and MSRVTT-QA in Video-LLaVA's files: test_q.json, test_a.json and clips.

Clips of TGIF's set and of MSRVTT's are animated GIFs, three seconds long, with a state every 0.2 s:
twice as many as the evaluation samples. MSVD's are folders of eight frames.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..asking import Asked, Picker
from ..clip_questions import CLIP_TYPES, clip_questions
from ..clips import FRAMES, SIDE, Clip, make_clip, render_clip
from ..pool import SampleSet, jpeg, rng_of
from ..scene import PATCH

CLIP_SEED = 20262  # neither of the pool's pictures nor of training
CLIPS = {"tgif": 36, "msvd": 24, "msrvtt": 36}  # clips of a set
EACH = {"tgif": 4, "msvd": 6, "msrvtt": 4}  # questions about each
STATE = 200  # ms that each state of a GIF is shown
HAPPENS = tuple(
    t for t in CLIP_TYPES if t.startswith(("appears", "disappears", "moves", "direction"))
)
SIGNS = ("letter", "number", "word", "text_start", "text_end")
TYPES = {
    "tgif": ("color", "shape", "count_end", "exist_start", "exist_end"),
    "msvd": ("color", "shape", "exist", "exist_start", "exist_end", *SIGNS),
    "msrvtt": CLIP_TYPES,
}
"""What each set asks about; the names say nothing of the real sets' contents."""
FIRST = {"tgif": 0, "msvd": 1000, "msrvtt": 2000}  # clip of each set


def type_number(kind: str) -> int:
    """The question's type as ActivityNet-QA numbers it, in whose form the files are: 0 motion, 2
    time, 3 yes or no, 4 colour, 5 object, 7 number, 8 other."""
    if kind in HAPPENS:
        return 0
    if kind in ("text_start", "text_end"):
        return 2
    if kind.startswith("exist"):
        return 3
    return {"color": 4, "shape": 5, "count_end": 7}.get(kind, 8)


def clip_of(name: str, i: int) -> Clip:
    """Clip ``i`` of a set."""
    return make_clip(CLIP_SEED, FIRST[name] + i)


def pick(name: str, clip: Clip, rng: np.random.Generator, picker: Picker, n: int) -> list[Asked]:
    """``n`` questions about a clip, no two of one type, rare types and answers first."""
    found = [q for q in clip_questions(clip, rng) if q.type in TYPES[name]]
    return picker.take(found, n, rng)


def gif(frames: np.ndarray) -> bytes:
    """An animated GIF (n, h, w, 3) with one palette for all frames and without dithering: the
    ground then stays the same, and each frame stores what changed. Pillow leaves out
    frames in which nothing changed, and shows the one before for longer."""
    whole = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
    palette = whole.quantize(255, dither=Image.Dither.NONE)
    pages = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    stream = io.BytesIO()
    pages[0].save(
        stream, "GIF", save_all=True, append_images=pages[1:], duration=STATE, loop=0, disposal=1
    )
    return stream.getvalue()


def _clip_files(out: SampleSet, name: str, video: str, clip: Clip) -> None:
    if name == "msvd":
        for k, frame in enumerate(render_clip(clip)):
            out.path(f"videos/{video}/{k:02d}.jpg").write_bytes(jpeg(frame))
        return
    folder = "gifs" if name == "tgif" else "videos/all"
    times = [k / 2 for k in range(2 * FRAMES - 1)]
    out.path(f"{folder}/{video}.gif").write_bytes(gif(render_clip(clip, times)))


def _video_name(name: str, i: int) -> str:
    """As the real sets name theirs."""
    return {"tgif": f"tumblr_pocket{i:03d}", "msvd": f"pocket{i:03d}_0_8"}.get(
        name, f"video{7010 + i}"
    )


def write(name: str, folder: Path, clips: int | None = None) -> int:
    """The set's files; returns the number of questions."""
    out, picker = SampleSet(folder), Picker()
    questions: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for i in range(CLIPS[name] if clips is None else clips):
        clip, rng, video = clip_of(name, i), rng_of(name, i), _video_name(name, i)
        _clip_files(out, name, video, clip)
        for q in pick(name, clip, rng, picker, EACH[name]):
            number = f"{name}_{len(questions)}"
            questions.append({"question": q.text, "video_name": video, "question_id": number})
            answers.append(
                {"answer": q.answer.lower(), "type": type_number(q.type), "question_id": number}
            )
            out.notes.append(
                {
                    "question_id": number,
                    "prompt": q.prompt,
                    "type": q.type,
                    "answer": q.answer,
                    "grid": [FRAMES, SIDE // PATCH, SIDE // PATCH],
                    "region": list(q.region),
                }
            )
    out.json("test_q.json", questions)
    out.json("test_a.json", answers)
    return out.finish()


def write_tgif(folder: Path, clips: int | None = None) -> int:
    return write("tgif", folder, clips)


def write_msvd(folder: Path, clips: int | None = None) -> int:
    return write("msvd", folder, clips)


def write_msrvtt(folder: Path, clips: int | None = None) -> int:
    return write("msrvtt", folder, clips)
