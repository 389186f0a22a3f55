"""VizWiz (Gurari et al., CVPR 2018): questions of blind people about their own photographs, many of
which cannot be answered.

The answers of test are not public: it is answered and put in the file that the server takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.base import BenchmarkFiles, Scores
from llava.eval.benchmarks.human import human_scores
from llava.eval.benchmarks.splits import Split, SplitBenchmark
from llava.eval.convert_vizwiz_for_submission import convert
from llava.eval.errors import EvalError
from llava.eval.eval_vizwiz import (
    load_annotations,
    picture_of,
    read_official_questions,
    score_answers,
)
from llava.eval.files import write_atomically
from llava.eval.labels import question_ids, require_known
from llava.eval.samples import Sample

SPLITS = (
    Split("val", ("llava_val.jsonl", "val.json"), ("val",), ("val.json",)),
    Split("test", ("llava_test.jsonl", "test.json"), ("test",)),
)


class VizWiz(SplitBenchmark):
    """VQA accuracy over ten human answers, by VizWiz's script; see ``llava.eval.vqa_eval``."""

    name = "vizwiz"
    title = "VizWiz"
    metric = "VQA accuracy"
    default_data = "playground/data/eval/vizwiz"
    split_files = SPLITS
    splits = tuple(split.name for split in SPLITS)

    read_official = staticmethod(read_official_questions)

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        question_ids(samples, files.questions)
        lines: dict[str, int] = {}
        for sample in samples:
            where = f"{files.questions}, line {sample.line}"
            if sample.image is None:
                raise EvalError(f"{where}: no image; answers are matched by it")
            name = picture_of({"image": sample.image})
            if name in lines:
                raise EvalError(
                    f"{where}: picture {name!r} was asked about in line {lines[name]}; VizWiz has "
                    "one question a picture, and annotations are matched by it"
                )
            lines[name] = sample.line
        if files.annotations is not None:
            annotations = load_annotations(files.annotations)
            require_known(list(lines), annotations, "annotation", files.annotations)

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        if files.annotations is None:
            return Scores(None, [])
        annotations = load_annotations(files.annotations)
        per_sample = score_answers(rows, annotations, files.annotations)
        return human_scores(per_sample, [annotations[picture_of(row)] for row in rows])

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        """``upload.json`` for the questions that were asked; the server wants all of test's."""
        path = folder / "upload.json"
        write_atomically(path, convert(rows, rows))
        return [path]
