"""Score VQAv2 answers with the official metric.

    python -m llava.eval.eval_vqav2 --annotation-file v2_mscoco_val2014_annotations.json \\
        --result-file answers.jsonl

Answers are matched by question_id.  ``--result-file`` may also be the official results file, a json
list of ``{"question_id", "answer"}``.  What is normalised: `llava.eval.vqa_eval`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.labels import by_type, failed, human_answers, read_answers, read_json, require_known
from llava.eval.samples import Sample, check_distinct
from llava.eval.vqa_eval import vqa_accuracy

SHORT_ANSWER = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Annotation:
    """What is known of a question; ``image_id`` is the COCO picture's number."""

    humans: tuple[str, ...]
    answer_type: str
    question_type: str
    image_id: int | None


def load_annotations(path: str | Path) -> dict[str, Annotation]:
    """An official annotation file as question_id (as text) -> annotation."""
    content = read_json(path, "a VQAv2 annotation file")
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise EvalError(f'{path} is not a VQAv2 annotation file; expected {{"annotations": [...]}}')
    found: dict[str, Annotation] = {}
    for i, entry in enumerate(entries):
        where = f"{path}, annotation {i + 1}"
        if not isinstance(entry, dict) or "question_id" not in entry:
            raise EvalError(f"{where}: no question_id in {str(entry)[:80]!r}")
        name = str(entry["question_id"])
        if name in found:
            raise EvalError(f"{where}: question_id {name} was annotated before; remove one")
        found[name] = Annotation(
            tuple(human_answers(entry, f"{where} (question_id {name})")),
            str(entry.get("answer_type", "other")),
            str(entry.get("question_type", "")),
            entry.get("image_id"),
        )
    return found


def read_official_questions(path: str | Path) -> list[Sample]:
    """Samples of an official question file (``v2_OpenEnded_mscoco_val2014_questions.json``), with
    LLaVA's prompt; pictures are named as in COCO's folders."""
    content = read_json(path, "a VQAv2 question file")
    entries = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise EvalError(f'{path} is not a VQAv2 question file; expected {{"questions": [...]}}')
    folder = image_folder(str(content.get("data_subtype", "val2014")))
    samples = []
    for i, entry in enumerate(entries):
        try:
            name = f"COCO_{folder}_{int(entry['image_id']):012d}.jpg"
            prompt = f"{entry['question']}\n{SHORT_ANSWER}"
            samples.append(Sample(entry["question_id"], prompt, name, line=i + 1))
        except (KeyError, TypeError, ValueError) as error:
            raise EvalError(
                f'{path}, question {i + 1}: expected {{"image_id", "question", "question_id"}}, '
                f"got {str(entry)[:80]!r} ({error!r})"
            ) from None
    check_distinct(samples, path)
    return samples


def image_folder(subtype: str) -> str:
    """COCO's folder for a ``data_subtype``: test-dev's pictures are among test's."""
    return subtype.replace("test-dev", "test")


def check_labels(
    samples: Sequence[Sample], annotations: Mapping[str, Annotation], path: str | Path
) -> None:
    """Raise EvalError for a question without annotation, or with one of another picture."""
    require_known([str(s.question_id) for s in samples], annotations, "annotation", path)
    for sample in samples:
        number = re.search(r"(\d+)\.\w+$", sample.image or "")
        asked = annotations[str(sample.question_id)].image_id
        if number is not None and asked is not None and int(number.group(1)) != asked:
            raise EvalError(
                f"{path}: question_id {sample.question_id!r} is about picture {asked} there, and "
                f"about {sample.image!r} in the question file (line {sample.line}); do the two "
                "files belong together?"
            )


def score_answers(
    rows: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, Annotation],
    path: str | Path = "the annotation file",
    as_written: bool = False,
) -> list[float]:
    """Accuracy (0..1) of every answer, in order; see `vqa_eval.vqa_accuracy`."""
    require_known([str(row["question_id"]) for row in rows], annotations, "annotation", path)
    return [
        0.0
        if failed(row)
        else vqa_accuracy(row["text"], annotations[str(row["question_id"])].humans, as_written)
        for row in rows
    ]


def read_result_file(path: str | Path) -> list[dict[str, Any]]:
    """Rows of an answers file, or of an official results file."""
    if Path(path).suffix != ".json":
        return read_answers(path)
    try:
        return [
            {"question_id": entry["question_id"], "text": str(entry["answer"])}
            for entry in read_json(path, "a VQA results file")
        ]
    except (KeyError, TypeError) as error:
        raise EvalError(
            f"{path} is not a VQA results file ({error!r}); expected a list of "
            '{"question_id", "answer"}'
        ) from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score VQAv2 answers with the official metric.")
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True, help="answers.jsonl, or a results json")
    parser.add_argument(
        "--as-written",
        action="store_true",
        help="where all ten humans agree, compare strings as they are, as the script does",
    )
    args = parser.parse_args(argv)
    annotations = load_annotations(args.annotation_file)
    rows = read_result_file(args.result_file)
    scores = score_answers(rows, annotations, args.annotation_file, args.as_written)
    print(f"Samples: {len(rows)}\nOverall accuracy: {100 * sum(scores) / len(scores):.2f}")
    known = [annotations[str(row["question_id"])] for row in rows]
    for title, kinds in (
        ("answer type", [a.answer_type for a in known]),
        ("question type", [a.question_type or None for a in known]),
    ):
        print(f"Per {title}:")
        for kind, (score, n) in by_type(scores, kinds).items():
            print(f"  {kind}: {score:.2f} ({n})")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
