"""GQA (Hudson and Manning, CVPR 2019): compositional questions about scene graphs, test-dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.base import BenchmarkFiles, Scores
from llava.eval.benchmarks.splits import Split, SplitBenchmark
from llava.eval.convert_gqa_for_eval import convert
from llava.eval.eval_gqa import (
    accuracy_by_type,
    check_labels,
    load_questions,
    read_official_questions,
    score_answers,
)
from llava.eval.files import write_atomically
from llava.eval.labels import question_ids
from llava.eval.samples import Sample

OFFICIAL = (
    "data/testdev_balanced_questions.json",
    "data/questions1.2/testdev_balanced_questions.json",
    "testdev_balanced_questions.json",
)
PREDICTIONS = "testdev_balanced_predictions.json"
SPLITS = (
    Split(
        "testdev_balanced",
        ("llava_gqa_testdev_balanced.jsonl", *OFFICIAL),
        ("data/images", "images"),
        OFFICIAL,
    ),
)


class GQA(SplitBenchmark):
    """Share of predictions that are the answer, word for word."""

    name = "gqa"
    title = "GQA"
    beside = ("binary", "open")
    default_data = "playground/data/eval/gqa"
    split_files = SPLITS

    read_official = staticmethod(read_official_questions)

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        question_ids(samples, files.questions)
        check_labels(samples, load_questions(files.answers), files.answers)

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        questions = load_questions(files.answers)
        per_sample = score_answers(rows, questions, files.answers)
        asked = [questions[str(row["question_id"])] for row in rows]
        types = accuracy_by_type(per_sample, asked)
        figures = {form: types[form][0] for form in self.beside if form in types}
        return Scores(
            100 * sum(per_sample) / len(per_sample),
            per_sample,
            types,
            figures,
            kinds=[question.kinds for question in asked],
            right=[question.answer for question in asked],
        )

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        """The predictions file that the official script reads."""
        path = folder / PREDICTIONS
        write_atomically(path, convert(rows))
        return [path]
