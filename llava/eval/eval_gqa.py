"""Score GQA answers as the official script does: 1 where the prediction is the answer, else 0.

    python -m llava.eval.eval_gqa --questions testdev_balanced_questions.json \\
        --result-file answers.jsonl

An answer becomes a prediction as in LLaVA (`prediction_of`).  Accuracy is over the balanced
questions; questions whose structural type is "query" are open, all others binary.
``--result-file`` may also be a predictions file, a json list of ``{"questionId", "prediction"}``.
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
from llava.eval.labels import by_type, failed, read_answers, read_json, require_known
from llava.eval.samples import Sample, check_image_name

SEMANTIC = {
    "attr": "attribute", "cat": "category", "global": "scene", "obj": "object", "rel": "relation",
}  # fmt: skip
"""The official script's names of the semantic types."""


@dataclass(frozen=True)
class Question:
    """One entry of a question file.

    Attributes:
        structural: "query", "verify", "choose", "logical" or "compare".
        semantic: "attribute", "category", "scene", "object" or "relation".
    """

    text: str
    image_id: str
    answer: str
    structural: str
    semantic: str
    balanced: bool = True

    @property
    def form(self) -> str:
        return "open" if self.structural == "query" else "binary"

    @property
    def kinds(self) -> tuple[str, str, str]:
        """The types that it counts for."""
        return self.form, f"structural: {self.structural}", f"semantic: {self.semantic}"


def load_questions(path: str | Path) -> dict[str, Question]:
    """An official question file as id -> question, in its order."""
    content = read_json(path, "a GQA question file")
    if not isinstance(content, dict) or not content:
        raise EvalError(f"{path} is not a GQA question file; expected {{id: {{...}}, ...}}")
    found = {}
    for name, entry in content.items():
        try:
            found[name] = Question(
                str(entry["question"]),
                str(entry["imageId"]),
                str(entry["answer"]),
                str(entry["types"]["structural"]),
                SEMANTIC.get(entry["types"]["semantic"], str(entry["types"]["semantic"])),
                bool(entry.get("isBalanced", True)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise EvalError(
                f'{path}, question {name!r}: expected "question", "imageId", "answer" and "types" '
                f'with "structural" and "semantic" ({error!r}); use the official file'
            ) from None
    return found


def read_official_questions(path: str | Path) -> list[Sample]:
    """Samples of an official question file's balanced questions, with LLaVA's prompt."""
    samples = []
    for i, (name, question) in enumerate(load_questions(path).items()):
        image = f"{question.image_id}.jpg"
        check_image_name(image, f"{path}, question {name!r}")
        if question.balanced:
            samples.append(Sample(name, f"{question.text}\n{SHORT_ANSWER}", image, line=i + 1))
    return samples


def prediction_of(text: str) -> str:
    """An answer as LLaVA hands it in: without periods at its end, in lower case."""
    return text.rstrip(".").lower()


def check_labels(
    samples: Sequence[Sample], questions: Mapping[str, Question], path: str | Path
) -> None:
    """Raise EvalError for a question that is not in the file, not balanced, or about another
    picture there."""
    require_known([str(s.question_id) for s in samples], questions, "question", path)
    for sample in samples:
        question = questions[str(sample.question_id)]
        if sample.image is not None and PurePath(sample.image).stem != question.image_id:
            raise EvalError(
                f"{path}: question {sample.question_id!r} is about picture {question.image_id!r} "
                f"there, and about {sample.image!r} in the question file (line {sample.line}); do "
                "the two files belong together?"
            )
        if not question.balanced:
            raise EvalError(
                f"{path}: question {sample.question_id!r} (line {sample.line} of the question "
                "file) is not among the balanced ones, over which accuracy is computed; use the "
                "balanced questions"
            )


def score_answers(
    rows: Sequence[Mapping[str, Any]],
    questions: Mapping[str, Question],
    path: str | Path = "the question file",
) -> list[float]:
    """1 or 0 for every answer, in order."""
    require_known([str(row["question_id"]) for row in rows], questions, "question", path)
    return [
        float(
            not failed(row)
            and prediction_of(row["text"]) == questions[str(row["question_id"])].answer
        )
        for row in rows
    ]


def accuracy_by_type(
    scores: Sequence[float], questions: Sequence[Question]
) -> dict[str, tuple[float, int]]:
    """Accuracy (0..100) and number of binary and open questions, and of every structural and
    semantic type."""
    found: dict[str, tuple[float, int]] = {}
    for kinds in zip(*(question.kinds for question in questions)):
        found.update(by_type(scores, kinds))
    return found


def read_result_file(path: str | Path) -> list[dict[str, Any]]:
    """Rows of an answers file, or of a predictions file."""
    if Path(path).suffix != ".json":
        return read_answers(path)
    try:
        return [
            {"question_id": entry["questionId"], "text": str(entry["prediction"])}
            for entry in read_json(path, "a GQA predictions file")
        ]
    except (KeyError, TypeError) as error:
        raise EvalError(
            f"{path} is not a GQA predictions file ({error!r}); expected a list of "
            '{"questionId", "prediction"}'
        ) from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score GQA answers as the official script does.")
    parser.add_argument("--questions", required=True, help="testdev_balanced_questions.json")
    parser.add_argument("--result-file", required=True, help="answers.jsonl, or predictions json")
    args = parser.parse_args(argv)
    questions = load_questions(args.questions)
    rows = read_result_file(args.result_file)
    require_known([str(row["question_id"]) for row in rows], questions, "question", args.questions)
    rows = [row for row in rows if questions[str(row["question_id"])].balanced]
    if not rows:
        raise EvalError(f"{args.result_file} answers no balanced question of {args.questions}")
    scores = score_answers(rows, questions, args.questions)
    print(f"Samples: {len(rows)}\nAccuracy: {100 * sum(scores) / len(scores):.2f}%")
    asked = [questions[str(row["question_id"])] for row in rows]
    for kind, (score, n) in accuracy_by_type(scores, asked).items():
        print(f"  {kind}: {score:.2f}% ({n} questions)")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
