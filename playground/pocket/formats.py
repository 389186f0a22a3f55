"""Writes a sample set in TextVQA's own file formats, the way LLaVA's evaluation lays them out.

In the real files the join key is (image id, question in lower case): the question file's
``question_id`` is the image id, and several questions share it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .objects import OBJECTS, objects_text
from .questions import SUFFIX, TYPES, Question, all_questions, reference_line
from .render import render
from .scene import WORLD, Scene, Size, make_scene

QUESTIONS = "llava_textvqa_val_v051_ocr.jsonl"
ANNOTATIONS = "TextVQA_0.5.1_val.json"
REGIONS = "regions.json"
CHECKSUMS = "SHA256SUMS"
JPEG_QUALITY = 84


def image_id(*seed: int) -> str:
    """Sixteen hex digits, as in TextVQA."""
    return hashlib.sha256(repr(seed).encode()).hexdigest()[:16]


def ten_answers(answer: str, kind: str, rng: np.random.Generator) -> list[str]:
    """Ten people's answers: most give the answer, up to two write it another way or are wrong."""
    other = {"exist": "unsure", "count": "many"}.get(kind, "unanswerable")
    n = int(rng.integers(0, 3))
    out = [answer.lower()] * (10 - n) + [other] * n
    return [out[int(i)] for i in rng.permutation(10)]


def pick(
    found: list[Question], n: int, used: dict[str, int], rng: np.random.Generator
) -> list[Question]:
    """At most ``n`` questions of one picture, no two alike, rare types and answers first."""
    order = [found[int(i)] for i in rng.permutation(len(found))]
    out: list[Question] = []
    for q in sorted(
        order, key=lambda q: (used.get(q.type, 0), used.get(f"{q.type}={q.answer}", 0))
    ):
        if len(out) == n:
            break
        if all(q.text.lower() != o.text.lower() for o in out) and all(
            q.type != o.type for o in out
        ):
            out.append(q)
    for q in out:
        used[q.type] = used.get(q.type, 0) + 1
        used[f"{q.type}={q.answer}"] = used.get(f"{q.type}={q.answer}", 0) + 1
    return out


def _annotation(
    scene: Scene, q: Question, name: str, number: int, rng: np.random.Generator
) -> dict:
    classes = sorted({t.shape or "sign" for t in scene.things})
    return {
        "image_id": name,
        "image_classes": classes,
        "flickr_original_url": "",
        "flickr_300k_url": "",
        "image_width": scene.size[0],
        "image_height": scene.size[1],
        "question": q.text,
        "question_tokens": q.text.lower().rstrip("?").split(),
        "question_id": number,
        "set_name": "val",
        "answers": ten_answers(q.answer, q.type, rng),
    }


def region_fields(region: tuple[int, ...], named: tuple[int, ...] | None) -> dict[str, list[int]]:
    """``region`` and, where it is not the same (None: it is), ``named``."""
    fields = {"region": list(region)}
    return fields if named is None or named == region else {**fields, "named": list(named)}


def write_textvqa(
    folder: Path, questions: int, per_picture: int, seed: int,
    sizes: tuple[Size, ...] = ((WORLD, WORLD),),
) -> dict[str, int]:  # fmt: skip
    """Writes the set and its checksums; returns how many questions there are of each type.
    Pictures have the ``sizes`` (width, height) in turn."""
    images = folder / "train_images"
    images.mkdir(parents=True, exist_ok=True)
    used: dict[str, int] = {}
    lines: list[dict] = []
    data: list[dict] = []
    regions: list[dict] = []
    scenes: dict[str, Scene] = {}
    i = 0
    while len(lines) < questions:
        size = sizes[i % len(sizes)]
        scene = make_scene(seed, i, size=size, world=size)
        rng = np.random.default_rng([seed, i, 7005])
        name = image_id(seed, i)
        i += 1
        chosen = pick(
            all_questions(scene, rng), min(per_picture, questions - len(lines)), used, rng
        )
        if not chosen:
            continue
        scenes[f"{name}.jpg"] = scene
        Image.fromarray(render(scene)).save(images / f"{name}.jpg", quality=JPEG_QUALITY)
        for q in chosen:
            text = f"{q.text}\n{reference_line(rng)}\n{SUFFIX}"
            number = 34602 + len(lines)  # where TextVQA's validation questions begin
            lines.append(
                {"question_id": name, "image": f"{name}.jpg", "text": text, "category": "default"}
            )
            data.append(_annotation(scene, q, name, number, rng))
            regions.append(
                {
                    "question_id": number,
                    "image_id": name,
                    "question": q.text,
                    "type": q.type,
                    "answer": q.answer,
                    "grid": list(scene.grid),
                    **region_fields(q.region, q.named),
                }
            )
    _write(folder / QUESTIONS, "".join(json.dumps(x) + "\n" for x in lines))
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    _write(folder / ANNOTATIONS, json.dumps({**head, "data": data}, separators=(",", ":")) + "\n")
    _write(folder / REGIONS, "[\n" + ",\n".join(json.dumps(r) for r in regions) + "\n]\n")
    _write(folder / OBJECTS, objects_text(scenes))
    write_checksums(folder)
    return {t: used.get(t, 0) for t in TYPES}


def _write(path: Path, text: str) -> None:
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(text)
    os.replace(tmp, path)


def write_checksums(folder: Path, files: Iterable[Path] | None = None) -> None:
    """``SHA256SUMS`` over the folder's files, or the ones given, in ``sha256sum -c``'s form."""
    if files is None:
        files = (p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n"
        for p in sorted(files)
    ]
    _write(folder / CHECKSUMS, "".join(lines))


def check(folder: Path) -> list[str]:
    """Names of the files that are missing or differ from their checksum."""
    bad = []
    for line in (folder / CHECKSUMS).read_text().splitlines():
        digest, name = line.split("  ", 1)
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            bad.append(name)
    return bad
