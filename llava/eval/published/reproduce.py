"""docs/reproduce.md: for every published score the files, the command and the number.

    python -m llava.eval.published.reproduce > docs/reproduce.md

What the numbers are, comes from ``published.csv`` and ``sources.csv``; what they were measured on,
from `llava.eval.tables.beside`; which files are needed, from `llava.data.registry`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from llava.data.registry import SOURCES
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.published import BENCHMARK_NAMES, Figure, figures, sources
from llava.eval.published.reproduce_text import CLOSING, OPENING, REMARKS
from llava.eval.table import markdown
from llava.eval.tables.beside import OWN, meaning_of, true_mean
from visiondrop.methods import METHODS

MODEL, NEXT = "llava-v1.5-7b", "llava-next-7b"
CHECKPOINT = "liuhaotian/llava-v1.5-7b"
ORDER = ("gqa", "mmbench", "mmbench_cn", "mme", "pope", "sqa", "vqav2", "textvqa", "vizwiz")
"""The paper's order; what the other sources add comes after it."""

CLIP = "openai/clip-vit-large-patch14-336"


OPENCOMPASS = "`upload.xlsx` goes to mmbench.opencompass.org.cn"
SERVERS = {
    "MMBench_TEST_EN_legacy": OPENCOMPASS,
    "test-dev": "`upload.json` goes to EvalAI's VQA challenge (830), phase test-dev",
    "test": "`upload.json` goes to EvalAI's VizWiz VQA challenge",
    "v1": "`results.json` goes to MM-Vet's own notebook, in which GPT-4 rates the answers",
}
"""Split without public answers -> where a run's file goes."""

SPLITS = {
    "MMBench": "mmbench_dev_20230712",
    "MMBench_CN": "mmbench_dev_cn_20231003",
    "VQAv2": "test-dev",
    "VizWiz": "test",
}
OWN_SPLITS = {"MMBench": "MMBench_TEST_EN_legacy"}
"""Published benchmark -> SPLIT, for others' numbers and the paper's own; "" where there is one."""

ELSEWHERE = {"seed": "SEED-Bench-image/"}
"""Folder of pictures of an archive that brings its own."""

Cell = tuple[str, int, str]
"""Method, tokens by the paper's count, split."""


def split_of(figure: Figure) -> str:
    """What SPLIT must be for a number; where its source does not say, what LLaVA's script has."""
    own = OWN_SPLITS.get(figure.benchmark) if figure.source == OWN else None
    return own or SPLITS.get(figure.benchmark, "")


def command(benchmark: str, method: str, tokens: int, split: str) -> str:
    """The command of one cell; MODEL and ROOT are set once for all of them."""
    given = [f"DATA=$ROOT/{benchmark}"]
    if split:
        given.append(f"SPLIT={split}")
    given.append(f"METHODS={method}")
    if method != "full":
        given.append(f"TOKENS={tokens}")
        if not is_mean(method, tokens):
            given.append("BUDGET=nominal")
    flags = f" --method-arg clip={CLIP}" if "text encoder" in METHODS[method].needs else ""
    return f"{' '.join(given)} bash scripts/eval/{benchmark}.sh{flags}"


def mean_of(method: str, tokens: int) -> float | None:
    """The papers' count as a mean over decoder layers, on 32 layers and 576 patches."""
    found = true_mean(Figure("", MODEL, method, tokens, "", 0.0, "low"))
    if found is None and "text encoder" in METHODS[method].needs:
        return float(tokens)  # it drops before the LLM; building it would load the encoder
    return found


def is_mean(method: str, tokens: int) -> bool:
    """Whether the papers' count is the mean over layers, to a token."""
    found = mean_of(method, tokens)
    return found is not None and abs(found - tokens) <= 1


def cells(wanted: Iterable[Figure]) -> dict[Cell, list[Figure]]:
    """The numbers by cell; full first, then by method as the registry has them."""
    found: dict[Cell, list[Figure]] = {}
    for figure in wanted:
        found.setdefault((figure.method, figure.tokens, split_of(figure)), []).append(figure)
    names = ["full", *(name for name in METHODS if name != "full")]

    def place(cell: Cell) -> tuple[int, int, bool]:
        method, tokens, split = cell
        return names.index(method), -tokens, split not in OWN_SPLITS.values()

    return {cell: found[cell] for cell in sorted(found, key=place)}


def numbers(found: Sequence[Figure]) -> str:
    """ "59.99 [own], 59.3 [copied]"; what is hardly to be trusted is marked."""
    ordered = sorted(found, key=lambda figure: figure.source != OWN)
    texts = []
    for figure in ordered:
        perception = " perception" if figure.benchmark == "MME_perception" else ""
        mark = " (low trust)" if figure.trust == "low" else ""
        texts.append(f"{figure.value:g}{perception} [{figure.source}]{mark}")
    return ", ".join(texts)


def files_of(benchmark: str, split: str) -> list[str]:
    """What must lie below the benchmark's folder, by the registry of official files."""
    source = SOURCES[benchmark]
    found = [question.place for question in source.questions_of(split or None)]
    for resource in source.resources_of(split or None):
        found += resource.places
        if resource.pictures:
            found.append(ELSEWHERE.get(benchmark, f"{resource.pictures}/"))
        if resource.trees:
            names, place = resource.trees
            found += [f"{name}/" for name in names] if place == "." else [f"{place}/"]
    return list(dict.fromkeys(found))


def wanted_of(benchmark: str, model: str) -> list[Figure]:
    """The numbers of a benchmark, MME's perception among MME's; none where none were published."""
    if benchmark not in BENCHMARK_NAMES:
        return []
    name = BENCHMARK_NAMES[benchmark]
    names = {name, "MME_perception"} if name == "MME" else {name}
    return [f for f in figures() if f.model == model and f.benchmark in names]


def section(benchmark: str) -> list[str]:
    """One benchmark: files, split and metric, then a row for each cell."""
    wanted = wanted_of(benchmark, MODEL)
    found = cells(wanted)
    lines = [f"## {BENCHMARKS[benchmark].title}", ""]
    for split in dict.fromkeys(split for _, _, split in found):
        lines += _split_lines(benchmark, split)
    told: dict[str, list[str]] = {}
    for figure in wanted:
        meaning = meaning_of(figure)
        here = f" (`{meaning.figure}` here)" if meaning.split else ""
        at = told.setdefault(f"{meaning.told}{here}", [])
        at += [] if figure.source in at else [figure.source]
    lines += [f"- Numbers of {', '.join(names)}: {what}." for what, names in told.items()]
    lines += [f"- {remark}." for remark in REMARKS.get(benchmark, ())]
    rows = []
    for (method, tokens, split), own in found.items():
        mean = mean_of(method, tokens)
        shown = "-" if mean is None else f"{mean:.1f}"
        told_command = f"`{command(benchmark, method, tokens, split)}`"
        rows.append([f"`{method}`", str(tokens), shown, numbers(own), told_command])
    head = ["method", "tokens, papers' count", "true mean", "published", "command"]
    return [*lines, "", markdown(head, rows)]


def _split_lines(benchmark: str, split: str) -> list[str]:
    """Files of a split, and what becomes of its answers."""
    fetch = f"python scripts/data/prepare.py {benchmark} --root $ROOT"
    fetch += f" --split {split}" if split else ""
    files = ", ".join(f"`{name}`" for name in files_of(benchmark, split))
    name = f" for `{split}`" if split else ""
    lines = [f"- Files{name} below `$ROOT/{benchmark}/`: {files}; `{fetch}` fetches them."]
    server = SERVERS.get("v1" if benchmark == "mmvet" else split)
    if server is not None:
        lines.append(f"- Its answers are not public: no score here. The cell's {server}.")
    return lines


def next_section() -> list[str]:
    """LLaVA-NeXT's numbers; the table's own script is their command."""
    rows = []
    for benchmark in (*ORDER, *(name for name in BENCHMARKS if name not in ORDER)):
        for (method, tokens, _), found in cells(wanted_of(benchmark, NEXT)).items():
            rows.append([f"`{method}`", BENCHMARKS[benchmark].title, str(tokens), numbers(found)])
    return [markdown(["method", "benchmark", "tokens, papers' count", "published"], rows)]


def source_lines() -> list[str]:
    """What each source is."""
    return [f"- **{s.name}** (trust: {s.trust}): {s.what}" for s in sources().values()]


def text() -> str:
    """The whole document."""
    others = [name for name in BENCHMARKS if name not in ORDER and wanted_of(name, MODEL)]
    lines = [OPENING.format(checkpoint=CHECKPOINT), *source_lines(), ""]
    for benchmark in (*ORDER, *others):
        lines += section(benchmark)
    before, after = CLOSING.split("{next}")
    return "\n".join([*lines, before.strip(), "", *next_section(), after.strip()]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
