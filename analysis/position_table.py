"""One long table of a positional-bias measurement: numbers with intervals, and profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.report import mean_interval
from llava.eval.intervals import Interval, bootstrap_intervals

__all__ = ["COLUMNS", "Key", "Tally"]

COLUMNS = [
    "part", "name", "layer", "measure", "at", "mean", "low", "high", "n", "neutral",
]  # fmt: skip
"""`at` is the place along a profile, -1 for a number; n pictures; `neutral` is what no bias, or
chance, would give."""

LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Key:
    """What is measured: a part of the analysis, a score or method, and a layer as text."""

    part: str
    name: str
    layer: str = ""


@dataclass
class Tally:
    """Collects values picture by picture; nothing of a picture is held but its numbers."""

    _numbers: dict[tuple[Key, str], list[tuple[str, float, float]]] = field(default_factory=dict)
    _profiles: dict[tuple[Key, str], list[np.ndarray]] = field(default_factory=dict)

    def add(self, key: Key, picture: str, measures: Mapping[str, tuple[float, float]]) -> None:
        """One picture's numbers: measure -> (value, what no bias would give).

        Of a measure whose name ends in "ratio" the geometric mean is taken.
        """
        for measure, pair in measures.items():
            value, neutral = (
                np.log(np.clip(pair, LEAST, 1 / LEAST)).tolist() if _is_ratio(measure) else pair
            )
            self._numbers.setdefault((key, measure), []).append((picture, value, neutral))

    def profile(self, key: Key, measure: str, values: np.ndarray) -> None:
        """One picture's profile along something; squares that are NaN do not count."""
        known = ~np.isnan(values)
        held = self._profiles.setdefault((key, measure), [np.zeros(len(values)) for _ in range(2)])
        held[0] += np.where(known, values, 0)
        held[1] += known

    def table(self) -> Any:
        """A pandas table with `COLUMNS`: each number's mean over pictures with its 95 % interval,
        each profile's mean.
        """
        import pandas as pd

        rows = []
        intervals = self._intervals()
        for (key, measure), seen in self._numbers.items():
            found = intervals[key, measure]
            values = [found.difference, found.low, found.high, _mean([v[2] for v in seen])]
            if _is_ratio(measure):
                values = [float(np.exp(v)) for v in values]
            mean, low, high, neutral = values
            rows.append(
                [key.part, key.name, key.layer, measure, -1, mean, low, high, found.clusters]
                + [neutral]
            )
        for (key, measure), (total, count) in self._profiles.items():
            with np.errstate(invalid="ignore"):
                means = total / count
            rows += [
                [key.part, key.name, key.layer, measure, at, mean, np.nan, np.nan, int(seen), 1.0]
                for at, (mean, seen) in enumerate(zip(means.tolist(), count.tolist(), strict=True))
            ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _intervals(self) -> dict[tuple[Key, str], Interval]:
        """Of each number; those that are known of the same pictures share their draws."""
        groups: dict[tuple[str, ...], list[tuple[Key, str]]] = {}
        out = {}
        for which, seen in self._numbers.items():
            pictures = tuple(picture for picture, _, _ in seen)
            if len(set(pictures)) < 2 or np.isnan([value for _, value, _ in seen]).any():
                out[which] = mean_interval([value for _, value, _ in seen], pictures)
            else:
                groups.setdefault(pictures, []).append(which)
        for pictures, members in groups.items():
            columns = [[value for _, value, _ in self._numbers[which]] for which in members]
            found = bootstrap_intervals(np.array(columns).T, pictures)
            out |= dict(zip(members, found, strict=True))
        return out


def _is_ratio(measure: str) -> bool:
    return measure.endswith("ratio")


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")
