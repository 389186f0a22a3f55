"""All methods on TextVQA at several budgets, with paired intervals, as table, CSV and plot.

    python -m llava.eval.methods_table        (bash scripts/tables/methods.sh sets everything up)

Every method of the registry that runs on the model, `random` with three seeds.  Budget by budget,
the smallest first, so that stopped it holds whole budgets; the same command goes on.  The vision
tower's outputs are shared between methods, so no speed is reported.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from llava.eval import run_benchmark
from llava.eval.benchmarks.textvqa import TextVQA
from llava.eval.cli import env
from llava.eval.comparing import compare, describe, show_interval
from llava.eval.errors import EXIT_OK, EvalError, run_main
from llava.eval.files import write_atomically
from llava.eval.intervals import Interval
from llava.eval.planning import Refusal
from llava.eval.pocket_table import default_processes
from llava.eval.result import read_result
from llava.eval.running import ANSWERS, RESULT
from llava.eval.samples import read_jsonl
from llava.eval.table import format_flops, label_of, markdown, notes, relative
from llava.eval.tables.places import PLACES, place_of
from llava.eval.tables.spec import SEEDS

TOKENS = (192, 128, 64, 32)
STEM = "methods_textvqa"
REFERENCES = ("visiondrop", "random")
FULL = "full"
HEAD = [
    *("method", "place", "asked", "tokens", "accuracy"),
    *(f"vs {name}" for name in REFERENCES),
    *("relative", "FLOPs"),
]

UNBUDGETED = "without a budget"

Result = dict[str, Any]
Intervals = Mapping[str, Mapping[str, Interval]]
"""Reference -> cell -> difference."""


def collect(out: Path) -> list[Result]:
    """Every complete cell below ``out``, the unpruned model first, then by place and name."""
    results = [read_result(path) for path in sorted(out.glob(f"*/{RESULT}"))]
    found = [result for result in results if result is not None]

    def order(result: Result) -> tuple[Any, ...]:
        return (
            result["method"] != "full",
            -(result["tokens"] if result.get("budget") else 10**6),
            PLACES.index(place_of(result)),
            result["label"],
        )

    return sorted(found, key=order)


def scores_of(out: Path, result: Mapping[str, Any], data: Path) -> tuple[list[list[float]], list]:
    """The score of every question, a list for each seed, and the questions' keys."""
    folder, benchmark = out / result["cell"], TextVQA()
    folders = [folder / f"seed-{seed}" for seed in result.get("seeds", [])] or [folder]
    scores, keys = [], []
    for one in folders:
        rows = [row for _, row in read_jsonl(one / ANSWERS)]
        scores.append(benchmark.score(rows, benchmark.files(data)).per_sample)
        keys = [(row["question_id"], row["prompt"], row["image"]) for row in rows]
    return scores, keys


def compare_all(out: Path, results: Sequence[Result], data: Path) -> Intervals:
    """Differences to each of ``REFERENCES``; EvalError where cells answer other questions."""
    scores, first = {}, None
    for result in results:
        scores[result["cell"]], keys = scores_of(out, result, data)
        if first is not None and keys != first:
            raise EvalError(
                f"{result['cell']} answers other questions than the cells before it; use one LIMIT "
                "for all, or give --overwrite"
            )
        first = keys
    pictures = [str(image) for _, _, image in first or []]
    present = {result["label"] for result in results}
    found = {
        name: compare(results, scores, pictures, name) for name in REFERENCES if name in present
    }
    whole = [result for result in results if result.get("budget") is None]
    found[FULL] = compare(whole, scores, pictures, FULL) if FULL in present else {}
    return found


def full_score(results: Sequence[Result]) -> str:
    """The unpruned model's score, as text."""
    return next((f"{r['score']:.1f}" for r in results if r["method"] == FULL), "not answered")


def rows_of(results: Sequence[Result], intervals: Intervals) -> list[list[str]]:
    """The table's cells under ``HEAD``."""
    rows = []
    for result in results:
        score = f"{result['score']:.1f}"
        if result.get("spread") is not None:
            score += f" ± {result['spread']:.1f}"
        share = relative(result, results)
        rows.append(
            [
                label_of(result),
                place_of(result),
                "-" if result.get("budget") is None else str(result["tokens"]),
                f"{result['mean_tokens']:.1f}",
                score,
                *(
                    show_interval(intervals.get(name, {}).get(result["cell"]))
                    for name in (REFERENCES if result.get("budget") else (FULL, "-"))
                ),
                "-" if share is None else f"{share:.1f} %",
                format_flops(result["flops"]),
            ]
        )
    return rows


def overview(
    results: Sequence[Result],
    intervals: Intervals,
    refused: Sequence[Refusal],
    tokens: Sequence[int],
) -> tuple[list[str], list[list[str]]]:
    """Methods x budgets: the score, with a mark where it surely differs from the reference's."""
    reasons = {(r.name, r.tokens): r.cell.split(", ")[-1] for r in refused}
    against = intervals.get(REFERENCES[0], {})
    cells = {(r["label"], r["tokens"]): r for r in results if r.get("budget")}
    head = ["method", "place", *map(str, tokens)]
    rows = []
    for label in dict.fromkeys(label for label, _ in cells):
        row, places = [label], set()
        for budget in tokens:
            result = cells.get((label, budget))
            if result is None:
                row.append(reasons.get((label, budget), "-"))
                continue
            places.add(place_of(result))
            found = against.get(result["cell"])
            mark = "" if found is None or not found.certain else " ▲" if found.low > 0 else " ▼"
            row.append(f"{result['score']:.1f}{mark}")
        rows.append([row[0], sorted(places)[0], *row[1:]])
    return head, sorted(rows, key=lambda row: (PLACES.index(row[1]), row[0]))


def note(results: Sequence[Result]) -> str:
    """What the figures depend on."""
    first = results[0]
    pocket = (
        " They are the bundled model's, on generated scenes: they say nothing about real pictures."
        if "pocket" in str(first["model"])
        else ""
    )
    return (
        f"TextVQA accuracy in percent on {first['n']} questions, {first['model']}, batch "
        f"{first['batch_size']}, {first['dtype']}, {first['attn_implementation']}. asked: the mean "
        "that was asked for; tokens: the true mean of visual tokens over decoder layers, measured. "
        f"±: sample standard deviation over {len(SEEDS)} seeds. {describe(REFERENCES[0])}; the "
        f"same for {REFERENCES[1]}, whose seeds are averaged. Intervals are not adjusted for their "
        "number: of twenty methods that are no different, one is expected to look so. FLOPs: "
        f"prefill of one sample.{pocket}"
    )


def write(
    results: Sequence[Result],
    intervals: Intervals,
    refused: Sequence[Refusal],
    folder: Path,
    tokens: Sequence[int],
    command: str,
) -> list[Path]:
    """Markdown and CSV."""
    rows = rows_of(results, intervals)
    parts = [
        "# All methods on TextVQA\n",
        f"![score against true mean tokens]({STEM}.png)\n",
        f"▲ better and ▼ worse than {REFERENCES[0]} at the same budget: its 95 % interval leaves "
        "out 0. *least is*: the budget is not reachable, since layers before the first drop see "
        f"every token. The unpruned model: {full_score(results)}.\n",
        markdown(*overview(results, intervals, refused, tokens)),
    ]
    groups: dict[str, list[list[str]]] = {}
    for result, row in zip(results, rows, strict=True):
        budget = f"{result['tokens']} tokens" if result.get("budget") else UNBUDGETED
        groups.setdefault(budget, []).append(row)
    for name, group in groups.items():
        head = HEAD
        if name == UNBUDGETED:  # compared with the unpruned model, and with nothing else
            head = [f"vs {FULL}" if i == 5 else n for i, n in enumerate(HEAD) if i != 6]
            group = [[cell for i, cell in enumerate(row) if i != 6] for row in group]
        parts += [f"## {name}\n", markdown(head, group)]
    if refused:
        told = [line.removeprefix("not run: ") for line in notes(refused)]
        parts += ["## Not run\n", "".join(f"- {line}\n" for line in told)]
    parts.append(f"{note(results)} Made by `{command}`.\n")
    sheet = io.StringIO()
    columns = ["method", "place", "asked", "mean_tokens", "layers", "n", "accuracy", "spread"]
    ends = [f"{end}_{name}" for name in REFERENCES for end in ("difference", "low", "high")]
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow([*columns, *ends, "flops"])
    for result in results:
        found = [intervals.get(name, {}).get(result["cell"]) for name in REFERENCES]
        writer.writerow(
            [
                result["label"],
                place_of(result),
                result["tokens"] if result.get("budget") else "",
                f"{result['mean_tokens']:.4f}",
                " ".join(map(str, result.get("layers", []))),
                result["n"],
                f"{result['score']:.4f}",
                "" if result.get("spread") is None else f"{result['spread']:.4f}",
                *(
                    "" if interval is None else f"{getattr(interval, end):.4f}"
                    for interval in found
                    for end in ("difference", "low", "high")
                ),
                "" if result["flops"] is None else f"{result['flops']:.6g}",
            ]
        )
    paths = [folder / f"{STEM}.{ending}" for ending in ("md", "csv")]
    write_atomically(paths[0], "\n".join(parts))
    write_atomically(paths[1], sheet.getvalue())
    return paths


def refusals_of(out: Path) -> list[Refusal]:
    """What the last command could not run, from its comparison file."""
    path = out / "comparison.json"
    found = json.loads(path.read_bytes())["not_run"] if path.is_file() else []
    return [Refusal(**entry) for entry in found]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="All methods on TextVQA: table, CSV and plot.")
    parser.add_argument("--out", default="outputs/methods", help="where answers go")
    parser.add_argument("--results", default="docs/results", help="where table and plot go")
    parser.add_argument("--data", default=env("DATA", TextVQA.default_data))
    parser.add_argument("--methods", default=env("METHODS", "all"))
    parser.add_argument("--tokens", default=env("TOKENS", ",".join(map(str, TOKENS))))
    parser.add_argument("--limit", default=env("LIMIT", "all"))
    parser.add_argument("--batch-size", default=env("BATCH", str(run_benchmark.BUNDLED_BATCH)))
    # The weights are stored in bfloat16, which CPUs multiply about twice as fast as float32.
    parser.add_argument("--dtype", default=env("DTYPE", "bfloat16"))
    parser.add_argument("--nproc", default=env("NPROC", default_processes()))
    parser.add_argument("--tower-cache", default="1024", help="MiB of shared tower outputs")
    parser.add_argument("--overwrite", action="store_true", help="throw away what is there")
    args, rest = parser.parse_known_args(argv)
    out = Path(args.out)
    if args.overwrite:
        shutil.rmtree(out, ignore_errors=True)
    tokens = sorted(run_benchmark.parse_numbers("--tokens", args.tokens), reverse=True)
    common = [
        *("textvqa", "--data", args.data, "--limit", args.limit, "--batch-size", args.batch_size),
        *("--seeds", ",".join(map(str, SEEDS)), "--tower-cache", args.tower_cache),
        *("--dtype", args.dtype, "--nproc", args.nproc, "--out", str(out), *rest),
    ]
    some = "" if args.limit == "all" else f" --limit {args.limit}"
    refused: list[Refusal] = []
    for budget in reversed(tokens):
        status = run_benchmark.main(
            [*common, "--methods", f"full,{args.methods}", "--tokens", str(budget)]
        )
        if status != EXIT_OK:
            return status
        # Stopped later, the files hold the budgets that are complete.
        refused += [r for r in refusals_of(out / TextVQA.name) if r not in refused]
        results = collect(out / TextVQA.name)
        intervals = compare_all(out / TextVQA.name, results, Path(args.data))
        command = f"bash scripts/tables/methods.sh{some}"
        folder = Path(args.results)
        paths = write(results, intervals, refused, folder, tokens, command)
    from llava.eval.methods_plot import plot

    paths.append(plot(results, folder / f"{STEM}.png"))
    for path in paths:
        Console().print(f"wrote {path}", highlight=False)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
