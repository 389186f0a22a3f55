"""Pools of pictures from which all sample sets but TextVQA's take theirs, and how sets are
written."""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .asking import Asked
from .formats import CHECKSUMS, JPEG_QUALITY, REGIONS, _write, region_fields, write_checksums
from .objects import OBJECTS, objects_text
from .render import render
from .scene import WORLD, Scene, Size, make_scene

POOL_SEED = 20261  # TextVQA's set has its own; training uses seeds from 1,000,000 on
POOL = 306


@dataclass(frozen=True)
class Pool:
    """Pictures from a seed, 0 to ``count`` - 1; ``sizes`` (width, height) come in turn."""

    seed: int
    count: int
    sizes: tuple[Size, ...] = ((WORLD, WORLD),)

    def scene(self, i: int) -> Scene:
        """Scene ``i``."""
        if not 0 <= i < self.count:
            raise ValueError(f"picture {i} of a pool of {self.count}; give 0 to {self.count - 1}")
        return _scene(self.seed, i, self.sizes[i % len(self.sizes)])

    def pixels(self, i: int) -> np.ndarray:
        """(height, width, 3) uint8."""
        return _pixels(self.scene(i))

    def jpeg(self, i: int) -> bytes:
        """The picture's file."""
        return _jpeg(self.scene(i))

    def rng(self, name: str, i: int) -> np.random.Generator:
        """The numbers that set ``name`` draws for picture ``i``: no set depends on another."""
        return np.random.default_rng([self.seed, i, zlib.crc32(name.encode())])


@lru_cache(maxsize=2 * POOL)
def _scene(seed: int, i: int, size: Size) -> Scene:
    return make_scene(seed, i, size=size, world=size)


@lru_cache(maxsize=POOL)
def _pixels(scene: Scene) -> np.ndarray:
    return render(scene)


SQUARE = Pool(POOL_SEED, POOL)
scene_of, pixels_of, jpeg_of, rng_of = SQUARE.scene, SQUARE.pixels, SQUARE.jpeg, SQUARE.rng


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(
        stream, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True
    )
    return stream.getvalue()


@lru_cache(maxsize=POOL)
def _jpeg(scene: Scene) -> bytes:
    return jpeg(_pixels(scene))


class SampleSet:
    """Files of one set below a folder, and its sidecars: what each question asks for, and what each
    picture shows.

    ``regions.json`` is a list of ``{"question_id", "prompt", "type", "answer", "grid", "region"}``
    and ``"named"`` where that is not the region; ids and prompts are those that the evaluation
    answers, the picture's placeholder left out. ``objects.json``, with ``objects``: see `objects`.
    """

    def __init__(self, folder: str | Path, pool: Pool = SQUARE, objects: bool = True) -> None:
        self.folder, self.pool, self.objects = Path(folder), pool, objects
        self.notes: list[dict[str, Any]] = []
        self.shown: dict[str, Scene] = {}
        self.written: set[Path] = set()
        clear(self.folder)

    def path(self, name: str) -> Path:
        """Where a file of the set goes."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.add(path)
        return path

    def picture(self, name: str, i: int, image: str | None = None) -> None:
        """Picture ``i`` of the pool under that name; questions call it ``image``, by default the
        name without folders."""
        self.path(name).write_bytes(self.pool.jpeg(i))
        self.show(image or Path(name).name, i)

    def show(self, image: str, i: int) -> None:
        """What questions call ``image`` is picture ``i`` of the pool, as it stands."""
        self.shown[image] = self.pool.scene(i)

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

    def note(
        self, question_id: Any, asked: Asked, prompt: str | None = None, picture: int = 0
    ) -> None:
        self.notes.append(
            {
                "question_id": question_id,
                "prompt": asked.prompt if prompt is None else prompt,
                "type": asked.type,
                "answer": asked.answer,
                "grid": list(self.pool.scene(picture).grid),
                **region_fields(asked.region, asked.named),
            }
        )

    def finish(self) -> int:
        """Sidecars and checksums; returns the number of questions."""
        rows = ",\n".join(json.dumps(note, ensure_ascii=False) for note in self.notes)
        _write(self.path(REGIONS), f"[\n{rows}\n]\n")
        if self.objects and self.shown:
            _write(self.path(OBJECTS), objects_text(self.shown))
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
