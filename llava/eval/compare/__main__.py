"""The command; see the package's text."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.compare.changes import compare_runs
from llava.eval.compare.redrawing import Models, choose, redraw, save
from llava.eval.compare.report import print_comparison, write_report, write_tables
from llava.eval.compare.runs import read_run
from llava.eval.errors import EXIT_OK, EvalError, run_main
from llava.eval.files import write_atomically
from llava.eval.run_benchmark import POCKET

PICTURES = 12


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m llava.eval.compare",
        description="Compare two runs of a benchmark, sample by sample: what changed from A to B.",
    )
    p.add_argument("a", help="a run: OUT/<benchmark>/<method>-<N>, or an answers file")
    p.add_argument("b", help="another one, on the same questions")
    p.add_argument("--benchmark", choices=sorted(BENCHMARKS), help="of plain answers files")
    p.add_argument("--data", help="folder of the benchmark's files (default: the bundled ones)")
    p.add_argument("--split", help="of plain answers files, where the benchmark has several")
    p.add_argument("--common", action="store_true", help="only the questions that both answer")
    p.add_argument("--out", type=Path, help="write report.md, flips.csv, flips.json there")
    p.add_argument(
        "--pictures",
        type=int,
        default=PICTURES,
        metavar="N",
        help=f"with --out: changed answers of which kept tokens are drawn ({PICTURES}); 0 for none",
    )
    p.add_argument("--model-path", help="of both runs, for the drawings (default: the bundled one)")
    p.add_argument("--model-path-b", help="of B, where it is another")
    p.add_argument("--device", default="auto", help="for the drawings: cpu, cuda, ...")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.pictures < 0:
        raise EvalError(f"--pictures {args.pictures}: give 0 or more")
    plain = args.benchmark is not None
    compared = compare_runs(
        read_run(args.a, plain),
        read_run(args.b, plain),
        name=args.benchmark,
        data=args.data,
        split=args.split,
        common=args.common,
    )
    console = Console(width=None if sys.stdout.isatty() else 130)
    print_comparison(compared, console)
    if args.out is None:
        return EXIT_OK
    write_tables(compared, args.out)
    chosen = choose(compared, args.pictures)
    default = POCKET if Path(POCKET).is_dir() else None
    models = Models(args.model_path, args.model_path_b or args.model_path, default, args.device)
    drawn, notes = redraw(compared, chosen, models)
    names = save(drawn, args.out / "pictures")
    traces = [
        {
            "place": one.change.place,
            "seeds": one.change.seeds,
            "picture": names.get(i),
            **one.traces,
        }
        for i, one in enumerate(drawn)
    ]
    write_atomically(args.out / "traces.json", json.dumps(traces) + "\n")
    report = write_report(compared, args.out, drawn, names, notes)
    for line in notes:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
