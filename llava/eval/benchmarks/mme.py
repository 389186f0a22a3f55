"""MME (Fu et al., 2023, arXiv 2306.13394): fourteen tasks of yes/no questions in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles, Scores, require_files
from llava.eval.eval_mme import (
    Marked,
    check_questions,
    mark,
    pictures_of,
    score_tasks,
    sums_of,
    write_task_files,
)
from llava.eval.samples import Sample

COLUMNS = 4  # of a task in `Scores.parts`: right answers, questions, pictures all right, pictures


class MME(Benchmark):
    """Perception and cognition, each the sum of its tasks' accuracy + accuracy+."""

    name = "mme"
    title = "MME"
    metric = "perception + cognition"
    beside = ("perception", "cognition")
    default_data = "playground/data/eval/mme"

    def files(self, data: str | Path) -> BenchmarkFiles:
        folder = Path(data)
        questions, tasks = folder / "llava_mme.jsonl", folder / "MME_Benchmark_release_version"
        require_files(
            self.title,
            {"questions": questions, "pictures and answers": tasks},
            "docs/evaluation.md says where to get the files; DATA or --data says where they are",
        )
        inner = tasks / "MME_Benchmark"  # where some archives have them
        tasks = inner if inner.is_dir() else tasks
        return BenchmarkFiles(questions, tasks, tasks, split="all tasks")

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        check_questions(samples, files.answers, files.questions)

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        marked = mark(rows, files.answers)
        tasks = score_tasks(marked)
        sums = sums_of(tasks)
        return Scores(
            sum(sums.values()),
            [float(m.correct) for m in marked],
            {name: (task.score, task.questions) for name, task in tasks.items()},
            {**sums, "tasks": len(tasks)},
            {
                name: {
                    "accuracy": 100 * task.accuracy,
                    "accuracy+": 100 * task.accuracy_plus,
                    "pictures": task.pictures,
                    "other answers": task.other,
                }
                for name, task in tasks.items()
            },
            _parts(marked, list(tasks)),
            [(m.task,) for m in marked],
            [m.answer for m in marked],
        )

    def headline(self, sums: np.ndarray) -> np.ndarray:
        """The tasks' scores, summed; a task that a draw leaves out scores 0."""
        right, questions, both, pictures = (sums[..., i::COLUMNS] for i in range(COLUMNS))
        accuracy = right / np.maximum(questions, 1)
        return 100 * (accuracy + both / np.maximum(pictures, 1)).sum(-1)

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        """``eval_tool/<task>.txt``, for MME's own ``calculation.py --results_dir``."""
        return write_task_files(mark(rows, files.answers), folder / "eval_tool")


def _parts(marked: Sequence[Marked], tasks: Sequence[str]) -> np.ndarray:
    """[n, 4 tasks]; what a picture counts stands in the row of its second question."""
    parts = np.zeros((len(marked), COLUMNS * len(tasks)))
    for i, m in enumerate(marked):
        c = COLUMNS * tasks.index(m.task)
        parts[i, c : c + 2] = m.correct, 1
    for (task, _), places in pictures_of(marked).items():
        if len(places) == 2:
            c = COLUMNS * tasks.index(task)
            parts[places[1], c + 2 : c + 4] = all(marked[i].correct for i in places), 1
    return parts
