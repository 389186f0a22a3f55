"""What papers report, with how far each source can be trusted.

``published.csv``: one row per (source, model, method, visual tokens, benchmark).  Scores in percent
(MME in points), ``relative_average`` in percent of the full model, FLOPs of the prefill.  The
tokens are the papers' own counts (``from_nominal``), not always true means.  ``sources.csv``: what
each source is and how far to trust it; of some, single methods are known to be too low.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent

Trust = Literal["low", "medium", "high"]

PUBLISHED_NAMES = {"sparsevlm+": "sparsevlm-v2"}
"""Registry name -> name in ``published.csv``, where they differ."""

BENCHMARK_NAMES = {
    "gqa": "GQA",
    "mmbench": "MMBench",
    "mmbench_cn": "MMBench_CN",
    "mme": "MME",
    "mmvet": "MMVet",
    "pope": "POPE",
    "seed": "SEED",
    "sqa": "ScienceQA",
    "textvqa": "TextVQA",
    "vizwiz": "VizWiz",
    "vqav2": "VQAv2",
}
"""Benchmark of ``llava.eval.benchmarks`` -> name in ``published.csv``."""

REGISTRY_NAMES = {published: name for name, published in PUBLISHED_NAMES.items()}


@dataclass(frozen=True)
class Figure:
    """One published number.

    Attributes:
        source: key of ``sources.csv``.
        model: as in llava-v1.5-7b.
        method: the registry's name.
        tokens: visual tokens by the paper's count.
        benchmark: its name, or relative_average, tflops, latency_ms, latency_speedup.
        value: percent, points, TFLOPs, ms or a factor.
        trust: how far the source can be trusted for this method.
    """

    source: str
    model: str
    method: str
    tokens: int
    benchmark: str
    value: float
    trust: Trust


@dataclass(frozen=True)
class Source:
    """Where figures come from."""

    name: str
    trust: Trust
    low_for: frozenset[str]
    what: str


@lru_cache
def sources() -> dict[str, Source]:
    """The sources by name."""
    with (FOLDER / "sources.csv").open(encoding="utf-8", newline="") as stream:
        return {
            row["source"]: Source(
                row["source"],
                row["trust"],  # type: ignore[arg-type]
                frozenset(row["low_for"].split()),
                row["what"],
            )
            for row in csv.DictReader(stream)
        }


@lru_cache
def figures() -> tuple[Figure, ...]:
    """Every published number, in the file's order, under the registry's method names."""
    with (FOLDER / "published.csv").open(encoding="utf-8", newline="") as stream:
        return tuple(_figure(row) for row in csv.DictReader(stream))


def _figure(row: dict[str, str]) -> Figure:
    source = sources()[row["source"]]
    return Figure(
        row["source"],
        row["model"],
        REGISTRY_NAMES.get(row["method"], row["method"]),
        int(row["tokens"]),
        row["benchmark"],
        float(row["value"]),
        "low" if row["method"] in source.low_for else source.trust,
    )


def published(
    method: str | None = None,
    benchmark: str | None = None,
    model: str | None = None,
    tokens: int | None = None,
    trust: Iterable[Trust] = ("low", "medium", "high"),
) -> list[Figure]:
    """The figures that match; what is None matches all.

    Args:
        method: a name of the registry.
        benchmark: its name here (pope) or in the file (POPE).
    """
    benchmark = BENCHMARK_NAMES.get(benchmark or "", benchmark)
    wanted = {"method": method, "benchmark": benchmark, "model": model, "tokens": tokens}
    allowed = set(trust)
    return [
        figure
        for figure in figures()
        if figure.trust in allowed
        and all(v is None or getattr(figure, name) == v for name, v in wanted.items())
    ]
