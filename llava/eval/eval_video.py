"""TGIF-QA, MSVD-QA and MSRVTT-QA in Video-LLaVA's files, scored by normalised exact match.

    python -m llava.eval.eval_video --questions test_q.json --answers test_a.json \\
        --result-file answers.jsonl

The papers let a GPT model judge each answer ("accuracy" and "score"); that is another number, and
`llava.eval.convert_video_for_gpt` writes the file that such a judge reads.  Here an answer counts
where it is the true one after the normalisation of the official VQA script on both sides (case,
punctuation, articles, number words).  A sentence around the right word does not count; how many
answers contain the true one as whole words is told beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.labels import by_type, failed, read_answers, read_json, require_known
from llava.eval.samples import Sample, check_image_name
from llava.eval.vqa_eval import normalise


@dataclass(frozen=True)
class ClipQuestion:
    """One question about a clip.

    Attributes:
        question_id: as in the files.
        video: name of the clip, without its ending.
        kind: its type, "" where the files say none.
        line: its place in the question file, from 1.
    """

    question_id: Any
    video: str
    text: str
    answer: str
    kind: str = ""
    line: int = 0


def _entries(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    content = read_json(path, "a list of objects as in Video-LLaVA's test_q.json and test_a.json")
    if not isinstance(content, list) or not content:
        raise EvalError(f"{path} is no list of questions or answers; use Video-LLaVA's file")
    for i, entry in enumerate(content, start=1):
        lacking = [n for n in names if not isinstance(entry, dict) or n not in entry]
        if lacking:
            raise EvalError(
                f"{path}, entry {i}: no {' and no '.join(lacking)}; use the file as it is"
            )
    return content


def load_questions(questions: str | Path, answers: str | Path) -> list[ClipQuestion]:
    """The questions in order, each with its answer: by question_id, which both files hold.

    ``type`` (or ``answer_type``) of an answer becomes its kind.  EvalError for an id that comes
    twice or has no answer."""
    questions, answers = Path(questions), Path(answers)
    given: dict[str, Mapping[str, Any]] = {}
    for entry in _entries(answers, ("question_id", "answer")):
        name = str(entry["question_id"])
        if name in given:
            raise EvalError(f"{answers}: question_id {name!r} is answered twice")
        given[name] = entry
    out: list[ClipQuestion] = []
    entries = _entries(questions, ("question_id", "video_name", "question"))
    require_known([str(e["question_id"]) for e in entries], given, "answer", answers)
    for i, entry in enumerate(entries, start=1):
        video = str(entry["video_name"])
        check_image_name(video, f"{questions}, entry {i}")
        answer = given[str(entry["question_id"])]
        kind = answer.get("answer_type", answer.get("type"))
        out.append(
            ClipQuestion(
                entry["question_id"], video, str(entry["question"]), str(answer["answer"]),
                "" if kind is None else kind if isinstance(kind, str) else f"type {kind}", i,
            )
        )  # fmt: skip
    return out


def samples_of(questions: Sequence[ClipQuestion]) -> list[Sample]:
    """The questions as they are asked: as they stand, as Video-LLaVA does."""
    return [Sample(q.question_id, q.text, q.video, line=q.line) for q in questions]


def words_of(text: str) -> str:
    """Normalised, without a period at the end; what is an article alone (a sign's "A") stays."""
    text = text.strip().rstrip(". ")
    return normalise(text) or text.lower()


def exact(prediction: str, answer: str) -> bool:
    """Whether both are one after normalisation."""
    return words_of(prediction) == words_of(answer)


def contains(prediction: str, answer: str) -> bool:
    """Whether the normalised answer stands in the prediction as whole words."""
    words, wanted = words_of(prediction).split(), words_of(answer).split()
    n = len(wanted)
    return n > 0 and any(words[i : i + n] == wanted for i in range(len(words) - n + 1))


def score_rows(
    rows: Sequence[Mapping[str, Any]],
    questions: Sequence[ClipQuestion],
    path: str | Path = "the question file",
) -> tuple[list[float], list[float], list[ClipQuestion]]:
    """(exact match, contained), 1 or 0 for every row in order, and each row's question."""
    known = {str(q.question_id): q for q in questions}
    require_known([str(row["question_id"]) for row in rows], known, "question", path)
    asked = [known[str(row["question_id"])] for row in rows]
    right = [
        float(not failed(r) and exact(r["text"], q.answer))
        for r, q in zip(rows, asked, strict=True)
    ]
    held = [
        float(not failed(r) and contains(r["text"], q.answer))
        for r, q in zip(rows, asked, strict=True)
    ]
    return right, held, asked


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score answers about clips by exact match.")
    parser.add_argument("--questions", required=True, help="test_q.json")
    parser.add_argument("--answers", required=True, help="test_a.json")
    parser.add_argument("--result-file", required=True, help="answers.jsonl")
    args = parser.parse_args(argv)
    rows = read_answers(args.result_file)
    questions = load_questions(args.questions, args.answers)
    right, held, asked = score_rows(rows, questions, args.questions)
    print(f"Samples: {len(rows)}\nExact match (no GPT): {100 * sum(right) / len(right):.2f}%")
    print(f"Answer contained: {100 * sum(held) / len(held):.2f}%")
    for kind, (score, n) in by_type(right, [q.kind or None for q in asked]).items():
        print(f"  {kind}: {score:.2f}% ({n} questions)")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
