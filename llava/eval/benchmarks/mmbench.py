"""MMBench and MMBench-CN (Liu et al., ECCV 2024, arXiv 2307.06281): multiple choice, every option
at every letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles, Scores
from llava.eval.benchmarks.splits import Split, find_split
from llava.eval.convert_mmbench_for_submission import require_openpyxl, write_upload
from llava.eval.errors import EvalError
from llava.eval.eval_mmbench import accuracy, by_ability, judge, unread, whole_questions
from llava.eval.mmbench_tsv import CHINESE, ENGLISH, TsvPictures, read_table
from llava.eval.samples import Sample

UPLOAD = "upload.xlsx"


def _split(name: str) -> Split:
    """Questions, pictures and answers are one file, named as the split."""
    file = (f"{name}.tsv",)
    return Split(name, file, file, file)


class MMBench(Benchmark):
    """A question counts where it is answered correctly in every rotation of its options.

    A file without rotations gives plain accuracy, a test file no score; both an upload file.
    """

    name = "mmbench"
    title = "MMBench"
    metric = "circular accuracy"
    beside: tuple[str, ...] = ("plain",)
    default_data = "playground/data/eval/mmbench"
    max_new_tokens = 1024
    instruction = ENGLISH
    splits: tuple[str, ...] = (
        "mmbench_dev_20230712",
        "mmbench_dev_en_20231003",
        "MMBench_DEV_EN_legacy",
        "MMBench_DEV_EN",
        "mmbench_test_20230712",
        "mmbench_test_en_20231003",
        "MMBench_TEST_EN_legacy",
        "MMBench_TEST_EN",
    )

    def files(self, data: str | Path) -> BenchmarkFiles:
        return find_split(self, data, [_split(name) for name in self.splits])

    def read(self, files: BenchmarkFiles) -> list[Sample]:
        """Each question is followed by its circular rows, so that a limit cuts few of them off."""
        table = read_table(files.questions)
        if not table.circular:
            self.metric, self.beside = "accuracy", ()
        return table.samples(self.instruction)

    def pictures(self, files: BenchmarkFiles) -> TsvPictures:
        return read_table(files.questions).pictures

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        require_openpyxl()
        table = read_table(files.questions)
        rows = [{"question_id": sample.question_id, "text": ""} for sample in samples]
        if table.labelled and not whole_questions(judge(rows, table), table):
            first = table.rows[0].question
            size = sum(row.question == first for row in table.rows)
            raise EvalError(
                f"limit {len(samples)} leaves no question with all its circular rows; the first, "
                f"index {first}, has {size}: set LIMIT to {size} or more"
            )

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        table = read_table(files.questions)
        if not table.labelled:
            return Scores(None, [0.0] * len(rows))
        judged = judge(rows, table)
        whole = whole_questions(judged, table)
        total, abilities = accuracy(judged, whole), by_ability(judged, whole)
        figures = {} if total.plain is None else {"plain": total.plain}
        parts = np.zeros((len(rows), 2))
        for places in whole.values():
            parts[places[0]] = all(judged[i].right for i in places), 1
        return Scores(
            total.circular,
            [float(answer.right) for answer in judged],
            {k: (a.circular, a.whole) for k, a in abilities.items() if a.circular is not None},
            {**figures, "unread": unread(judged)},
            {k: {"plain": a.plain} for k, a in abilities.items() if a.plain is not None},
            parts,
            [answer.row.kinds for answer in judged],
            [answer.expected for answer in judged],
        )

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        """The server's xlsx; under a limit the other rows' predictions stay empty, as in LLaVA."""
        write_upload(folder / UPLOAD, read_table(files.questions), rows)
        return [folder / UPLOAD]


class MMBenchCN(MMBench):
    """The same questions in Chinese, and the instruction too."""

    name = "mmbench_cn"
    title = "MMBench-CN"
    default_data = "playground/data/eval/mmbench_cn"
    instruction = CHINESE
    splits = (
        "mmbench_dev_cn_20231003",
        "MMBench_DEV_CN_legacy",
        "MMBench_DEV_CN",
        "mmbench_test_cn_20231003",
        "MMBench_TEST_CN_legacy",
        "MMBench_TEST_CN",
    )
