"""Score MME answers, and write the text files that MME's own ``calculation.py`` takes.

    python -m llava.eval.eval_mme --data-dir MME_Benchmark_release_version \\
        --result-file answers.jsonl --results_dir eval_tool/answers/llava-v1.5-7b
    python -m llava.eval.eval_mme --results_dir eval_tool/answers/llava-v1.5-7b

Every picture has two yes/no questions under one id.  A task's score is accuracy (over questions) +
accuracy+ (over pictures with both right), both in percent; perception sums ten tasks, cognition
four.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.files import write_atomically
from llava.eval.labels import read_answers
from llava.eval.samples import Sample

TASKS = {
    "perception": (
        *("existence", "count", "position", "color", "posters"),
        *("celebrity", "scene", "landmark", "artwork", "OCR"),
    ),
    "cognition": (
        *("commonsense_reasoning", "numerical_calculation"),
        *("text_translation", "code_reasoning"),
    ),
}
ALL_TASKS = tuple(task for tasks in TASKS.values() for task in tasks)
# What LLaVA's question file puts in place of MME's own last sentence.
_LAST_LINES = ("Answer the question using a single word or phrase.", "Please answer yes or no.")


def parse_answer(text: str) -> str:
    """ "yes", "no" or "other", as MME's script reads it: from the first four characters."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


@dataclass(frozen=True)
class Truth:
    """One question of a task's text files: as it stands there, with its answer."""

    file: str
    question: str
    answer: str


Key = tuple[str, str, str]
"""(task, name of the picture without ending, the question's words)."""


def key_of(question_id: str, question: str) -> Key:
    """What a question is found by; the id is the picture's path, ``task/...name.jpg``."""
    path = PurePosixPath(question_id)
    for line in _LAST_LINES:
        question = question.replace(line, " ")
    return path.parts[0], path.stem, re.sub(r"\s+", " ", question).strip()


def task_of(question_id: Any, where: str) -> str:
    """The task that a question id names; EvalError where it names none of the fourteen."""
    task = str(question_id).split("/")[0]
    if task not in ALL_TASKS:
        raise EvalError(
            f"{where}: question_id {question_id!r} names no task of MME; it must begin with one of "
            f"{', '.join(f'{name}/' for name in ALL_TASKS)}"
        )
    return task


def task_folder(data: str | Path, task: str) -> Path:
    """Where a task's text files are: beside its pictures, or in ``questions_answers_YN``."""
    folder = Path(data) / task
    apart = folder / "questions_answers_YN"
    return apart if apart.is_dir() else folder


def read_truth(data: str | Path, tasks: Sequence[str]) -> dict[Key, Truth]:
    """The answers of some tasks; EvalError names file and line of one that cannot be read."""
    truth: dict[Key, Truth] = {}
    for task in tasks:
        folder = task_folder(data, task)
        files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
        if not files:
            raise EvalError(
                f"no question/answer file (*.txt) of task {task!r} in {folder}; unpack MME's "
                "pictures and text files there"
            )
        for file in files:
            truth.update(_read_task_file(file, task))
    return truth


def _read_task_file(file: Path, task: str) -> dict[Key, Truth]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise EvalError(f"{file}: no UTF-8 text ({error}); fetch it again") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question, tab, answer = line.strip().rpartition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise EvalError(
                f"{file}, line {number}: expected a question, a tab and Yes or No, got "
                f"{line[:80]!r}; fetch the file again"
            )
        key = key_of(f"{task}/{file.stem}", question)
        found[(task, file.stem, key[2])] = Truth(file.name, question, answer.strip())
    return found


def truth_of(
    question_id: Any, prompt: str, truth: Mapping[Key, Truth], data: str | Path, where: str
) -> Truth:
    """The answer of a question; EvalError where the task's files do not ask it."""
    key = key_of(str(question_id), prompt)
    if key not in truth:
        file = task_folder(data, key[0]) / f"{key[1]}.txt"
        raise EvalError(
            f"{where}: question {key[2]!r} of {question_id!r} is not in {file}; do question file "
            "and MME's text files belong together?"
        )
    return truth[key]


def check_questions(samples: Sequence[Sample], data: str | Path, questions: str | Path) -> None:
    """Raise EvalError where a question has no task or no answer."""
    places = [f"{questions}, line {sample.line}" for sample in samples]
    tasks = [task_of(s.question_id, place) for s, place in zip(samples, places)]
    truth = read_truth(data, list(dict.fromkeys(tasks)))
    for sample, place in zip(samples, places):
        truth_of(sample.question_id, sample.prompt, truth, data, place)


# --- scores ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marked:
    """One answered question.

    Attributes:
        file: of the picture's questions, by its name in the text files.
        text: what was answered, in one line.
    """

    task: str
    file: str
    question: str
    answer: str
    text: str

    @property
    def correct(self) -> bool:
        return parse_answer(self.text) == self.answer.lower()

    @property
    def line(self) -> str:
        return "\t".join((self.file, self.question, self.answer, self.text))


def mark(rows: Sequence[Mapping[str, Any]], data: str | Path) -> list[Marked]:
    """Every answer of an answers file with what is right, in order."""
    tasks = [task_of(row["question_id"], "the answers file") for row in rows]
    truth = read_truth(data, list(dict.fromkeys(tasks)))
    marked = []
    for task, row in zip(tasks, rows):
        prompt = str(row.get("prompt", ""))
        right = truth_of(row["question_id"], prompt, truth, data, "the answers file")
        text = " ".join(row["text"].split())
        marked.append(Marked(task, right.file, right.question, right.answer, text))
    return marked


@dataclass(frozen=True)
class TaskScore:
    """Accuracy and accuracy+ of a task, 0 to 1.

    Attributes:
        questions, pictures: how many; pictures with one question answered do not count.
        other: answers that are neither yes nor no.
    """

    accuracy: float
    accuracy_plus: float
    questions: int
    pictures: int
    other: int

    @property
    def score(self) -> float:
        return 100 * (self.accuracy + self.accuracy_plus)


def pictures_of(marked: Sequence[Marked]) -> dict[tuple[str, str], list[int]]:
    """(task, file) -> places of its questions, in order of first appearance."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, m in enumerate(marked):
        groups[(m.task, m.file)].append(i)
    return groups


def score_tasks(marked: Sequence[Marked]) -> dict[str, TaskScore]:
    """The score of every task that was asked about, in MME's order."""
    groups = pictures_of(marked)
    scores = {}
    for task in ALL_TASKS:
        mine = [m for m in marked if m.task == task]
        if not mine:
            continue
        pairs = [places for (name, _), places in groups.items() if name == task]
        both = [all(marked[i].correct for i in places) for places in pairs if len(places) == 2]
        scores[task] = TaskScore(
            sum(m.correct for m in mine) / len(mine),
            sum(both) / len(both) if both else 0.0,
            len(mine),
            len(both),
            sum(parse_answer(m.text) == "other" for m in mine),
        )
    return scores


def sums_of(scores: Mapping[str, TaskScore]) -> dict[str, float]:
    """Perception and cognition: sums over those of their tasks that were asked about."""
    return {
        kind: sum(scores[task].score for task in tasks if task in scores)
        for kind, tasks in TASKS.items()
    }


def write_task_files(marked: Sequence[Marked], folder: Path) -> list[Path]:
    """``<task>.txt`` with lines ``file, question, answer, text`` between tabs; both questions of a
    picture stand together, as ``calculation.py`` wants them."""
    lines: dict[str, list[str]] = defaultdict(list)
    for (task, _), places in pictures_of(marked).items():
        lines[task] += [marked[i].line for i in places]
    paths = []
    for task in (name for name in ALL_TASKS if name in lines):
        paths.append(folder / f"{task}.txt")
        write_atomically(paths[-1], "".join(f"{line}\n" for line in lines[task]))
    return paths


def read_task_files(folder: str | Path) -> list[Marked]:
    """What `write_task_files` and LLaVA's ``convert_answer_to_mme.py`` wrote."""
    marked = []
    for task in ALL_TASKS:
        path = Path(folder) / f"{task}.txt"
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            cells = line.split("\t")
            if len(cells) != 4 or cells[2].lower() not in ("yes", "no"):
                raise EvalError(
                    f"{path}, line {number}: expected picture, question, Yes or No and the answer "
                    f"with tabs between, got {line[:80]!r}"
                )
            marked.append(Marked(task, *cells))
    if not marked:
        raise EvalError(f"no <task>.txt of MME in {folder}; tasks are {', '.join(ALL_TASKS)}")
    return marked


def report(scores: Mapping[str, TaskScore]) -> str:
    """The scores as MME's own script prints them."""
    sums, lines = sums_of(scores), []
    for kind, tasks in TASKS.items():
        lines += [f"=========== {kind.capitalize()} ===========", f"total score: {sums[kind]}", ""]
        lines += [f"\t {task}  score: {scores[task].score}" for task in tasks if task in scores]
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score MME answers, task by task.")
    parser.add_argument("--data-dir", help="MME_Benchmark_release_version, with --result-file")
    parser.add_argument("--result-file", help="an answers file to be scored")
    parser.add_argument(
        "--results_dir",
        "--results-dir",
        help="folder of <task>.txt: written with --result-file, else read and scored",
    )
    args = parser.parse_args(argv)
    if args.result_file is None:
        if args.results_dir is None:
            raise EvalError("nothing to score; give --result-file and --data-dir, or --results_dir")
        marked = read_task_files(args.results_dir)
    else:
        if args.data_dir is None:
            raise EvalError("--result-file needs --data-dir, the folder of MME's tasks")
        marked = mark(read_answers(args.result_file), args.data_dir)
        if args.results_dir is not None:
            write_task_files(marked, Path(args.results_dir))
    print(report(score_tasks(marked)))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
