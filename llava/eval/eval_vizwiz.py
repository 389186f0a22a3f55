"""Score VizWiz answers with VizWiz's metric; questions that cannot be answered are included.

    python -m llava.eval.eval_vizwiz --annotation-file val.json --result-file answers.jsonl

VizWiz asks one question a picture, and annotations are matched by the picture's name.
``--result-file`` may also be an upload file, a json list of ``{"image", "answer"}``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.eval_vqav2 import SHORT_ANSWER
from llava.eval.labels import by_type, failed, human_answers, read_answers, read_json, require_known
from llava.eval.samples import Sample, check_image_name
from llava.eval.vqa_eval import vizwiz_accuracy

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


@dataclass(frozen=True)
class Annotation:
    """What is known of a question."""

    humans: tuple[str, ...]
    answer_type: str


def _entries(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Entries of an official file as (file and entry, entry); each has image and question."""
    content = read_json(path, "a VizWiz annotation file")
    if not isinstance(content, list) or not content:
        raise EvalError(
            f'{path} is not a VizWiz annotation file; expected a list of {{"image", "question", '
            '"answers", "answer_type"}'
        )
    found = []
    for i, entry in enumerate(content):
        where = f"{path}, entry {i + 1}"
        texts = [entry.get("image"), entry.get("question")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise EvalError(f'{where}: "image" and "question" expected, got {str(entry)[:80]!r}')
        check_image_name(entry["image"], where)
        found.append((where, entry))
    return found


def load_annotations(path: str | Path) -> dict[str, Annotation]:
    """``val.json`` as picture's name -> annotation."""
    found: dict[str, Annotation] = {}
    for where, entry in _entries(path):
        name = entry["image"]
        if name in found:
            raise EvalError(f"{where}: picture {name!r} was annotated before; remove one")
        humans = human_answers(entry, f"{where} ({name})")
        found[name] = Annotation(tuple(humans), str(entry.get("answer_type", "other")))
    return found


def read_official_questions(path: str | Path) -> list[Sample]:
    """Samples of ``val.json`` or ``test.json``, with LLaVA's prompt."""
    return [
        Sample(
            entry["image"],
            f"{entry['question']}\n{UNANSWERABLE}\n{SHORT_ANSWER}",
            entry["image"],
            line=i + 1,
        )
        for i, (_, entry) in enumerate(_entries(path))
    ]


def picture_of(row: Mapping[str, Any]) -> str:
    """The picture's name in an answer or question; question_id where it names none."""
    return PurePath(str(row.get("image") or row["question_id"])).name


def score_answers(
    rows: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, Annotation],
    path: str | Path = "the annotation file",
) -> list[float]:
    """Accuracy (0..1) of every answer, in order; see `vqa_eval.vizwiz_accuracy`."""
    require_known([picture_of(row) for row in rows], annotations, "annotation", path)
    return [
        0.0 if failed(row) else vizwiz_accuracy(row["text"], annotations[picture_of(row)].humans)
        for row in rows
    ]


def read_result_file(path: str | Path) -> list[dict[str, Any]]:
    """Rows of an answers file, or of an upload file."""
    if Path(path).suffix != ".json":
        return read_answers(path)
    try:
        return [
            {"question_id": entry["image"], "image": entry["image"], "text": str(entry["answer"])}
            for entry in read_json(path, "a VizWiz upload file")
        ]
    except (KeyError, TypeError) as error:
        raise EvalError(
            f'{path} is not a VizWiz upload file ({error!r}); expected a list of {{"image", '
            '"answer"}'
        ) from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score VizWiz answers with VizWiz's metric.")
    parser.add_argument("--annotation-file", required=True, help="val.json")
    parser.add_argument("--result-file", required=True, help="answers.jsonl, or an upload json")
    args = parser.parse_args(argv)
    annotations = load_annotations(args.annotation_file)
    rows = read_result_file(args.result_file)
    scores = score_answers(rows, annotations, args.annotation_file)
    print(f"Samples: {len(rows)}\nOverall accuracy: {100 * sum(scores) / len(scores):.2f}")
    print("Per answer type:")
    kinds = [annotations[picture_of(row)].answer_type for row in rows]
    for kind, (score, n) in by_type(scores, kinds).items():
        print(f"  {kind}: {score:.2f} ({n})")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
