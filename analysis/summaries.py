"""Means with intervals of many columns at once, pictures drawn whole."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llava.eval.intervals import Interval, bootstrap_statistics

__all__ = ["column_means", "findings_of", "summarise"]

RESAMPLES = 2000


def column_means(
    values: np.ndarray, clusters: Sequence[Hashable], resamples: int = RESAMPLES
) -> list[Interval]:
    """The mean of each column of `values` [n, m] over what is not NaN, with its 95 % interval.

    All columns come from the same draws of clusters. A column that is NaN in all but one cluster
    has no interval: its ends are NaN.
    """
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    names = list(clusters)
    counts = [
        (int(column.sum()), len({name for name, k in zip(names, column, strict=True) if k}))
        for column in known.T
    ]
    if len(set(names)) < 2:
        with np.errstate(invalid="ignore"):
            means = filled.sum(0) / known.sum(0)
        nan = float("nan")
        return [Interval(float(m), nan, nan, *c) for m, c in zip(means, counts, strict=True)]
    width = values.shape[1]
    whole = filled.sum(0) / np.maximum(known.sum(0), 1)

    def means_of(sums: np.ndarray) -> np.ndarray:
        # A draw that holds nothing of a column says nothing of it: it is put in the middle.
        held = sums[:, width:]
        return np.where(held > 0, sums[:, :width] / np.maximum(held, 1), whole)

    found = bootstrap_statistics(
        np.concatenate([filled, known], 1), names, means_of, resamples=resamples
    )
    out = []
    for one, (n, pictures) in zip(found, counts, strict=True):
        ends = (one.low, one.high) if pictures > 1 else (float("nan"),) * 2
        out.append(Interval(one.difference if n else float("nan"), *ends, n, pictures))
    return out


def summarise(
    table: Any, by: Sequence[str], values: Sequence[str], cluster: str, ends: Sequence[str] = ()
) -> Any:
    """One row for each group of a pandas table: the mean of each value, NaN left out.

    Args:
        by: columns that name a group; groups come in the order in which the table has them.
        values: columns to average.
        cluster: the column that is drawn by, for intervals.
        ends: those of `values` whose interval is wanted, as value_low and value_high.

    Returns: `by`, the values (with ends), n (rows) and pictures (clusters).
    """
    import pandas as pd

    rows = []
    for names, part in table.groupby(list(by), sort=False, observed=True):
        numbers = part[list(values)].to_numpy(dtype=np.float64)
        found = dict(zip(values, numbers.T, strict=True))
        row: dict[str, Any] = dict(zip(by, names, strict=True))
        intervals: dict[str, Interval] = {}
        if ends:
            columns = np.stack([found[name] for name in ends], 1)
            means = column_means(columns, part[cluster].tolist())
            intervals = dict(zip(ends, means, strict=True))
        for name in values:
            known = found[name][~np.isnan(found[name])]
            row[name] = float(known.mean()) if len(known) else float("nan")
            if name in intervals:
                row[f"{name}_low"] = intervals[name].low
                row[f"{name}_high"] = intervals[name].high
        rows.append({**row, "n": len(part), "pictures": part[cluster].nunique()})
    return pd.DataFrame(rows)


def findings_of(
    rows: Iterable[Mapping[Any, Any]], names: Sequence[str], keys: Sequence[str] = ("budget",)
) -> dict[str, float]:
    """Numbers of a summary under stable names: "measure/key/key", as "mean/last/visiondrop/64".

    Args:
        rows: of a summary, each a mapping; names: the measures, taken with the ends of their
            intervals; keys: columns of numbers that name a row beside those of words.
    """
    out = {}
    for row in rows:
        place = [str(v) for k, v in row.items() if isinstance(v, str) or k in keys]
        for name in names:
            for end in ("", "_low", "_high"):
                if name + end in row:
                    out["/".join([name + end, *place])] = float(row[name + end])
    return out
