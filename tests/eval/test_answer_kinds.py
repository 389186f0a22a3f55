"""What is known of each answer: its types make up the scores by type; what is right scores."""

from __future__ import annotations

from collections import Counter

import pytest

from llava.eval.benchmarks import BENCHMARKS, get_benchmark
from tests.eval.conftest import answer_rows

SCORED = sorted(set(BENCHMARKS) - {"mmvet"})


@pytest.mark.parametrize("name", SCORED)
def test_kinds_are_the_types_and_the_right_answer_scores(name: str) -> None:
    """On the bundled questions: as many answers of each kind as its score is over, and answering
    each question with what is said to be right scores all there is to get."""
    benchmark = get_benchmark(name)
    folder = benchmark.default_data
    files = benchmark.files(folder)
    count = min(96, len(benchmark.read(files)))
    rows = answer_rows(name, folder, ["?"] * count)
    blind = benchmark.score(rows, files)
    assert len(blind.kinds) == len(blind.right) == len(rows) == len(blind.per_sample)
    counts = Counter(kind for kinds in blind.kinds for kind in kinds)
    if name.startswith("mmbench"):  # there a type's score is over questions, not over their rows
        assert set(blind.types) <= set(counts)
    else:
        assert counts == {kind: n for kind, (_, n) in blind.types.items()}
    for row, right in zip(rows, blind.right):
        answer = right.split(" (")[0].split(", ")[0]
        row["text"] = right[0] if name in ("seed", "sqa") else answer
    good = benchmark.score(rows, files)
    assert set(good.per_sample) == {1.0}
    assert good.right == blind.right and good.kinds == blind.kinds
