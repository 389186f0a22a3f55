"""Answer and score a benchmark with several methods, and print one table.

    python -m llava.eval.run_benchmark textvqa --methods full,visiondrop,random --tokens 64
    torchrun --nproc_per_node 8 -m llava.eval.run_benchmark vqav2 ...       (docs/scaling.md)

``scripts/eval/<benchmark>.sh`` sets everything up and calls this.  Every flag can also be given as
an environment variable (MODEL, DATA, METHODS, TOKENS, LIMIT, OUT, NPROC, SEEDS, BATCH, DTYPE).
Results: ``$OUT/<benchmark>/<method>-<tokens>/result.json`` beside the answers, and a table.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llava.eval.benchmarks import BENCHMARKS, Benchmark, get_benchmark
from llava.eval.cli import (
    add_answer_flags,
    add_budget_flag,
    add_model_flags,
    add_released_flags,
    env,
    model_choice,
    parse_limit,
    parse_method_args,
)
from llava.eval.comparing import Parts, choose_reference, compare, write_comparison
from llava.eval.errors import EXIT_FAILED_SAMPLES, EXIT_OK, EvalError, run_main
from llava.eval.files import write_atomically
from llava.eval.loading import read_config
from llava.eval.oracle import Regions
from llava.eval.planning import (
    PlannedRun,
    Refusal,
    geometry_of_config,
    plan_one,
    plan_runs,
)
from llava.eval.preparing import build_prompt
from llava.eval.processes import Group, current_group
from llava.eval.released_flags import uses_released_flags
from llava.eval.running import Job, answer_in_group, check_runs, log_to_wandb, run_all
from llava.eval.sharded import Shards, add_shard_flags, shards
from llava.eval.table import Comparison, markdown_table, print_table
from llava.eval.wandb_log import check_wandb

POCKET, POCKET_NEXT = "checkpoints/pocket-llava", "checkpoints/pocket-llava-next"
POCKET_CLIP = "checkpoints/pocket-clip"  # its text half reads the question for CDPruner and TRIM
METHODS = "full,visiondrop,random,uniform"
BUNDLED_BATCH = Benchmark.bundled_batch


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Answer and score a benchmark; print one table.")
    p.add_argument("benchmark", choices=sorted(BENCHMARKS))
    p.add_argument("--data", default=env("DATA"), help="folder of the benchmark's files")
    p.add_argument(
        "--split", default=env("SPLIT"), help="of benchmarks with several, as in test-dev"
    )
    p.add_argument(
        "--methods",
        "--method",
        default=env("METHODS", env("METHOD")),
        help=f"comma list of NAME or NAME@PRESET, or all (default {METHODS})",
    )
    p.add_argument(
        "--tokens",
        default=env("TOKENS"),
        help="visual tokens, mean over decoder layers; comma list (default 64)",
    )
    add_budget_flag(p)
    p.add_argument(
        "--reference",
        default=env("REFERENCE"),
        help="the method that others are compared with (visiondrop if it runs, else random)",
    )
    p.add_argument("--seeds", default=env("SEEDS", "0"), help="of seeded methods; comma list")
    p.add_argument("--method-arg", action="append", metavar="NAME=VALUE", help="repeatable")
    p.add_argument("--limit", default=env("LIMIT"), help="the first N questions, or all")
    p.add_argument("--out", default=env("OUT", "outputs"))
    p.add_argument(
        "--nproc",
        type=int,
        default=env("NPROC", None, int),
        help="processes; all visible GPUs by default",
    )
    p.add_argument(
        "--tower-cache",
        type=int,
        default=0,
        metavar="MIB",
        help="share so much of the vision tower's outputs between runs (speeds are then unequal)",
    )
    p.add_argument("--overwrite", action="store_true", help="throw away another run's answers")
    # One of several processes, for a command that scores by itself.
    p.add_argument("--answers-only", action="store_true", help=argparse.SUPPRESS)
    add_model_flags(p, default_model=POCKET)
    add_shard_flags(p, env("TP", 1, int), env("SHARDED_BY", "deepspeed"))
    add_answer_flags(p)
    p.set_defaults(max_new_tokens=None)  # the benchmark's own
    add_released_flags(p)
    return p


def parse_numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise EvalError(f"{name} must be whole numbers with commas between, got {text!r}") from None


def set_defaults(args: argparse.Namespace, benchmark: Benchmark) -> int | None:
    """Fill in batch size and limit: all questions of real data, one at a time as in LLaVA; some of
    the bundled data, so that a first try takes minutes on a CPU.  Returns the limit."""
    bundled = args.data in (None, benchmark.default_data)
    if args.max_new_tokens is None:
        args.max_new_tokens = benchmark.max_new_tokens
    if args.batch_size is None:
        args.batch_size = benchmark.bundled_batch if bundled else 1
    if args.limit is not None:
        return parse_limit(args.limit)
    return benchmark.bundled_limit if bundled else None


def plan(
    args: argparse.Namespace,
    config: Any,
    refused: list[Refusal],
    lacks: Mapping[str, str],
    regions: Callable[[], Regions] | None = None,
) -> list[PlannedRun]:
    """The runs of a command; methods of ``all`` that cannot run go to ``refused``."""
    geometry = geometry_of_config(config)
    seeds = parse_numbers("SEEDS", args.seeds) or [0]
    args.seed = seeds[0]
    if uses_released_flags(args):
        methods, args.method = args.methods, None
        tokens, args.tokens = args.tokens, None
        one = plan_one(args, geometry)
        names = [n for n in (methods or "full").split(",") if n != one.method.name]
        budgets = parse_numbers("TOKENS", tokens) if tokens else [one.tokens]
        others = plan_runs(
            names, budgets, seeds, geometry, None, regions, args.budget, refused, lacks
        )
        return [*others, one]
    bundled = args.model_path in (POCKET, POCKET_NEXT) and Path(POCKET_CLIP).is_dir()
    defaults = {"clip": POCKET_CLIP} if bundled else {}
    names = [name.strip() for name in (args.methods or METHODS).split(",") if name.strip()]
    budgets = parse_numbers("TOKENS", args.tokens or "64")
    given = parse_method_args(args.method_arg)
    return plan_runs(
        names, budgets, seeds, geometry, given, regions, args.budget, refused, lacks, defaults
    )


def prepare(
    args: argparse.Namespace, group: Group | None = None
) -> tuple[Job, list[PlannedRun], list[Refusal]]:
    """Check everything that can be checked before any compute."""
    group = group or Group()
    benchmark = get_benchmark(args.benchmark, args.split)
    if args.model_path == POCKET:
        args.model_path = benchmark.default_model
    files = benchmark.files(args.data or benchmark.default_data)
    everything = benchmark.read(files)
    limit = set_defaults(args, benchmark)
    if limit is not None and limit < 1:
        raise EvalError(f"limit must be at least 1, got {limit}; use LIMIT=all for all questions")
    samples = everything[:limit]
    benchmark.pictures(files).check(samples)
    benchmark.check(samples, files)
    build_prompt("", args.conv_mode)
    if args.wandb:
        check_wandb()
    choice = model_choice(args)
    config = read_config(choice)
    refused: list[Refusal] = []
    runs = plan(args, config, refused, benchmark.lacks, lambda: benchmark.regions(samples, files))
    if args.reference:
        choose_reference([{"label": run.label} for run in runs], args.reference)
    processes = args.nproc or max(1, torch.cuda.device_count())
    if group.size > 1:
        processes = group.size
    out = Path(args.out) / "-".join(filter(None, (benchmark.name, benchmark.split)))
    job = Job(args, benchmark, files, samples, choice, config, out, processes, group)
    if args.tower_cache:
        job.tower_cache = job.new_tower_cache(args.tower_cache * 2**20)
    args.of = len(everything)
    return job, runs, refused


def announce(job: Job, runs: list[PlannedRun], console: Console) -> None:
    args, n = job.args, len(job.samples)
    some = "" if n == args.of else f" (the first of {args.of}; LIMIT=all answers them all)"
    lines = {
        "benchmark": job.benchmark.title,
        "model": f"{job.choice.path}, {job.choice.dtype_name} on {job.choice.device_name}, "
        f"{job.choice.attn_implementation}, batch {args.batch_size}"
        + (f", engine {args.engine}" if args.engine != "none" else ""),
        "data": f"{job.files.questions.parent}, {n} questions{some}",
        "methods": ", ".join(dict.fromkeys(run.cell for run in runs))
        + (" (picture blanked out)" if args.blank_picture else ""),
        "results": f"{job.out}/",
    }
    if job.processes > 1:
        lines["processes"] = str(job.processes)
    if job.shards.size > 1:
        lines["one model"] = f"over {job.shards.size} processes, by {args.sharded_by}"
    for name, text in lines.items():
        console.print(f"{name:<10} {text}", highlight=False, soft_wrap=True)


def comparison_of(job: Job, results: list[dict[str, Any]], refused: list[Refusal]) -> Comparison:
    """Every cell against the reference on the same questions."""
    reference = choose_reference(results, job.args.reference)
    if reference is None or any(result["score"] is None for result in results):
        return Comparison(refused=refused)
    pictures = [sample.image or sample.key for sample in job.samples]
    parts = Parts(job.parts, job.benchmark.headline) if job.parts else None
    return Comparison(reference, compare(results, job.scores, pictures, reference, parts), refused)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.argv = argv
    if args.tensor_parallel > 1:
        with shards(args) as held:
            return answer_and_score(args, Group(), held)
    return answer_and_score(args, current_group(), Shards())


def answer_and_score(args: argparse.Namespace, group: Group, held: Shards) -> int:
    """The work of this process: one of ``group``, or of those that hold one model."""
    args.device = group.device(args.device)
    job, runs, refused = prepare(args, group)
    job.shards = held
    if args.answers_only:
        answer_in_group(job, runs)
        return EXIT_OK
    if group.rank > 0 or held.follows:
        run_all(job, runs)
        return EXIT_OK
    console = Console(width=None if sys.stdout.isatty() else 130)
    announce(job, runs, console)
    check_runs(job, runs)
    args.overwrite = False
    results = run_all(job, runs, refused=refused)
    title = f"{job.benchmark.title}, {job.choice.name}"
    comparison = comparison_of(job, results, refused)
    console.print()
    print_table(title, results, console, comparison)
    table = job.out / "table.md"
    write_atomically(table, markdown_table(title, results, comparison))
    intervals, reference = comparison.intervals, comparison.shown
    write_comparison(job.out, results, intervals, reference, [asdict(r) for r in refused])
    console.print(f"the same in Markdown: {table}", highlight=False, soft_wrap=True)
    if args.wandb:
        for run in runs:
            console.print(log_to_wandb(job, run), highlight=False, soft_wrap=True)
    failed = sum(result["failed"] for result in results)
    if failed:
        print(
            f"{failed} samples could not be answered (their answers say why); mend that and run "
            "the same command again to answer them",
            file=sys.stderr,
        )
    return EXIT_FAILED_SAMPLES if failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
