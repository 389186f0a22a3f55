"""Questions read from LLaVA's question files, and the key that names a sample.

In the real TextVQA file ``question_id`` is the id of the picture, and one picture has several
questions.  A sample is therefore named by (question_id, round_id, image, SHA-256 of the prompt);
resuming, merging, comparing and seeding all use that key.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from llava.eval.errors import EvalError

SHOWN = 3  # how many of many bad things an error lists

REFERENCE = "Reference OCR token:"
INSTRUCTIONS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
    "Please answer this question with one word.",
    "Please answer yes or no.",
    "When the provided information is insufficient, respond with 'Unanswerable'.",
    "请直接回答选项字母。",
)
"""Lines that LLaVA's question files put behind a question."""


def raw_question(prompt: str) -> str:
    """The question itself: a prompt without placeholder, OCR reference and instruction lines.

    What methods that read the question get to see (``Trace.set_questions``).  A prompt in which
    nothing else stands is taken whole."""
    text = prompt.replace("<image>", "").strip()
    ocr = re.match(r"OCR tokens: .*Question: (.*?) Short answer:", text, re.DOTALL)
    if ocr is not None:
        return ocr.group(1).strip()
    lines = [line.strip() for line in text.split("\n")]
    kept = [
        line
        for line in lines
        if line and line not in INSTRUCTIONS and not line.startswith(REFERENCE)
    ]
    return "\n".join(kept) or text


def sample_key(question_id: Any, round_id: Any, image: str | None, prompt: str) -> str:
    """The key of a sample, as JSON text: ``[question_id, round_id, image, sha256(prompt)]``."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return json.dumps([question_id, round_id, image, digest], ensure_ascii=False)


@dataclass(frozen=True)
class Sample:
    """One question about one picture.

    Attributes:
        question_id: as in the question file (an int or a string; not unique).
        prompt: the question as the file has it, without the picture's placeholder.
        image: path of the picture below the image folder; None for a question without one.
        round_id: the turn of a conversation, where the file has it.
        line: its line in the question file, from 1.
        category: what the file sorts it under, where it does; not part of the key.
        beside: what else its line of the answers file holds; not part of the key.
    """

    question_id: Any
    prompt: str
    image: str | None
    round_id: Any = None
    line: int = 0
    category: str | None = None
    beside: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        return sample_key(self.question_id, self.round_id, self.image, self.prompt)


def answer_key(row: Mapping[str, Any]) -> str:
    """The sample key of a line of an answers file."""
    return sample_key(row["question_id"], row.get("round_id"), row.get("image"), row["prompt"])


def read_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """Lines of a jsonl file as (line number from 1, object); blank lines are passed over.

    Raises EvalError for a missing file, and for a line that is not a JSON object, with its number.
    """
    path = Path(path)
    if not path.is_file():
        raise EvalError(f"file not found: {path}")
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise EvalError(
                f"{path}, line {number}: not valid JSON ({error}); mend or remove that line"
            ) from None
        if not isinstance(row, dict):
            raise EvalError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}")
        rows.append((number, row))
    return rows


def read_questions(path: str | Path, limit: int | None = None) -> list[Sample]:
    """Samples of a LLaVA question file ``{"question_id", "image", "text"}``, in its order.

    ``limit`` keeps the first so many.  The whole file is checked whatever the limit is, before
    anything is computed: raises EvalError for broken or incomplete lines, an empty file, and two
    lines that are equal in the whole sample key (naming both).
    """
    if limit is not None and limit < 1:
        raise EvalError(f"limit must be at least 1, got {limit}; leave it out for all questions")
    samples: list[Sample] = []
    for number, row in read_jsonl(path):
        missing = [name for name in ("question_id", "text") if name not in row]
        if missing:
            raise EvalError(
                f"{path}, line {number}: no {' and no '.join(missing)}; a question line is "
                '{"question_id": ..., "image": "file.jpg", "text": "the question"}'
            )
        if not isinstance(row["question_id"], (str, int)):
            raise EvalError(
                f'{path}, line {number}: "question_id" must be a text or a whole number, got '
                f"{row['question_id']!r}"
            )
        if not isinstance(row["text"], str):
            raise EvalError(f'{path}, line {number}: "text" must be a string, got {row["text"]!r}')
        if not isinstance(row.get("image"), (str, type(None))):
            raise EvalError(f'{path}, line {number}: "image" must be a path, got {row["image"]!r}')
        check_image_name(row.get("image"), f"{path}, line {number}")
        samples.append(
            Sample(
                row["question_id"],
                row["text"],
                row.get("image"),
                row.get("round_id"),
                number,
                row.get("category"),
            )
        )
    if not samples:
        raise EvalError(f"{path} holds no question; give a file with one JSON object a line")
    check_distinct(samples, path)
    return samples[:limit]


def check_distinct(samples: Sequence[Sample], path: str | Path) -> None:
    """Raise EvalError for two samples that are equal in the whole key, naming both lines."""
    seen: dict[str, int] = {}
    for sample in samples:
        if sample.key in seen:
            raise EvalError(
                f"{path}: lines {seen[sample.key]} and {sample.line} are the same sample "
                f"(question_id {sample.question_id!r}, round_id, image and prompt all equal); "
                "remove one, or tell them apart by round_id"
            )
        seen[sample.key] = sample.line


def check_image_name(name: str | None, where: str) -> None:
    """Raise EvalError for a picture outside of the image folder; ``where`` is file and line."""
    if name is not None and (PurePath(name).is_absolute() or ".." in PurePath(name).parts):
        raise EvalError(
            f"{where}: image {name!r} leaves the image folder; give a path below that folder"
        )


def check_images(samples: Sequence[Sample], folder: str | Path) -> None:
    """Raise EvalError unless every sample's picture is there; names the first few missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise EvalError(f"image folder not found: {folder}")
    missing: dict[str, int] = {}
    present: set[str] = set()
    for sample in samples:
        if sample.image is None or sample.image in missing or sample.image in present:
            continue
        if (folder / sample.image).is_file():
            present.add(sample.image)
        else:
            missing[sample.image] = sample.line
    if missing:
        names = [f"{name} (line {line})" for name, line in list(missing.items())[:SHOWN]]
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise EvalError(
            f"{len(missing)} of {len(missing) + len(present)} pictures are not in {folder}: "
            f"{', '.join(names)}{more}; check --image-folder"
        )


def batches_of(num_samples: int, batch_size: int) -> list[range]:
    """Batch k holds the lines k B .. (k + 1) B - 1: fixed by the question file alone."""
    if batch_size < 1:
        raise EvalError(f"batch size must be at least 1, got {batch_size}")
    starts = range(0, num_samples, batch_size)
    return [range(start, min(start + batch_size, num_samples)) for start in starts]


def chunk_of_batches(num_batches: int, num_chunks: int, chunk_idx: int) -> range:
    """Batches of chunk ``chunk_idx`` of ``num_chunks``: contiguous, as LLaVA splits lines.

    Whole batches go to a chunk, so that a chunked run has the same batches as a run in one piece.
    """
    if num_chunks < 1 or not 0 <= chunk_idx < num_chunks:
        raise EvalError(
            f"chunk index {chunk_idx} of {num_chunks} chunks: need 0 <= index < number of chunks"
        )
    size = math.ceil(num_batches / num_chunks)
    return range(min(chunk_idx * size, num_batches), min((chunk_idx + 1) * size, num_batches))
