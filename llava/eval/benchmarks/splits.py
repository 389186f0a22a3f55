"""Benchmarks with several splits: which of them a data folder holds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles
from llava.eval.errors import EvalError
from llava.eval.samples import Sample, read_questions

HINT = "docs/evaluation.md says where to get the files; DATA or --data says where they are"


@dataclass(frozen=True)
class Split:
    """Files of one split below the data folder; of several names, the first that is there counts.

    Attributes:
        annotations: empty where the answers are not public.
    """

    name: str
    questions: tuple[str, ...]
    images: tuple[str, ...]
    annotations: tuple[str, ...] = ()

    def find(self, folder: Path) -> tuple[BenchmarkFiles, list[str]]:
        """Its files, and what is missing of them."""
        found, missing = {}, []
        for what in ("questions", "images", "annotations"):
            paths = [folder / name for name in getattr(self, what)]
            there = [path for path in paths if path.exists()]
            found[what] = there[0] if there else paths[0] if paths else None
            if paths and not there:
                missing.append(f"{what}: {' or '.join(map(str, paths))}")
        questions, images = found["questions"], found["images"]
        assert questions is not None and images is not None, "a split has questions and pictures"
        files = BenchmarkFiles(questions, images, found["annotations"], split=self.name)
        return files, missing


class SplitBenchmark(Benchmark):
    """A benchmark of several splits, whose questions come as LLaVA's jsonl or as the official json.

    A subclass sets `split_files`, and `splits` to their names.
    """

    split_files: tuple[Split, ...]

    @staticmethod
    @abstractmethod
    def read_official(path: Path) -> list[Sample]:
        """Samples of the official questions json, in LLaVA's prompt form."""

    def files(self, data: str | Path) -> BenchmarkFiles:
        return find_split(self, data, self.split_files)

    def read(self, files: BenchmarkFiles) -> list[Sample]:
        if files.questions.suffix == ".json":
            return self.read_official(files.questions)
        return read_questions(files.questions)


def find_split(benchmark: Benchmark, data: str | Path, splits: Sequence[Split]) -> BenchmarkFiles:
    """The files of the benchmark's split, or of the first that is complete.

    Raises EvalError that lists every path that is not there."""
    folder = Path(data)
    wanted = [split for split in splits if benchmark.split in (None, split.name)]
    faults = []
    for split in wanted:
        files, missing = split.find(folder)
        if not missing:
            return files
        faults.append(f"{split.name}: {'; '.join(missing)}")
    raise EvalError(f"{benchmark.title} data not found ({', or '.join(faults)}); {HINT}")
