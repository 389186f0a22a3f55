"""One pool of pictures from which all sample sets but TextVQA's take theirs, and how sets are
written."""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .asking import Asked
from .formats import CHECKSUMS, JPEG_QUALITY, REGIONS, _write, write_checksums
from .render import render
from .scene import Scene, make_scene

POOL_SEED = 20261  # TextVQA's set has its own; training uses seeds from 1,000,000 on
POOL = 306


@lru_cache(maxsize=POOL)
def scene_of(i: int) -> Scene:
    """Scene ``i`` of the pool."""
    if not 0 <= i < POOL:
        raise ValueError(f"picture {i} of a pool of {POOL}; give 0 to {POOL - 1}")
    return make_scene(POOL_SEED, i)


@lru_cache(maxsize=POOL)
def pixels_of(i: int) -> np.ndarray:
    """(336, 336, 3) uint8."""
    return render(scene_of(i))


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(
        stream, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True
    )
    return stream.getvalue()


@lru_cache(maxsize=POOL)
def jpeg_of(i: int) -> bytes:
    return jpeg(pixels_of(i))


def rng_of(name: str, i: int) -> np.random.Generator:
    """The numbers that set ``name`` draws for picture ``i``: no set depends on another."""
    return np.random.default_rng([POOL_SEED, i, zlib.crc32(name.encode())])


class SampleSet:
    """Files of one set below a folder, and its sidecar: what each question asks for.

    ``regions.json`` is a list of ``{"question_id", "prompt", "type", "answer", "grid", "region"}``;
    ids and prompts are those that the evaluation answers, the picture's placeholder left out.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.notes: list[dict[str, Any]] = []
        self.written: set[Path] = set()
        clear(self.folder)

    def path(self, name: str) -> Path:
        """Where a file of the set goes."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.add(path)
        return path

    def picture(self, name: str, i: int) -> None:
        """Picture ``i`` of the pool under that name."""
        self.path(name).write_bytes(jpeg_of(i))

    def json(self, name: str, content: Any) -> None:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        _write(self.path(name), text + "\n")

    def lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        _write(self.path(name), text)

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Tab-separated, quoted where needed, as pandas writes it."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write(self.path(name), stream.getvalue())

    def note(self, question_id: Any, asked: Asked, prompt: str | None = None) -> None:
        self.notes.append(
            {
                "question_id": question_id,
                "prompt": asked.prompt if prompt is None else prompt,
                "type": asked.type,
                "answer": asked.answer,
                "grid": [24, 24],
                "region": list(asked.region),
            }
        )

    def finish(self) -> int:
        """Sidecar and checksums; returns the number of questions."""
        rows = ",\n".join(json.dumps(note, ensure_ascii=False) for note in self.notes)
        _write(self.path(REGIONS), f"[\n{rows}\n]\n")
        write_checksums(self.folder, self.written)
        return len(self.notes)


def clear(folder: Path) -> None:
    """Remove the files that a set's checksums name, and nothing else."""
    sums = folder / CHECKSUMS
    if sums.is_file():
        for line in sums.read_text().splitlines():
            name = line.split("  ", 1)[1]
            if ".." not in Path(name).parts and not Path(name).is_absolute():
                (folder / name).unlink(missing_ok=True)
        for below in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            if not any(below.iterdir()):
                below.rmdir()
        sums.unlink()
