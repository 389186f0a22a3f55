"""MM-Vet (Yu et al., ICML 2024, arXiv 2308.02490): open questions, which GPT-4 rates elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles, Scores, require_files
from llava.eval.convert_mmvet_for_eval import write_results
from llava.eval.errors import EvalError
from llava.eval.samples import Sample

RESULTS = "results.json"


class MMVet(Benchmark):
    """Answers for its evaluator; no score."""

    name = "mmvet"
    title = "MM-Vet"
    metric = "rated elsewhere"
    default_data = "playground/data/eval/mmvet"
    max_new_tokens = 1024

    def files(self, data: str | Path) -> BenchmarkFiles:
        folder = Path(data)
        questions, images = folder / "llava-mm-vet.jsonl", folder / "images"
        require_files(
            self.title,
            {"questions": questions, "images": images},
            "docs/evaluation.md says where to get the files; DATA or --data says where they are",
        )
        return BenchmarkFiles(questions, images, None, split="v1")

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        lines: dict[str, int] = {}
        for sample in samples:
            name = str(sample.question_id)
            if name in lines:
                raise EvalError(
                    f"{files.questions}: lines {lines[name]} and {sample.line} have the same "
                    f"question_id {name}, which must tell MM-Vet's questions apart; mend one"
                )
            lines[name] = sample.line

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        return Scores(None, [0.0] * len(rows))

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        write_results(folder / RESULTS, rows)
        return [folder / RESULTS]
