"""What a benchmark is: where its files are, and how its answers are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.errors import EvalError
from llava.eval.oracle import Regions, read_regions, regions_of, without_placeholder
from llava.eval.pictures import Folder, Pictures
from llava.eval.samples import Sample, read_questions

KnownRegions = tuple[dict[tuple[str, str], Mapping[str, Any]], Callable[[str], str]]


@dataclass(frozen=True)
class BenchmarkFiles:
    """The files of a benchmark below its data folder.

    Attributes:
        annotations: the answers' file, or the folder of several; None where they are not public.
        types: an optional sidecar that sorts the questions by type (the sample data has one).
        split: which part of the benchmark these files are, by its official name.
    """

    questions: Path
    images: Path
    annotations: Path | None
    types: Path | None = None
    split: str = ""

    @property
    def answers(self) -> Path:
        """``annotations`` where a benchmark always has them."""
        assert self.annotations is not None, "a benchmark without answers is not scored"
        return self.annotations


@dataclass(frozen=True)
class Scores:
    """Scores of a run.

    Attributes:
        score: the headline number over all questions, 0 to 100 (MME: points); None where nothing
            is scored here.
        per_sample: of each answer, in order, 0 to 1.
        types: question type -> (score, number of questions); empty where nothing sorts them.
        figures: further numbers beside the headline, in its unit.
        details: question type -> further numbers of that type.
        parts: [n, k], what the headline number is made of where it is no mean of ``per_sample``:
            ``Benchmark.headline`` makes it of the columns' sums.
        kinds: of each answer the types that it counts for; empty where nothing sorts them.
        right: of each answer, in words, what would have been right; empty where nobody knows.
    """

    score: float | None
    per_sample: list[float]
    types: dict[str, tuple[float, int]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, dict[str, float]] = field(default_factory=dict)
    parts: np.ndarray | None = None
    kinds: list[tuple[str, ...]] = field(default_factory=list)
    right: list[str] = field(default_factory=list)


class Benchmark(ABC):
    """Base class; a benchmark sets the names and says how an answer is scored.

    Attributes:
        metric: what the headline number is; the head of its column in tables.
        beside: those of `Scores.figures` that tables show beside it.
        default_data: the bundled data's folder, of which ``bundled_limit`` questions are answered
            unless more are asked for, ``bundled_batch`` at a time.
        default_model: the bundled model that it is asked of.
        max_new_tokens: unless a flag says otherwise.
        splits: the names that ``split`` may have; empty for benchmarks with one.
        split: the one asked for; None for the first that is there.
    """

    name: str
    title: str
    metric: str = "accuracy"
    beside: tuple[str, ...] = ()
    default_data: str
    bundled_limit: int = 100
    bundled_batch: int = 24  # whole pictures, of six questions each
    default_model: str = "checkpoints/pocket-llava"
    max_new_tokens: int = 128
    splits: tuple[str, ...] = ()
    split: str | None = None
    lacks: Mapping[str, str] = {"frames": "the questions here are about one picture each"}
    """Of what methods may need (`Reducer.needs`), what the data has not, and why."""

    @abstractmethod
    def files(self, data: str | Path) -> BenchmarkFiles:
        """Where the files are below ``data``; raises EvalError naming what is missing."""

    def read(self, files: BenchmarkFiles) -> list[Sample]:
        """All questions, in order; EvalError for a file that cannot be used, naming the line."""
        return read_questions(files.questions)

    def pictures(self, files: BenchmarkFiles) -> Pictures:
        """Where the questions' pictures are."""
        return Folder(files.images)

    @abstractmethod
    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        """Raise EvalError where a question could not be scored; called before any compute."""

    def regions(self, samples: Sequence[Sample], files: BenchmarkFiles) -> Regions:
        """Patches that each question asks for, by sample key; EvalError where nobody knows.

        The bundled data says so in ``regions.json`` beside the questions."""
        return regions_of(samples, *self.known_regions(files))

    def known_regions(self, files: BenchmarkFiles) -> KnownRegions:
        """The entries of ``regions.json``, empty where there is none, and how to find them: by
        question id and by what the function makes of a prompt."""
        known = read_regions(files.types or files.questions.with_name("regions.json"))
        return known, without_placeholder

    def region_entries(
        self, samples: Sequence[Sample], files: BenchmarkFiles
    ) -> dict[str, Mapping[str, Any]]:
        """Those entries by sample key, of the samples that have one."""
        known, question_of = self.known_regions(files)
        found = ((s.key, known.get((str(s.question_id), question_of(s.prompt)))) for s in samples)
        return {key: entry for key, entry in found if entry is not None}

    @abstractmethod
    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        """Score the answers of a run: rows of its answers file, in the questions' order.

        They may be the first of all questions only.  An answer that could not be given (it has an
        "error" in its "metadata") counts as wrong."""

    def headline(self, sums: np.ndarray) -> np.ndarray:
        """The headline number from sums [..., k] over the rows of `Scores.parts`, as [...].

        For benchmarks that have parts: intervals draw pictures and put together what they sum to.
        Here columns are pairs (points, points there were to get), one pair a group; the score is
        the mean of the groups' percentages, 0 for a group that a draw leaves out.
        """
        points, all_ = sums[..., 0::2], sums[..., 1::2]
        return 100 * (points / np.maximum(all_, 1)).mean(-1)

    def write_files(
        self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles, folder: Path
    ) -> list[Path]:
        """Write what the official scorer or server takes below ``folder``; returns the files."""
        return []


def require_files(title: str, paths: Mapping[str, Path], hint: str) -> None:
    """Raise EvalError that lists every path that is not there."""
    missing = [f"{what}: {path}" for what, path in paths.items() if not path.exists()]
    if missing:
        raise EvalError(f"{title} data not found ({'; '.join(missing)}); {hint}")
