"""POPE (Li et al., EMNLP 2023, arXiv 2305.10355): is there such an object in the picture?

Three ways to choose objects that are not there: at random, the most frequent ones (popular), those
that often come with what is there (adversarial).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles, Scores, require_files
from llava.eval.eval_pope import count, figures_of, label_file, match_labels, says_yes
from llava.eval.labels import failed
from llava.eval.samples import Sample, answer_key


class POPE(Benchmark):
    """F1 of "yes" in each category, averaged over the categories."""

    name = "pope"
    title = "POPE"
    metric = "mean F1"
    beside = ("accuracy", "yes ratio")
    default_data = "playground/data/eval/pope"

    def files(self, data: str | Path) -> BenchmarkFiles:
        folder = Path(data)
        questions, labels = folder / "llava_pope_test.jsonl", folder / "coco"
        images = folder / "val2014"
        require_files(
            self.title,
            {"questions": questions, "images": images, "annotations": labels},
            "docs/evaluation.md says where to get the files; DATA or --data says where they are",
        )
        return BenchmarkFiles(questions, images, labels, split=_split(labels))

    def check(self, samples: Sequence[Sample], files: BenchmarkFiles) -> None:
        match_labels(self.read(files), files.answers, files.questions)

    def score(self, rows: Sequence[Mapping[str, Any]], files: BenchmarkFiles) -> Scores:
        samples = self.read(files)
        truth = match_labels(samples, files.answers, files.questions)
        category_of = {sample.key: str(sample.category) for sample in samples}
        labels = [truth[answer_key(row)] for row in rows]
        categories = [category_of[answer_key(row)] for row in rows]
        # An answer that could not be given is the wrong one, whichever that is.
        said = [
            not label if failed(row) else says_yes(row["text"]) for row, label in zip(rows, labels)
        ]
        details, sizes = {}, {}
        for category in sorted(set(categories)):
            mine = [i for i, name in enumerate(categories) if name == category]
            counts = count([said[i] for i in mine], [labels[i] for i in mine])
            details[category], sizes[category] = figures_of(counts), counts.n
        means = {
            name: sum(figures[name] for figures in details.values()) / len(details)
            for name in ("F1", "accuracy", "precision", "recall", "yes ratio")
        }
        return Scores(
            means.pop("F1"),
            [float(a == b) for a, b in zip(said, labels)],
            {category: (details[category]["F1"], sizes[category]) for category in details},
            means,
            details,
            _parts(said, labels, categories),
            [(category,) for category in categories],
            ["yes" if label else "no" for label in labels],
        )


def _parts(said: Sequence[bool], labels: Sequence[bool], categories: Sequence[str]) -> np.ndarray:
    names = sorted(set(categories))
    parts = np.zeros((len(said), 2 * len(names)))
    for i, (yes, label, category) in enumerate(zip(said, labels, categories)):
        c = 2 * names.index(category)
        parts[i, c] = 2 * (yes and label)
        parts[i, c + 1] = yes + label
    return parts


def _split(labels: Path) -> str:
    """Which of the two versions of the random file is there."""
    path = label_file(labels, "random")
    lines = (
        sum(1 for line in path.read_bytes().split(b"\n") if line.strip()) if path.exists() else 0
    )
    return f"COCO val2014, random with {lines:,} lines"
