"""ScienceQA (Lu et al., NeurIPS 2022, arXiv 2209.09513), test split, in LLaVA's question file.

School questions with two to five choices, about half of them with a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles, Scores, require_files
from llava.eval.eval_science_qa import (
    OPTIONS,
    check_problems,
    load_problems,
    load_split,
    mark,
    read_question_list,
    summarise,
    write_outputs,
)
from llava.eval.labels import by_type
from llava.eval.samples import Sample

SUBJECTS = {
    "natural science": "subject: natural",
    "social science": "subject: social",
    "language science": "subject: language",
}


class ScienceQA(Benchmark):
    """Share of right choices, over all questions and over those with a picture."""

    name = "sqa"
    title = "ScienceQA"
    beside = ("image accuracy",)
    default_data = "playground/data/eval/sqa"

    def files(self, data: str | Path) -> BenchmarkFiles:
        folder = Path(data)
        questions, images = folder / "llava_test_CQM-A.json", folder / "images" / "test"
        problems, splits = folder / "problems.json", folder / "pid_splits.json"
        require_files(
            self.title,
            {"questions": questions, "images": images, "problems": problems, "splits": splits},
            "docs/evaluation.md says where to get the files; DATA or --data says where they are",
        )
        return BenchmarkFiles(questions, images, problems, split="test")

    def read(self, files: BenchmarkFiles) -> list[Sample]:
        return read_question_list(files.questions)

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        split = load_split(files.answers.with_name("pid_splits.json"), files.split)
        check_problems(samples, load_problems(files.answers), split, files.questions)

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        problems = load_problems(files.answers)
        marked = mark(rows, problems)
        summary = summarise(marked)
        per_sample = [float(m.correct) for m in marked]
        types: dict[str, tuple[float, int]] = {}
        kinds = [kinds_of(problems[m.name], m.with_picture) for m in marked]
        for group in zip(*kinds):
            types.update(by_type(per_sample, group))
        figures = {}
        if summary.image_accuracy is not None:
            figures["image accuracy"] = summary.image_accuracy
        return Scores(
            summary.accuracy,
            per_sample,
            types,
            figures,
            kinds=[tuple(kind for kind in group if kind is not None) for group in kinds],
            right=[f"{OPTIONS[m.answer]}. {problems[m.name]['choices'][m.answer]}" for m in marked],
        )

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        """LLaVA's output and result files."""
        paths = [folder / "scienceqa_output.json", folder / "scienceqa_result.json"]
        write_outputs(summarise(mark(rows, load_problems(files.answers))), *paths)
        return paths


def kinds_of(problem: Mapping[str, Any], with_picture: bool) -> tuple[str | None, ...]:
    """The groups that ScienceQA's authors report: subject, context, grades; None where the problem
    does not say."""
    grade = str(problem.get("grade", "")).removeprefix("grade")
    grades = None
    if grade.isdigit():
        grades = "grades: 1-6" if int(grade) <= 6 else "grades: 7-12"
    text = bool(str(problem.get("hint", "")).strip())
    return (
        SUBJECTS.get(str(problem.get("subject"))),
        "context: picture" if with_picture else None,
        "context: text" if text else None,
        None if with_picture or text else "context: none",
        grades,
    )
