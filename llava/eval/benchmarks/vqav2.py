"""VQAv2 (Goyal et al., CVPR 2017): open questions about COCO pictures, ten answers each.

The answers of test-dev are not public: it is answered and put in the file that the server takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.base import BenchmarkFiles, Scores
from llava.eval.benchmarks.human import human_scores
from llava.eval.benchmarks.splits import Split, SplitBenchmark
from llava.eval.convert_vqav2_for_submission import UPLOAD_QUESTIONS, convert
from llava.eval.eval_vqav2 import (
    check_labels,
    load_annotations,
    read_official_questions,
    score_answers,
)
from llava.eval.files import write_atomically
from llava.eval.labels import question_ids
from llava.eval.samples import Sample, read_questions

SPLITS = (
    Split(
        "val",
        ("llava_vqav2_mscoco_val2014.jsonl", "v2_OpenEnded_mscoco_val2014_questions.json"),
        ("val2014",),
        ("v2_mscoco_val2014_annotations.json",),
    ),
    Split(
        "test-dev",
        (
            "llava_vqav2_mscoco_test-dev2015.jsonl",
            "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        ),
        ("test2015",),
    ),
)


class VQAv2(SplitBenchmark):
    """VQA accuracy over ten human answers; see ``llava.eval.vqa_eval``."""

    name = "vqav2"
    title = "VQAv2"
    metric = "VQA accuracy"
    default_data = "playground/data/eval/vqav2"
    split_files = SPLITS
    splits = tuple(split.name for split in SPLITS)

    read_official = staticmethod(read_official_questions)

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        question_ids(samples, files.questions)
        if files.annotations is not None:
            check_labels(samples, load_annotations(files.annotations), files.annotations)

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        if files.annotations is None:
            return Scores(None, [])
        annotations = load_annotations(files.annotations)
        per_sample = score_answers(rows, annotations, files.annotations)
        return human_scores(per_sample, [annotations[str(row["question_id"])] for row in rows])

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        """``upload.json``: every question of the server's list, unanswered ones with an empty
        answer.  That list is all of test2015 where LLaVA's file of it is there."""
        everything = files.questions.with_name(UPLOAD_QUESTIONS)
        if files.split == "test-dev" and everything.is_file():
            ids = question_ids(read_questions(everything), everything)
        else:
            ids = question_ids(self.read(files), files.questions)
        path = folder / "upload.json"
        write_atomically(path, convert(rows, ids))
        return [path]
