"""Published numbers: the file whole, every name known, the trust where it belongs."""

from __future__ import annotations

import csv
import re

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.published import (
    BENCHMARK_NAMES,
    FOLDER,
    PUBLISHED_NAMES,
    figures,
    published,
    sources,
)
from visiondrop.methods import METHODS


def raw() -> list[dict[str, str]]:
    with (FOLDER / "published.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_row_is_read_as_it_stands() -> None:
    rows = raw()
    assert len(rows) == len(figures()) == 773
    for row, figure in zip(rows, figures()):
        assert (row["source"], row["model"], row["benchmark"]) == (
            figure.source, figure.model, figure.benchmark,
        )  # fmt: skip
        assert (float(row["value"]), float(row["tokens"])) == (figure.value, figure.tokens)
        assert row["method"] == PUBLISHED_NAMES.get(figure.method, figure.method)
    keys = [tuple(row[k] for k in ("source", "model", "method", "tokens", "benchmark"))
            for row in rows]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_every_method_is_one_of_the_registry() -> None:
    assert sorted({f.method for f in figures()} - set(METHODS)) == []
    assert not set(PUBLISHED_NAMES) - set(METHODS)
    assert not set(PUBLISHED_NAMES.values()) & set(METHODS)


def test_every_source_says_what_it_is() -> None:
    assert {f.source for f in figures()} == set(sources())
    for source in sources().values():
        assert source.trust in ("low", "medium", "high") and len(source.what) > 30
        named = {row["method"] for row in raw() if row["source"] == source.name}
        assert source.low_for <= named


def test_benchmarks_here_are_found_under_their_published_names() -> None:
    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    there = {plain(f.benchmark): f.benchmark for f in figures()}
    assert set(BENCHMARK_NAMES.values()) <= set(there.values())
    for name, cls in BENCHMARKS.items():
        for known in (plain(name), plain(cls.title)):
            assert known not in there or BENCHMARK_NAMES.get(name) == there[known]
    assert published(benchmark="textvqa") == published(benchmark="TextVQA") != []


def test_lookup() -> None:
    (row,) = published("fastv", "POPE", "llava-v1.5-7b", 192, trust=["high"])
    assert (row.source, row.value) == ("rerun-restore", 75.8)
    low = published("fastv", "POPE", tokens=192, trust=["low"])
    assert [(f.source, f.value) for f in low] == [("copied", 64.8)]
    plus = published("sparsevlm+", "TextVQA", tokens=64)
    assert plus and all(f.method == "sparsevlm+" for f in plus)
    assert published("sparsevlm-v2") == []


def test_copied_rows_differ_from_reruns_as_the_guide_says() -> None:
    """The largest difference in percent: ToMe on POPE at 64 tokens."""
    rerun = {(f.method, f.tokens, f.benchmark): f.value
             for f in figures() if f.source == "rerun-restore"}  # fmt: skip
    gaps = {
        (f.method, f.tokens, f.benchmark): rerun[f.method, f.tokens, f.benchmark] - f.value
        for f in figures()
        if f.source == "copied"
        and f.benchmark != "MME"
        and (f.method, f.tokens, f.benchmark) in rerun
    }
    worst = max(gaps, key=lambda key: abs(gaps[key]))
    assert worst == ("tome", 64, "POPE") and round(gaps[worst]) == 32
