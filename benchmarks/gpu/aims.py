"""The aims of the efficiency work beside what was measured, as one table.

    python -m benchmarks.gpu.aims                                  # print
    python -m benchmarks.gpu.aims --into docs/efficiency.md        # between its two markers

Figures come from files that benchmarks wrote; what no file has is "not yet measured".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.efficiency import RESULT, ROOT
from llava.eval.errors import EvalError, run_main
from llava.eval.files import write_atomically
from visiondrop.profiling.rows import NOT_MEASURED

BEGIN, END = "<!-- aims:begin -->", "<!-- aims:end -->"
RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Aim:
    """One line.

    Attributes:
        what, where: in words; goal: the number aimed at; most: whether it is an upper limit.
        file: of `docs/results`; read: the figure in its content.
        unit: behind the figure, "x" or "%".
        also: further files that tell the same, and how; the worst of all counts.
    """

    what: str
    where: str
    goal: float
    most: bool
    file: str
    read: Callable[[Any], float]
    unit: str = "x"
    also: tuple[tuple[str, Callable[[Any], float]], ...] = ()

    def shown(self, value: float) -> str:
        """With its unit."""
        return f"{value:.2%}" if self.unit == "%" else f"{value:.2f}{self.unit}"

    def cells(self, folder: Path) -> list[str]:
        """A row: what, where, aim, measured, whether it is met."""
        limit = f"at {'most' if self.most else 'least'} {self.shown(self.goal)}"
        value = self.found(folder)
        if value is None:
            return [self.what, self.where, limit, NOT_MEASURED, "-"]
        met = value <= self.goal if self.most else value >= self.goal
        return [self.what, self.where, limit, self.shown(value), "yes" if met else "**no**"]

    def found(self, folder: Path) -> float | None:
        """The worst figure, None where no file or cell is there."""
        figures = []
        for file, read in ((self.file, self.read), *self.also):
            path = folder / file
            if not path.exists():
                continue
            with suppress(KeyError, IndexError):
                figures.append(read(json.loads(path.read_text(encoding="utf-8"))))
        return (max if self.most else min)(figures) if figures else None


def best(cell: str, figure: str = "median") -> Callable[[Any], float]:
    """VisionDrop's fastest variant in a cell of `benchmarks.gpu.efficiency`."""

    def read(content: Any) -> float:
        faster = content["cells"][cell]["faster"]
        return max(faster[k][figure] for k in faster if k.partition("+")[0] == "visiondrop")

    return read


def choosing(preset: str) -> Callable[[Any], float]:
    """Its share with graphs, where the rest is shortest."""

    def read(content: Any) -> float:
        cell = content["cells"][f"choosing:{preset}"]
        return float(cell["visiondrop+graphs"]["of_rest"]["median"])

    return read


def evaluation(content: Any) -> float:
    """VisionDrop in batches with the image cache, over the unpruned model one by one."""
    best_way = next(
        case
        for case in content["cases"]
        if case["method"] == "visiondrop" and case["way"] == "cache"
    )
    return float(best_way["ratio"])


def of_flops(content: Any) -> float:
    """Speed-up of the time to the first token over how many times fewer FLOPs run."""
    rows = {row["method"]: row for row in content["rows"]}
    bound = rows["full"]["tflops_run"] / rows["visiondrop"]["tflops_run"]
    return float(rows["visiondrop"]["faster"]["1"]["median"]) / bound


def of_rest(content: Any) -> float:
    """VisionDrop's stages at 64 tokens over the rest of the prefill, by `benchmarks.overhead`."""
    rows = {(row["method"], row["tokens"]): row for row in content["rows"]}
    return float(rows["visiondrop", 64]["choosing_over_rest"])


def of_parts(content: Any) -> float:
    """The same by `benchmarks.choosing`."""
    return float(next(row["share"] for row in content["rows"] if row["part"] == "choosing"))


def of_profile(content: Any) -> float:
    """The same by `python -m visiondrop.profile`."""
    rows = {(row["method"], row["tokens"]): row for row in content["rows"]}
    return float(rows["visiondrop", 64]["of_rest"]["median"])


def memory(content: Any) -> float:
    """VisionDrop's worse ratio to full: both plain, and both with graphs."""
    ratios = content["cells"][f"memory:{NEXT}"]["of_full"]
    return float(max(ratios["visiondrop"], ratios["visiondrop+graphs"]))


GPU, NEXT, OLD = RESULT.name, "llava-next-7b", "llava-1.5-7b"
LEAST, MOST = False, True
AIMS = [
    Aim("time to first token over full, LLaVA-NeXT-7B's sizes, 2,880 to 320, batch 1", "GPU",
        4.5, LEAST, GPU, best(f"first_token:{NEXT}")),
    Aim("time to first token over full, LLaVA-1.5-7B's sizes, 576 to 64, batch 1", "GPU",
        3, LEAST, GPU, best(f"first_token:{OLD}")),
    Aim("prefill at batch 8, LLaVA-NeXT-7B: measured over FLOPs' speed-up", "GPU",
        0.85, LEAST, GPU, best(f"prefill:{NEXT}", "of_bound"), ""),
    Aim("prefill at batch 8, LLaVA-1.5-7B: measured over FLOPs' speed-up", "GPU",
        0.85, LEAST, GPU, best(f"prefill:{OLD}", "of_bound"), ""),
    Aim("choosing over the rest of the prefill, LLaVA-NeXT-7B", "GPU",
        0.02, MOST, GPU, choosing(NEXT), "%"),
    Aim("choosing over the rest of the prefill, LLaVA-1.5-7B", "GPU",
        0.02, MOST, GPU, choosing(OLD), "%"),
    Aim("tokens per second of decoding over full, batch 16, 128 new tokens, 2,880 to 320", "GPU",
        2, LEAST, GPU, best(f"decode:{NEXT}")),
    Aim("peak of activations, KV cache and engine over full, batch 8, 2,880 to 320", "GPU",
        0.25, MOST, GPU, memory, "%"),
    Aim("evaluation over full one by one, GQA sample, pocket model", "GPU",
        20, LEAST, "gpu_evaluation_speed.json", evaluation),
    Aim("evaluation over full one by one, GQA sample, pocket model", "CPU",
        6, LEAST, "evaluation_speed.json", evaluation),
    Aim("choosing over the rest of the prefill, pocket model, 64 tokens", "CPU",
        0.05, MOST, "overhead_pocket.json", of_rest, "%",
        (("choosing.json", of_parts), ("efficiency_pocket.json", of_profile))),
    Aim("choosing over the rest of the prefill, LLaVA-1.5-7B's sizes, 64 tokens", "CPU",
        0.02, MOST, "efficiency_7b_cpu.json", of_profile, "%"),
    Aim("prefill of 300 M parameters, 2,880 to 320: measured over FLOPs' speed-up", "CPU",
        0.8, LEAST, "efficiency_300m.json", of_flops, ""),
]  # fmt: skip


def table(folder: Path) -> str:
    """All aims as Markdown."""
    # Not by `llava.eval.table`, which needs rich: a machine with a GPU may have little installed.
    lines = [["what", "where", "aim", "measured", "met"], ["---", *["---:"] * 4]]
    lines += [aim.cells(folder) for aim in AIMS]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.aims", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--results", type=Path, default=RESULTS, help="folder with the measured files")
    p.add_argument("--into", type=Path, help="a Markdown file with the two markers")
    args = p.parse_args(argv)
    made = table(args.results)
    print(made)
    if args.into is not None:
        text = args.into.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1:
            raise EvalError(f"--into {args.into}: needs one line {BEGIN} and one line {END}")
        before, rest = text.split(BEGIN)
        write_atomically(args.into, f"{before}{BEGIN}\n{made}{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
