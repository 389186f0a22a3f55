"""A tiny MMBench in its official format, for the tests."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
NAME = "mmbench_dev_20230712.tsv"
COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image",
           "source", "l2-category", "comment", "split")  # fmt: skip
LETTER = "Answer with the option's letter from the given choices directly."
# index, question, hint, options, answer, ability, group: 2 questions with 4 options, 1 with 2
QUESTIONS: list[tuple[int, str, str, list[str], str, str, str]] = [
    (241, "Which bus is it?", "There are four.\nLook well.", ["red", "blue", "green", "black"],
     "B", "attribute_recognition", "finegrained_perception (instance-level)"),
    (252, 'Is it "new"?', "", ["yes", "no"], "A", "attribute_recognition",
     "finegrained_perception (instance-level)"),
    (253, "What is left?", "nan", ["cat", "None", "dog", "cow"], "D", "spatial_relationship",
     "finegrained_perception (cross-instance)"),
]  # fmt: skip


def base64_of(pixels: Any, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


def plane(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((30, 40, 3), colour)


def noise(size: int = 300) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)


PICTURES = {
    241: base64_of(plane((255, 0, 0))),
    252: base64_of(plane((0, 255, 0)), "JPEG"),
    253: base64_of(plane((0, 0, 255))),
}


def rows_of_file(circular: bool = True, shared: bool = False) -> list[dict[str, Any]]:
    """As the real files: first all questions, then their circular rows, round by round."""
    rows = []
    for turn in range(4 if circular else 1):
        for index, question, hint, options, right, ability, group in QUESTIONS:
            if turn >= len(options):
                continue
            turned = options[turn:] + options[:turn]
            place = ("ABCD".index(right) - turn) % len(options)
            rows.append(
                {
                    "index": index + 1_000_000 * turn,
                    "question": question,
                    "hint": hint,
                    **dict(zip("ABCD", turned)),
                    "answer": "ABCD"[place],
                    "category": ability,
                    "image": str(index) if shared and turn else PICTURES[index],
                    "source": "made",
                    "l2-category": group,
                    "split": "dev",
                }
            )
    return rows


def write_tsv(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore",
                                delimiter="\t", lineterminator="\n")  # fmt: skip
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_dev(folder: Path) -> Path:
    """A data folder with the dev file."""
    write_tsv(folder / "mmbench" / NAME, rows_of_file())
    return folder / "mmbench"


def answers_of(samples: Any, said: Callable[[int], str] | dict[int, str]) -> list[dict[str, Any]]:
    get = said.__getitem__ if isinstance(said, dict) else said
    return [
        {"question_id": s.question_id, "round_id": s.round_id, "prompt": s.prompt,
         "text": get(s.question_id), "image": s.image, "metadata": {}} for s in samples
    ]  # fmt: skip


def write_answers(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# By hand: 241 right in all four rounds; 252 right, wrong when rotated; 253 wrong as it stands.
SAID = {
    241: "B", 1000241: "A. blue", 2000241: "(D)", 3000241: "C",
    252: "A", 1000252: "A",
    253: "?", 1000253: "C", 2000253: "B", 3000253: "A",
}  # fmt: skip


def sheet_of(path: Path) -> list[tuple[Any, ...]]:
    openpyxl = pytest.importorskip("openpyxl")
    return list(openpyxl.load_workbook(path).active.iter_rows(values_only=True))
