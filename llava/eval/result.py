"""The result json of a run: the score, and everything that it depends on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import visiondrop
from llava.eval.answers import Row
from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles, Scores
from llava.eval.files import write_atomically
from llava.eval.settings import RunSettings
from visiondrop.profiling.flops import ModelSize, prefill_flops

REPOSITORY = Path(__file__).resolve().parents[2]


@lru_cache
def versions() -> dict[str, str]:
    """Versions of what computes the answers."""
    out = {"python": sys.version.split()[0]}
    for package in ("torch", "transformers"):
        out[package] = version(package)
    out["visiondrop"] = visiondrop.__version__
    return out


@lru_cache
def git_commit() -> str | None:
    """The repository's commit, with "-dirty" where tracked files differ; None outside of one."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def mean_tokens(metadata: Mapping[str, Any]) -> float:
    """True mean of visual tokens over decoder layers, from ``[[tokens, layers], ...]``."""
    runs = metadata["visual_tokens"]
    return sum(tokens * layers for tokens, layers in runs) / sum(layers for _, layers in runs)


def mean_flops(rows: Sequence[Row], config: Any) -> float | None:
    """Mean FLOPs of the prefill; None for a model whose shape has no formula here.

    Every tile of a picture passes the vision tower; newlines are among the visual tokens. Rows of
    older runs do not say how many passed: one tile, and what the first decoder layer sees.
    """
    try:
        size = ModelSize.from_config(config)
    except ValueError:
        return None

    @cache
    def one(
        runs: tuple[tuple[int, int], ...], text_tokens: int, tiles: int, projected: int | None
    ) -> float:
        ledger = [tokens for tokens, layers in runs for _ in range(layers)]
        counted = prefill_flops(size, ledger, text_tokens, tiles=tiles, projected_tokens=projected)
        return counted.total

    said = (row["metadata"] for row in rows)
    return fmean(
        one(
            tuple(map(tuple, m["visual_tokens"])),
            m["text_tokens"],
            m.get("tiles", 1),
            m.get("projected"),
        )
        for m in said
    )


def build_result(
    benchmark: Benchmark,
    files: BenchmarkFiles,
    method_name: str,
    tokens: int,
    settings: RunSettings,
    config: Any,
    rows: Sequence[Row],
    scores: Scores,
    ledger: Sequence[int],
    computed: int,
    seconds: float,
    seed: int,
    flops_known: bool = True,
) -> dict[str, Any]:
    """The result json's content.

    Args:
        ledger: visual tokens of each decoder layer by plan.
        computed: answers computed in this run; the others were there.
        seconds: time that answering all of them took, over the runs that did it.
        flops_known: whether the formula counts what the method does (``Reducer.flops_by_ledger``).
    """
    failed = [row for row in rows if "error" in row["metadata"]]
    traced = [row for row in rows if "visual_tokens" in row["metadata"]]
    flops = mean_flops(traced, config) if traced and flops_known else None
    kv_bytes = [row["metadata"]["kv_bytes"] for row in traced if "kv_bytes" in row["metadata"]]
    newlines = [row["metadata"]["newlines"] for row in traced if "newlines" in row["metadata"]]
    answered = len(rows) - len(failed)
    return {
        "benchmark": benchmark.name,
        "split": files.split,
        "metric": benchmark.metric,
        "method": method_name,
        "tokens": tokens,
        "mean_tokens": fmean(mean_tokens(r["metadata"]) for r in traced) if traced else None,
        **({"mean_newlines": fmean(newlines)} if newlines else {}),
        "score": scores.score,
        "n": len(rows),
        "failed": len(failed),
        "computed": computed,
        "figures": dict(scores.figures),
        "beside": list(benchmark.beside),
        "types": {
            kind: {"score": s, "n": n, **scores.details.get(kind, {})}
            for kind, (s, n) in scores.types.items()
        },
        "flops": flops,
        "kv_bytes": fmean(kv_bytes) if kv_bytes else None,
        "samples_per_second": answered / seconds if seconds > 0 else None,
        "seed": seed,
        "ledger": list(ledger),
        "method_config": dict(settings.method),
        **{
            name: value
            for name, value in settings.to_dict().items()
            if name not in ("method", "seed", "questions")
        },
        "engine": settings.engine,
        "question_file": files.questions.name,
        "questions_sha256": settings.questions,
        "settings_digest": settings.digest,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def write_result(path: str | Path, result: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def read_result(path: str | Path) -> dict[str, Any] | None:
    """A result json, or None if it is not there."""
    path = Path(path)
    return json.loads(path.read_bytes()) if path.is_file() else None
