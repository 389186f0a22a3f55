"""Benchmarks by name.  A benchmark is one small file here, and one line in the registry."""

from __future__ import annotations

from llava.eval.benchmarks.base import Benchmark, BenchmarkFiles, Scores
from llava.eval.benchmarks.gqa import GQA
from llava.eval.benchmarks.mmbench import MMBench, MMBenchCN
from llava.eval.benchmarks.mme import MME
from llava.eval.benchmarks.mmvet import MMVet
from llava.eval.benchmarks.pope import POPE
from llava.eval.benchmarks.seed import SEEDBench
from llava.eval.benchmarks.sqa import ScienceQA
from llava.eval.benchmarks.textvqa import TextVQA
from llava.eval.benchmarks.video import MSRVTT, MSVD, TGIF
from llava.eval.benchmarks.vizwiz import VizWiz
from llava.eval.benchmarks.vqav2 import VQAv2
from llava.eval.errors import EvalError

BENCHMARKS: dict[str, type[Benchmark]] = {
    "textvqa": TextVQA,
    "vqav2": VQAv2,
    "vizwiz": VizWiz,
    "gqa": GQA,
    "pope": POPE,
    "mmbench": MMBench,
    "mmbench_cn": MMBenchCN,
    "mmvet": MMVet,
    "mme": MME,
    "sqa": ScienceQA,
    "seed": SEEDBench,
    "tgif": TGIF,
    "msvd": MSVD,
    "msrvtt": MSRVTT,
}


def get_benchmark(name: str, split: str | None = None) -> Benchmark:
    """The benchmark of that name, at one of its splits; EvalError lists the known ones."""
    if name not in BENCHMARKS:
        raise EvalError(f"unknown benchmark {name!r}; known are {', '.join(sorted(BENCHMARKS))}")
    benchmark = BENCHMARKS[name]()
    if split is not None and split not in benchmark.splits:
        raise EvalError(
            f"{name} has no split {split!r} to choose; it has "
            f"{', '.join(benchmark.splits) or 'one, leave SPLIT out'}"
        )
    benchmark.split = split
    return benchmark


__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkFiles", "Scores", "get_benchmark"]
