"""Score ScienceQA answers as LLaVA's script does, for questions with and without a picture.

    python -m llava.eval.eval_science_qa --base-dir scienceqa --result-file answers.jsonl \\
        --output-file output.json --output-result result.json

``--base-dir`` holds ScienceQA's own ``pid_splits.json`` and ``problems.json``.  Every problem of
the split counts; one that is not answered is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.files import write_atomically
from llava.eval.labels import read_answers, read_json, words_of
from llava.eval.samples import Sample, check_distinct, check_image_name

OPTIONS = "ABCDE"
INSTRUCTION = "Answer with the option's letter from the given choices directly."
PICTURE = "<image>"
SENTENCE = re.compile(r"The answer is ([A-Z]).")
NOT_PARSED = "FAILED"


def parsed_letter(text: str) -> str:
    """The letter that an answer gives: alone, at its beginning before ". ", or in exactly one "The
    answer is X" that something follows; "FAILED" for any other answer."""
    if text in tuple(OPTIONS):
        return text
    if text[:1] in tuple(OPTIONS) and text[1:3] == ". ":
        return text[0]
    found = SENTENCE.findall(text)
    return found[0] if len(found) == 1 else NOT_PARSED


def parsed_choice(text: str, num_choices: int) -> int:
    """Place of the choice that an answer names, from 0; -1 where it names none of them."""
    letter = parsed_letter(text)
    return OPTIONS.index(letter) if letter in tuple(OPTIONS[:num_choices]) else -1


# --- files -----------------------------------------------------------------------------------

Problems = dict[str, Mapping[str, Any]]


def load_problems(path: str | Path) -> Problems:
    """``problems.json`` as problem id -> problem; EvalError names the first that is incomplete."""
    content = read_json(path, "ScienceQA's problems.json")
    if not isinstance(content, dict) or not content:
        raise EvalError(f'{path} is not problems.json; expected {{"id": {{"choices", "answer"}}}}')
    for name, problem in content.items():
        choices = problem.get("choices") if isinstance(problem, dict) else None
        answer = problem.get("answer") if isinstance(problem, dict) else None
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(OPTIONS):
            raise EvalError(
                f'{path}, problem {name!r}: it needs 2 to {len(OPTIONS)} "choices", got '
                f"{str(choices)[:80]}; use the official file"
            )
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise EvalError(
                f'{path}, problem {name!r}: "answer" is {answer!r}; it must be the place of one of '
                f"{len(choices)} choices, from 0"
            )
    return content


def load_split(path: str | Path, split: str = "test") -> list[str]:
    """The problem ids of a split in ``pid_splits.json``."""
    splits = read_json(path, "ScienceQA's pid_splits.json")
    if not isinstance(splits, dict) or not isinstance(splits.get(split), list):
        known = ", ".join(splits) if isinstance(splits, dict) else "none"
        raise EvalError(f"{path} has no split {split!r}; it has: {known}")
    return [str(name) for name in splits[split]]


def read_question_list(path: str | Path, instruction: str = INSTRUCTION) -> list[Sample]:
    """Samples of LLaVA's question file, a json list of ``{"id", "conversations", "image"}``.

    Prompts get the line that asks for a letter, as with LLaVA's ``--single-pred-prompt`` ("" leaves
    it out), and those with a picture begin with its placeholder, by which the scorer knows them.
    """
    entries = read_json(path, "a json list of ScienceQA questions")
    if not isinstance(entries, list) or not entries:
        raise EvalError(f"{path} holds no list of questions; expected llava_test_CQM-A.json")
    samples = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number}"
        try:
            name, question = entry["id"], entry["conversations"][0]["value"]
            image = entry.get("image")
            question = question.replace(PICTURE, "").strip()
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise EvalError(
                f'{where}: not {{"id", "conversations": [{{"value": "the question"}}, ...]}} '
                f"({error!r}); use LLaVA's llava_test_CQM-A.json"
            ) from None
        if not isinstance(image, (str, type(None))):
            raise EvalError(f'{where} (id {name!r}): "image" must be a path, got {image!r}')
        check_image_name(image, f"{where} (id {name!r})")
        shown = f"{PICTURE}\n" if image else ""
        prompt = f"{shown}{question}" + (f"\n{instruction}" if instruction else "")
        samples.append(Sample(name, prompt, image or None, line=number))
    check_distinct(samples, path)
    return samples


def check_problems(
    samples: Sequence[Sample], problems: Problems, split: Sequence[str], path: str | Path
) -> None:
    """Raise EvalError where a question is not the problem of its id, or not of the split."""
    members = set(split)
    for sample in samples:
        name = str(sample.question_id)
        where = f"{path}, entry {sample.line} (id {name!r})"
        if name not in problems or name not in members:
            raise EvalError(
                f"{where}: not among the {len(members)} problems of the split; do questions, "
                "pid_splits.json and problems.json belong together?"
            )
        problem = problems[name]
        if "question" in problem and words_of(problem["question"]) not in words_of(sample.prompt):
            raise EvalError(
                f"{where}: it does not ask what problems.json asks there "
                f"({str(problem['question'])[:60]!r}); do the two files belong together?"
            )
        if "image" in problem and bool(problem["image"]) != (sample.image is not None):
            has = "a" if problem["image"] else "no"
            raise EvalError(
                f"{where}: its image is {sample.image!r}, and problems.json has {has} picture for "
                "it; do the two files belong together?"
            )


# --- scores ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marked:
    """One problem's answer, marked."""

    name: str
    text: str
    prompt: str
    choice: int
    answer: int

    @property
    def correct(self) -> bool:
        return self.choice == self.answer

    @property
    def with_picture(self) -> bool:
        return PICTURE in self.prompt

    def analysis(self) -> dict[str, Any]:
        """As LLaVA's output file has it."""
        return {
            "question_id": self.name,
            "parsed_ans": parsed_letter(self.text),
            "ground_truth": OPTIONS[self.answer],
            "question": self.prompt,
            "pred": self.text,
            "is_multimodal": self.with_picture,
        }


def mark(rows: Sequence[Mapping[str, Any]], problems: Problems) -> list[Marked]:
    """Every answer of an answers file, marked, in order; an id without problem is an error."""
    marked = []
    for row in rows:
        name = str(row["question_id"])
        if name not in problems:
            raise EvalError(f"question_id {name!r} is not in problems.json; use the file it is of")
        problem = problems[name]
        choice = parsed_choice(row["text"], len(problem["choices"]))
        marked.append(Marked(name, row["text"], row["prompt"], choice, problem["answer"]))
    return marked


@dataclass(frozen=True)
class Summary:
    """Counts, and accuracies in percent; the picture's is None where no question has one."""

    correct: int
    count: int
    accuracy: float
    image_accuracy: float | None
    marked: list[Marked] = field(repr=False)


def summarise(marked: Sequence[Marked]) -> Summary:
    """Accuracy over all of them, and over those with a picture."""
    shown = [m.correct for m in marked if m.with_picture]
    correct = sum(m.correct for m in marked)
    image = 100 * sum(shown) / len(shown) if shown else None
    return Summary(correct, len(marked), 100 * correct / len(marked), image, list(marked))


def summarise_split(
    rows: Sequence[Mapping[str, Any]], problems: Problems, split: Sequence[str]
) -> Summary:
    """Every problem of the split, unanswered ones wrong (and without a picture, as in LLaVA)."""
    answers = {str(row["question_id"]): row for row in rows}
    missing = {"text": NOT_PARSED, "prompt": "Unknown"}
    unknown = [name for name in split if name not in problems]
    if unknown:
        raise EvalError(f"pid_splits.json names {unknown[0]!r}, which problems.json has not")
    return summarise(
        mark([{"question_id": n, **(answers.get(n) or missing)} for n in split], problems)
    )


def write_outputs(summary: Summary, output_file: Path, output_result: Path) -> None:
    """LLaVA's two files: every answer's analysis, and accuracies with each problem's choice."""
    analyses: dict[str, list[Any]] = {"correct": [], "incorrect": []}
    for m in summary.marked:
        analyses["correct" if m.correct else "incorrect"].append(m.analysis())
    result = {
        "acc": summary.accuracy,
        "correct": summary.correct,
        "count": summary.count,
        "results": {m.name: m.choice for m in summary.marked},
        "outputs": {m.name: m.text for m in summary.marked},
    }
    write_atomically(output_file, json.dumps(analyses, indent=2, ensure_ascii=False))
    write_atomically(output_result, json.dumps(result, indent=2, ensure_ascii=False))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score ScienceQA answers as LLaVA does.")
    parser.add_argument("--base-dir", required=True, help="of pid_splits.json and problems.json")
    parser.add_argument("--result-file", required=True, help="the answers file")
    parser.add_argument("--output-file", help="every answer's analysis goes there")
    parser.add_argument("--output-result", help="accuracy and choices go there")
    parser.add_argument("--split", default="test")
    args = parser.parse_args(argv)
    if (args.output_file is None) != (args.output_result is None):
        raise EvalError("--output-file and --output-result go together; give both or none")
    folder = Path(args.base_dir)
    problems = load_problems(folder / "problems.json")
    rows = read_answers(args.result_file)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("prompt"), str):
            raise EvalError(f'{args.result_file}, answer {number}: no "prompt"')
    split = load_split(folder / "pid_splits.json", args.split)
    summary = summarise_split(rows, problems, split)
    image = "none" if summary.image_accuracy is None else f"{summary.image_accuracy:.2f}%"
    print(
        f"Total: {summary.count}, Correct: {summary.correct}, Accuracy: {summary.accuracy:.2f}%, "
        f"IMG-Accuracy: {image}"
    )
    if args.output_file is not None:
        write_outputs(summary, Path(args.output_file), Path(args.output_result))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
