"""How long what is open will take: seconds for an answer against its mean of visual tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rates:
    """Seconds for an answer, as a straight line through what was measured.

    Attributes:
        points: (mean of visual tokens over the decoder layers, seconds for an answer).
    """

    points: tuple[tuple[float, float], ...]

    @classmethod
    def from_results(cls, results: Iterable[Mapping[str, Any]]) -> Rates:
        """From the cells that are there."""
        return cls(
            tuple(
                (float(r["mean_tokens"]), 1 / r["samples_per_second"])
                for r in results
                if r.get("samples_per_second") and r.get("mean_tokens")
            )
        )

    def seconds(self, tokens: float) -> float:
        """For one answer with that many visual tokens; never less than a tenth of the least."""
        x, y = np.array(self.points, dtype=float).T
        if len(set(x.tolist())) < 2:
            return float(y.mean())
        slope, start = np.polyfit(x, y, 1)
        return float(max(start + slope * tokens, y.min() / 10))


@dataclass(frozen=True)
class Open:
    """What a cell still lacks.

    Attributes:
        answers: that are not there.
        tokens: mean of visual tokens by plan.
        todo: of each of its runs, the batches that these are in.
    """

    answers: int
    tokens: float
    todo: tuple[tuple[int, ...], ...] = ()


def total_seconds(open_cells: Iterable[Open], rates: Rates, processes: int = 1) -> float:
    """Until all are there, with the work shared by so many processes."""
    return sum(cell.answers * rates.seconds(cell.tokens) for cell in open_cells) / processes


def show_time(seconds: float) -> str:
    """ "2 h 05 min", "12 min", "40 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def describe(open_cells: Sequence[Open], total: int, rates: Rates | None, processes: int) -> str:
    """The estimate in a sentence."""
    left = [cell for cell in open_cells if cell.answers]
    answers = sum(cell.answers for cell in left)
    text = f"{answers:,} of {total:,} answers open, in {len(left)} cells"
    if not answers:
        return f"nothing open of {total:,} answers"
    if rates is None:
        return text
    few, many = (f(cell.tokens for cell in left) for f in (min, max))
    each = f"{rates.seconds(few):.3f} s at {few:.0f} tokens"
    if many > few:
        each += f" to {rates.seconds(many):.3f} s at {many:.0f}"
    plural = "es" if processes > 1 else ""
    left_time = show_time(total_seconds(left, rates, processes))
    return f"{text}; an answer takes about {each}, with {processes} process{plural} {left_time}"
