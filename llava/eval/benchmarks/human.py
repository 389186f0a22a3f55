"""What benchmarks with ten human answers a question share: VQAv2 and VizWiz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llava.eval.benchmarks.base import Scores
from llava.eval.labels import by_type, in_words


class Annotation(Protocol):
    """What is known of a question."""

    @property
    def humans(self) -> tuple[str, ...]: ...

    @property
    def answer_type(self) -> str: ...


def human_scores(per_sample: list[float], annotations: Sequence[Annotation]) -> Scores:
    """Mean VQA accuracy, and by answer type.

    Args:
        per_sample: of each answer, 0 to 1.
        annotations: of the question of each answer, in the same order.
    """
    kinds = [annotation.answer_type for annotation in annotations]
    return Scores(
        100 * sum(per_sample) / len(per_sample),
        per_sample,
        by_type(per_sample, kinds),
        kinds=[(kind,) for kind in kinds],
        right=[in_words(annotation.humans) for annotation in annotations],
    )
