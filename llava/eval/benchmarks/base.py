"""What a benchmark is: where its files are, and how its answers are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError
from llava.eval.oracle import Regions
from llava.eval.samples import Sample


@dataclass(frozen=True)
class BenchmarkFiles:
    """The files of a benchmark below its data folder.

    ``types`` is an optional sidecar that sorts the questions by type (the sample data has one).
    """

    questions: Path
    images: Path
    annotations: Path
    types: Path | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of a run.

    Attributes:
        score: over all questions, 0 to 100.
        per_sample: of each answer, in order, 0 to 1.
        types: question type -> (score 0 to 100, number of questions); empty without a sidecar.
    """

    score: float
    per_sample: list[float]
    types: dict[str, tuple[float, int]] = field(default_factory=dict)


class Benchmark(ABC):
    """Base class; a benchmark sets the names and says how an answer is scored."""

    name: str
    title: str
    metric: str = "accuracy"
    default_data: str
    max_new_tokens: int = 128
    lacks: Mapping[str, str] = {"frames": "the questions here are about one picture each"}
    """Of what methods may need (`Reducer.needs`), what the data has not, and why."""

    @abstractmethod
    def files(self, data: str | Path) -> BenchmarkFiles:
        """Where the files are below ``data``; raises EvalError naming what is missing."""

    @abstractmethod
    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        """Raise EvalError where a question could not be scored; called before any compute."""

    def regions(self, samples: Sequence[Sample], files: BenchmarkFiles) -> Regions:
        """Patches that each question asks for, by sample key; EvalError where nobody knows."""
        raise EvalError(f"nobody knows which patches {self.title}'s questions ask for: no oracle")

    @abstractmethod
    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        """Score the answers of a run."""


def require_files(title: str, paths: Mapping[str, Path], hint: str) -> None:
    """Raise EvalError that lists every path that is not there."""
    missing = [f"{what}: {path}" for what, path in paths.items() if not path.exists()]
    if missing:
        raise EvalError(f"{title} data not found ({'; '.join(missing)}); {hint}")


def by_type(
    per_sample: Sequence[float], types: Sequence[str | None]
) -> dict[str, tuple[float, int]]:
    """Mean score (0 to 100) and number of questions of each type, in alphabetical order."""
    groups: dict[str, list[float]] = defaultdict(list)
    for score, kind in zip(per_sample, types, strict=True):
        if kind is not None:
            groups[kind].append(score)
    return {k: (100 * sum(v) / len(v), len(v)) for k, v in sorted(groups.items())}
