"""The command: ``python -m llava.eval.tables NAME``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from llava.eval import run_benchmark
from llava.eval.cli import env, model_choice
from llava.eval.errors import EXIT_FAILED_SAMPLES, EXIT_OK, EvalError
from llava.eval.files import take_lock
from llava.eval.pocket_table import default_processes
from llava.eval.tables import efficiency
from llava.eval.tables.answer import Answering
from llava.eval.tables.beside import is_published_model
from llava.eval.tables.board import Answered, Board
from llava.eval.tables.columns import Column, Request, check_methods, plan
from llava.eval.tables.registry import EFFICIENCY, SPECS, get_spec
from llava.eval.tables.spec import BLANK, FULL, SEEDS, Spec
from llava.eval.tables.wandb_cells import log_cells
from llava.eval.tables.work import Workers
from llava.eval.tables.write import Writer

EXIT_INCOMPLETE = 4  # the table is written, but cells that should have run could not be
BUNDLED_LIMIT, QUICK_LIMIT = 300, 50


def add_running_flags(p: argparse.ArgumentParser) -> None:
    """How a table's cells are answered."""
    p.add_argument("--seeds", default=env("SEEDS", ",".join(map(str, SEEDS))))
    p.add_argument(
        "--nproc", type=int, default=env("NPROC", None, int), help="a process a GPU, or a core"
    )
    p.add_argument("--dtype", default=env("DTYPE"), help="bfloat16 for the bundled model on a CPU")
    p.add_argument("--batch-size", default=env("BATCH"))
    p.add_argument("--tower-cache", default="1024", help="MiB of tower outputs a process shares")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Answer a table's cells and write it; flags of run_benchmark go through to it."
    )
    p.add_argument("table", choices=sorted([*SPECS, EFFICIENCY]))
    p.add_argument("--quick", action="store_true", help="50 questions, few methods, two budgets")
    p.add_argument("--benchmarks", default=env("BENCHMARKS"), help="comma list (the table's)")
    p.add_argument("--methods", default=env("METHODS"), help="comma list, or all (the table's)")
    p.add_argument("--tokens", default=env("TOKENS"), help="comma list (the table's)")
    p.add_argument("--limit", default=env("LIMIT"), help="the first N of each; 300 of bundled data")
    p.add_argument("--data", default=env("DATA"), help="folder with a folder for each benchmark")
    p.add_argument("--out", default=env("OUT"), help="where answers go (outputs/tables/NAME)")
    p.add_argument("--results", default=env("RESULTS"), help="where the table goes (the same)")
    add_running_flags(p)
    p.add_argument(
        "--measured",
        default=env("MEASURED"),
        help=f"{EFFICIENCY}: files of python -m visiondrop.profile, for milliseconds",
    )
    p.add_argument("--wandb", action="store_true", help="a run for each cell, in one group")
    p.add_argument("--overwrite", action="store_true", help="throw away other runs' answers")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args, rest = parser().parse_known_args(argv)
    if args.table == EFFICIENCY:
        return efficiency.main(args, rest)
    if args.measured:
        raise EvalError(f"--measured {args.measured}: only {EFFICIENCY} has milliseconds")
    spec = get_spec(args.table)
    spec = spec.quickly() if args.quick else spec
    base, methods, first = choose_methods(spec, args.methods)
    flags = benchmark_flags(spec, args, rest)
    out = Path(args.out or f"outputs/tables/{args.table}{'-quick' if args.quick else ''}")
    tokens = spec.tokens
    if args.tokens:
        tokens = tuple(dict.fromkeys(run_benchmark.parse_numbers("--tokens", args.tokens)))
    usual = spec.bundled if args.data is None and spec.bundled else spec.benchmarks
    names = [n.strip() for n in (args.benchmarks or ",".join(usual)).split(",")]
    data = args.data or spec.data
    requests = [
        Request(base, name, methods, tokens, flags, str(out), data, blank)
        for name in dict.fromkeys(names)
        for blank in ([True, False] if BLANK in first else [False])
    ]
    console = Console(width=None if sys.stdout.isatty() else 130)
    columns = [plan(request) for request in requests]
    board = Board([Answered.of(c) for c in columns if not c.request.blank])
    same = is_same(spec, columns)
    command = f"{spec.script} {shlex.join(argv[1:])}".strip()
    writer = Writer(spec, board, Path(args.results or out), command, same)
    announce(spec, columns, tokens, out, console)
    processes = int(default_processes()) if args.nproc is None else args.nproc
    ready = any(column.job is not None for column in columns)
    if ready:
        update = partial(show, writer)
        answer(columns, board, update, first, processes, args.overwrite, console)
        if args.wandb:
            for line in log_cells(columns, board, args.table):
                console.print(line, highlight=False, soft_wrap=True)
    for path in writer.update([]):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return exit_status(board, console)


def choose_methods(spec: Spec, asked: str | None) -> tuple[Spec, tuple[str, ...], tuple[str, ...]]:
    """The table without the variants that nobody asked for, the methods, and which come first."""
    if asked is None:
        methods = (*spec.first, *(("all",) if spec.rest else ()))
        return spec, methods, spec.first
    names = tuple(name.strip() for name in asked.split(",") if name.strip())
    check_methods(names)
    from dataclasses import replace

    everything = "all" in names
    first = tuple(n for n in spec.first if everything or n in names or n == FULL)
    return replace(spec, variants=()), tuple(dict.fromkeys((FULL, *names))), first


def benchmark_flags(spec: Spec, args: argparse.Namespace, rest: list[str]) -> tuple[str, ...]:
    """Flags of the benchmark command that all columns share."""
    model = run_benchmark.parser().parse_args(["textvqa", *rest])
    given = model.model_path
    bundled = args.data is None
    flags = list(rest)
    if given == run_benchmark.POCKET and spec.model is None:
        given = ""
        flags += ["--model-path", ""]
    elif env("MODEL") is None and given == run_benchmark.POCKET and spec.model:
        given = spec.model
        flags += ["--model-path", spec.model]
    dtype = args.dtype
    if dtype is None and given and "pocket" in given and not has_gpu(model):
        # Its weights are stored so, and CPUs multiply them about twice as fast as float32.
        dtype = "bfloat16"
    if model.workers is None and not has_gpu(model):
        # The processes have all cores; without workers a picture is prepared once for all methods.
        flags += ["--workers", "0"]
    limit = args.limit or (str(QUICK_LIMIT) if args.quick else None)
    limit = limit or (str(BUNDLED_LIMIT) if bundled else "all")
    flags += ["--limit", limit, "--seeds", args.seeds, "--tower-cache", args.tower_cache]
    flags += ["--dtype", dtype] if dtype else []
    flags += ["--batch-size", args.batch_size] if args.batch_size else []
    return tuple(flags + (["--wandb"] if args.wandb else []))


def has_gpu(args: argparse.Namespace) -> bool:
    return bool(args.model_path) and model_choice(args).device_name.startswith("cuda")


def is_same(spec: Spec, columns: list[Column]) -> bool:
    """Whether the published numbers are about this very checkpoint."""
    jobs = [column.job for column in columns if column.job is not None]
    return bool(jobs) and is_published_model(jobs[0].choice, spec.published_model)


def announce(
    spec: Spec, columns: list[Column], tokens: tuple[int, ...], out: Path, console: Console
) -> None:
    lines = {"table": f"{spec.title} ({spec.name})"}
    job = next((column.job for column in columns if column.job is not None), None)
    if job is not None:
        choice = job.choice
        lines["model"] = (
            f"{choice.path}, {choice.dtype_name} on {choice.device_name}, "
            f"{choice.attn_implementation}, batch {job.args.batch_size}"
        )
        cells = sum(len(column.cells) for column in columns)
        lines["cells"] = f"{cells}, at {', '.join(map(str, tokens))} tokens"
    lines["results"] = f"{out}/"
    for name, text in lines.items():
        console.print(f"{name:<10} {text}", highlight=False, soft_wrap=True)
    for column in columns:
        if column.reason is not None and not column.request.blank:
            console.print(f"not run    {column.title}: {column.reason}", soft_wrap=True)


def answer(
    columns: list[Column],
    board: Board,
    update: Callable[[str], None],
    first: tuple[str, ...],
    processes: int,
    overwrite: bool,
    console: Console,
) -> None:
    """Answer what is open; one table at a time in a folder.

    Args:
        update: called with a benchmark's name after each of its steps.
    """
    out = Path(columns[0].request.out)
    out.mkdir(parents=True, exist_ok=True)
    lock = take_lock(out / ".table.lock")
    if lock is None:
        raise EvalError(f"another table is being made in {out}; wait until it ends, or give --out")
    workers = Workers(processes)
    try:
        Answering(columns, board, workers, console, update).run(first, overwrite)
    finally:
        workers.close()
        lock.close()


def show(writer: Writer, name: str) -> None:
    """Write the files after a benchmark's step."""
    writer.update([name])


def exit_status(board: Board, console: Console) -> int:
    """What the caller should know."""
    lacking = [f"{column.title}: {column.reason}" for column in board.missing]
    lacking += [f"{refusal.name}: {refusal.reason}" for refusal in board.failed]
    if lacking:
        console.print(f"{len(lacking)} not run:", *lacking, sep="\n  ", soft_wrap=True)
        return EXIT_INCOMPLETE
    if board.failed_samples:
        console.print(
            f"{board.failed_samples} samples could not be answered; mend their pictures and run "
            "the same command again to answer them"
        )
        return EXIT_FAILED_SAMPLES
    return EXIT_OK
