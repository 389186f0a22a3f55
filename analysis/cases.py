"""One question about one picture, what is known of it, and what a walk shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.probe import Reading
from llava.eval.errors import EvalError
from llava.eval.samples import Sample, raw_question
from llava.eval.truth import named_of
from visiondrop.trace import SampleTrace

__all__ = ["Case", "Look", "Unknown", "case_of"]


class Unknown(EvalError):
    """What a part of the analysis needs is not known of these data, or not there in this model; the
    other parts still run.
    """


@dataclass(frozen=True)
class Case:
    """One question about one picture, with what is known of it.

    Attributes:
        sample: the question; its key names it everywhere.
        question: without template and instructions.
        kind: the skill that it takes, "" where unknown.
        region: patch ids (row-major on the whole picture's grid) that are needed to answer; None
            where nobody knows.
        named: those of them that the question's words name; None where nobody knows.
        answer: the right one, "" where unknown.
        grid: (rows, columns) of squares on which `region` and `named` are numbered; None where
            nobody knows.
    """

    sample: Sample
    question: str
    kind: str = ""
    region: tuple[int, ...] | None = None
    named: tuple[int, ...] | None = None
    answer: str = ""
    grid: tuple[int, int] | None = None

    @property
    def picture(self) -> str:
        """Its picture's name, which questions may share."""
        return str(self.sample.image)


@dataclass
class Look:
    """What there is to see of one case after a prefill.

    Attributes:
        trace: what was kept where.
        readings: of a probe, in the order of layers, the encoder's first.
    """

    case: Case
    trace: SampleTrace
    readings: list[Reading] = field(default_factory=list)

    def at(self, layer: int | None) -> Reading:
        """The reading before a decoder layer; None for the encoder's."""
        return next(r for r in self.readings if r.layer == layer)


def case_of(sample: Sample, entry: Mapping[str, Any] | None) -> Case:
    """A question with its entry of regions.json, if there is one."""
    question = raw_question(sample.prompt)
    if entry is None or "region" not in entry:
        return Case(sample, question)
    region = tuple(entry["region"])
    named = tuple(named_of(entry))
    kind, answer = str(entry.get("type", "")), str(entry.get("answer", ""))
    grid = tuple(entry["grid"]) if "grid" in entry else None
    return Case(sample, question, kind, region, named, answer, grid)
