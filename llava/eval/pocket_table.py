"""The bundled model's table: every question type, every budget, with the controls beside it.

    python -m llava.eval.pocket_table        (bash scripts/tables/pocket.sh sets everything up)

Rows: the full model; the same with every picture blanked out; the best constant answer; then
VisionDrop, random (mean and spread of three seeds), uniform, and an oracle that keeps the patches
which the question asks for.  Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from llava.eval import run_benchmark
from llava.eval.benchmarks.textvqa import TextVQA, read_regions
from llava.eval.cli import env
from llava.eval.errors import EXIT_OK, run_main
from llava.eval.eval_textvqa import annotation_of, load_annotations, question_of
from llava.eval.files import write_atomically
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.eval.result import read_result
from llava.eval.samples import Sample, read_questions
from llava.eval.table import markdown

METHODS = ("visiondrop", "random", "uniform", "oracle")
TOKENS = (192, 128, 64, 32)
SEEDS = (0, 1, 2)
STEM = "pocket_textvqa"
ANSWERED = "answered"
MARGIN = 20
FULL, BLANK, CONSTANT = "full", "blank picture", "best constant"

Cell = dict[str, float]
Line = dict[str, Any]


def constant_answer(samples: Sequence[Sample], data: Path) -> dict[str, Cell]:
    """Score of the best constant answer of each type; "all" answers each type with its own.

    It is chosen on the very questions that it is scored on, so who knows a question's type only can
    do no better.
    """
    files = TextVQA().files(data)
    annotations, kinds = load_annotations(files.answers), read_regions(files.types)
    evaluator = TextVQAAccuracyEvaluator()
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: dict[str, int] = defaultdict(int)
    for sample in samples:
        row = {"question_id": sample.question_id, "prompt": sample.prompt}
        scores = evaluator.answer_scores(annotation_of(row, annotations)["answers"])
        kind = kinds[str(sample.question_id), question_of(sample.prompt)]["type"]
        counts[kind] += 1
        for answer, score in scores.items():
            totals[kind][answer] += score
    best = {kind: max(answers.values()) for kind, answers in totals.items()}
    cells = {kind: {"score": 100 * best[kind] / n, "n": n} for kind, n in counts.items()}
    cells["all"] = {"score": 100 * sum(best.values()) / len(samples), "n": len(samples)}
    return cells


def line_of(result: Mapping[str, Any], label: str, tokens: float | None) -> Line:
    """One row of the table from a result json."""
    cells = {"all": {k: result[k] for k in ("score", "spread", "n") if k in result}}
    cells.update(result["types"])
    return {"method": label, "tokens": tokens, "cells": cells, "result": dict(result)}


def collect(out: Path, samples: Sequence[Sample], data: Path, tokens: Sequence[int]) -> list[Line]:
    """The table's rows, from the results that are there: whole budgets only."""

    def stored(folder: str) -> dict[str, Any] | None:
        found = sorted(out.glob(f"{folder}/result.json"))
        return read_result(found[0]) if found else None

    lines = []
    if (full := stored("seen/textvqa/full-*")) is not None:
        lines.append(line_of(full, FULL, full["mean_tokens"]))
    if (blank := stored("blank/textvqa/full-*")) is not None:
        lines.append(line_of(blank, BLANK, None))
    lines.append({"method": CONSTANT, "tokens": None, "cells": constant_answer(samples, data)})
    for budget in tokens:
        results = [(method, stored(f"seen/textvqa/{method}-{budget}")) for method in METHODS]
        lines += [
            line_of(result, method, result["mean_tokens"])
            for method, result in results
            if result is not None and all(other is not None for _, other in results)
        ]
    return lines


def add_answered(lines: Sequence[Line]) -> None:
    """Add to each row the score over the types that the model answers by the picture.

    Those are the types in which the full model beats itself on blank pictures by `MARGIN` points:
    on the others there is nothing that dropping could lose.
    """
    by_method = {line["method"]: line["cells"] for line in lines}
    if not {FULL, BLANK} <= set(by_method):
        return
    full, blank = by_method[FULL], by_method[BLANK]
    known = [
        kind
        for kind in full
        if kind != "all" and full[kind]["score"] >= blank[kind]["score"] + MARGIN
    ]
    total = sum(full[kind]["n"] for kind in known)
    for line in lines:
        if total:
            cells = line["cells"]
            score = sum(cells[kind]["score"] * cells[kind]["n"] for kind in known) / total
            cells[ANSWERED] = {"score": score, "n": total}


def kinds_of(lines: Sequence[Line]) -> list[str]:
    groups = [kind for kind in ("all", ANSWERED) if kind in lines[0]["cells"]]
    return [*groups, *sorted(kind for kind in lines[0]["cells"] if kind not in groups)]


def show_cell(cell: Mapping[str, float]) -> str:
    text = f"{cell['score']:.1f}"
    return f"{text} ± {cell['spread']:.1f}" if "spread" in cell else text


def rows_of(lines: Sequence[Line]) -> list[list[str]]:
    kinds = kinds_of(lines)
    return [
        [
            line["method"],
            "-" if line["tokens"] is None else f"{line['tokens']:g}",
            *(show_cell(line["cells"][kind]) for kind in kinds),
        ]
        for line in lines
    ]


def head_of(lines: Sequence[Line]) -> list[str]:
    counts = lines[0]["cells"]
    return ["method", "tokens", *(f"{kind} ({counts[kind]['n']})" for kind in kinds_of(lines))]


def note(lines: Sequence[Line]) -> str:
    first = lines[0]["result"]
    return (
        f"TextVQA accuracy in percent on {first['n']} generated questions (their number in the "
        f"head), {first['model']}, batch {first['batch_size']}, {first['dtype']}, "
        f"{first['attn_implementation']}. tokens: true mean of visual tokens over decoder layers. "
        f"±: sample standard deviation over {len(SEEDS)} seeds. blank picture: the full "
        "model, every picture a uniform grey. best constant: for each "
        "question type the one answer that scores best on these very questions. answered: the "
        f"types in which full beats blank by {MARGIN} points or more. oracle: keeps the "
        "patches that the question asks "
        "for, evenly spaced others up to the budget. The pocket model's CLS target is a function "
        "of the scene, never of a question."
    )


def write(lines: Sequence[Line], folder: Path, limit: str = "all") -> list[Path]:
    """The table as Markdown, CSV and JSON."""
    head, rows, kinds = head_of(lines), rows_of(lines), kinds_of(lines)
    some = "" if limit == "all" else f" --limit {limit}"
    command = f"Made by `bash scripts/tables/pocket.sh{some}`."
    text = f"{markdown(head, rows)}\n{note(lines)} {command}\n"
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["method", "tokens", "type", "n", "accuracy", "spread"])
    for line in lines:
        for kind in kinds:
            cell = line["cells"][kind]
            spread = f"{cell['spread']:.4f}" if "spread" in cell else ""
            tokens = "" if line["tokens"] is None else f"{line['tokens']:g}"
            writer.writerow(
                [line["method"], tokens, kind, cell["n"], f"{cell['score']:.4f}", spread]
            )
    paths = [folder / f"{STEM}.{ending}" for ending in ("md", "csv", "json")]
    for path, content in zip(paths, (text, sheet.getvalue(), to_json(lines))):
        write_atomically(path, content)
    return paths


def to_json(lines: Sequence[Line]) -> str:
    drop = (
        *("types", "score", "spread", "label"),
        *("computed", "processes", "samples_per_second"),  # of the command that was run last
    )
    clean = [
        {**line, "result": {k: v for k, v in line.get("result", {}).items() if k not in drop}}
        for line in lines
    ]
    return json.dumps(clean, indent=1, ensure_ascii=False) + "\n"


def print_lines(lines: Sequence[Line], console: Console) -> None:
    """For a terminal of 80 columns: spreads and decimals stand in the files."""
    table = Table(caption=note(lines), box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ["tok.", *kinds_of(lines)]:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for line, row in zip(lines, rows_of(lines)):
        scores = [f"{line['cells'][kind]['score']:.0f}" for kind in kinds_of(lines)[1:]]
        table.add_row(*row[:2], f"{line['cells']['all']['score']:.1f}", *scores)
        if line["method"] in (CONSTANT, METHODS[-1]):
            table.add_row()
    console.print(table)


def default_processes() -> str:
    """A process for each GPU, or for each core where there is none."""
    return str(torch.cuda.device_count() or len(os.sched_getaffinity(0)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The bundled model's table.")
    parser.add_argument("--out", default="outputs/pocket", help="where answers go")
    parser.add_argument("--results", default="docs/results", help="where the table goes")
    parser.add_argument("--data", default=TextVQA.default_data)
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--limit", default="all")
    parser.add_argument("--batch-size", default=str(run_benchmark.BUNDLED_BATCH))
    # The weights are stored in bfloat16, which CPUs multiply about twice as fast as float32.
    parser.add_argument("--dtype", default=env("DTYPE", "bfloat16"))
    parser.add_argument("--nproc", default=env("NPROC", default_processes()))
    parser.add_argument("--overwrite", action="store_true", help="throw away what is there")
    args, rest = parser.parse_known_args(argv)
    out, data = Path(args.out), Path(args.data)
    if args.overwrite:
        shutil.rmtree(out, ignore_errors=True)
    common = [
        *("textvqa", "--data", str(data), "--limit", args.limit, "--batch-size", args.batch_size),
        *("--seeds", ",".join(map(str, SEEDS)), "--tower-cache", "1024"),
        *("--dtype", args.dtype, "--nproc", args.nproc, *rest),
    ]
    samples = read_questions(TextVQA().files(data).questions, run_benchmark.parse_limit(args.limit))
    tokens = run_benchmark.parse_numbers("--tokens", args.tokens)
    seen = [*common, "--out", str(out / "seen")]
    steps = [
        [*seen, "--methods", FULL],
        [*common, "--out", str(out / "blank"), "--methods", FULL, "--blank-picture"],
        *(
            [*seen, "--methods", ",".join([FULL, *METHODS]), "--tokens", str(budget)]
            for budget in sorted(tokens)
        ),
    ]
    console = Console()
    for step in steps:
        status = run_benchmark.main(step)
        if status != EXIT_OK:
            return status
        # Stopped later, the files hold the rows that are complete.
        lines = collect(out, samples, data, tokens)
        add_answered(lines)
        paths = write(lines, Path(args.results), args.limit)
    print_lines(lines, console)
    for path in paths:
        console.print(f"wrote {path}", highlight=False)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
