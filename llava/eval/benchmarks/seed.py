"""SEED-Bench (Li et al., CVPR 2024, arXiv 2307.16125), the questions about pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles, Scores, require_files
from llava.eval.errors import EvalError
from llava.eval.eval_seed import LETTERS, check_questions, load_questions, write_upload
from llava.eval.labels import by_question, by_type
from llava.eval.samples import Sample, read_questions


class SEEDBench(Benchmark):
    """Share of right letters, over all questions and by dimension."""

    name = "seed"
    title = "SEED-Bench (pictures)"
    default_data = "playground/data/eval/seed"

    def files(self, data: str | Path) -> BenchmarkFiles:
        folder = Path(data)
        questions, answers = folder / "llava-seed-bench.jsonl", folder / "SEED-Bench.json"
        require_files(
            self.title,
            {
                "questions": questions,
                "annotations": answers,
                "images": folder / "SEED-Bench-image",
            },
            "docs/evaluation.md says where to get the files; DATA or --data says where they are",
        )
        # The question file's paths begin with SEED-Bench-image/, or another folder for videos.
        return BenchmarkFiles(questions, folder, answers, split="image")

    def read(self, files: BenchmarkFiles) -> list[Sample]:
        """The question file's questions about pictures; those about videos' frames are left out."""
        known = load_questions(files.answers)
        videos = {name for name, question in known.items() if question.kind != "image"}
        everything = read_questions(files.questions)
        samples = [s for s in everything if str(s.question_id) not in videos]
        if not samples:
            raise EvalError(
                f"{files.questions} asks about videos only, by {files.answers}; use LLaVA's "
                "llava-seed-bench.jsonl"
            )
        return samples

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        check_questions(samples, load_questions(files.answers), files.questions)

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        known = load_questions(files.answers)
        questions = [known[str(row["question_id"])] for row in rows]
        per_sample = [float(row["text"] == q.answer) for row, q in zip(rows, questions)]
        return Scores(
            100 * sum(per_sample) / len(per_sample),
            per_sample,
            by_type(per_sample, [q.dimension for q in questions]),
            kinds=[(q.dimension,) for q in questions],
            right=[f"{q.answer}. {q.choices[LETTERS.index(q.answer)]}" for q in questions],
        )

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        """The leaderboard's file, of what is answered."""
        path = folder / "seed_upload.jsonl"
        write_upload(by_question(rows), list(load_questions(files.answers).values()), path)
        return [path]
