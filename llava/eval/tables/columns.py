"""A table's columns planned: what is to be answered in each, and why what is not.

A column is a benchmark (or one with its pictures blanked out).  It is planned by the benchmark
command's own `prepare`, so files, pictures, annotations and budgets are checked before any compute.
One that cannot be says why and what to fetch; the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava.data.registry import BY_HAND
from llava.eval import run_benchmark
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.errors import EvalError
from llava.eval.loading import read_config
from llava.eval.oracle import Regions
from llava.eval.planning import PlannedRun, Refusal, geometry_of_config, ledger_of
from llava.eval.running import Job
from llava.eval.tables.spec import BLANK, FULL, Spec, Variant
from visiondrop.methods import METHODS

FETCH = "python scripts/data/prepare.py {} --root DIR fetches it (--check says what is missing)"


@dataclass(frozen=True)
class Request:
    """Which column of which table; all that a worker process needs to plan it again.

    Attributes:
        methods: by name, with or without @preset; "all" is every one of the registry.
        flags: of the benchmark command, the same for all columns.
        data: folder with a folder for each benchmark; None for the bundled ones.
        blank: whether the pictures are blanked out.
    """

    spec: Spec
    benchmark: str
    methods: tuple[str, ...]
    tokens: tuple[int, ...]
    flags: tuple[str, ...]
    out: str
    data: str | None = None
    blank: bool = False

    @property
    def argv(self) -> list[str]:
        """The benchmark command's arguments."""
        data = [] if self.data is None else ["--data", str(Path(self.data) / self.benchmark)]
        out = Path(self.out) / "blank" if self.blank else Path(self.out)
        methods = [FULL, "--blank-picture"] if self.blank else ["all"]
        tokens = ",".join(map(str, self.tokens))
        fields = [] if self.blank else self.spec.method_args
        methods += [text for field in fields for text in ("--method-arg", field)]
        return [
            *(self.benchmark, *self.flags, *data, "--out", str(out), "--nproc", "1"),
            *("--tokens", tokens, "--methods", *methods),
        ]


@dataclass
class Column:
    """A planned column.

    Attributes:
        job: None where it cannot be answered.
        runs: one for each cell and seed.
        refused: methods that cannot run here, or not at a budget.
        reason: why there is no job.
        variants: cell -> the variant that it is.
    """

    request: Request
    title: str
    job: Job | None = None
    runs: list[PlannedRun] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    reason: str | None = None
    variants: dict[str, Variant] = field(default_factory=dict)

    @property
    def cells(self) -> dict[str, list[PlannedRun]]:
        """The runs by cell, in order."""
        out: dict[str, list[PlannedRun]] = {}
        for run in self.runs:
            out.setdefault(run.cell, []).append(run)
        return out


def plan(request: Request) -> Column:
    """The column; its ``reason`` says why it cannot be, nothing raises."""
    known = BENCHMARKS.get(request.benchmark)
    column = Column(request, known.title if known else request.benchmark)
    if known is None:
        column.reason = f"there is no benchmark {request.benchmark!r} here yet"
        return column
    args = run_benchmark.parser().parse_args(request.argv)
    args.argv = request.argv
    try:
        check_model_type(request.spec, args)
    except EvalError as error:
        column.reason = str(error)
        return column
    try:
        job, runs, refused = run_benchmark.prepare(args)
    except EvalError as error:
        fetch = BY_HAND.get(request.benchmark, FETCH.format(request.benchmark))
        column.reason = f"{error}; {fetch}"
        return column
    if not request.blank:
        runs, refused = _chosen(runs, refused, request.methods)
        runs += _presets(request, job, refused)
        runs += _variants(request, column, job, refused)
    # A cell that turns out not to run is told, and the others go on.
    column.runs = [replace(run, optional=True) for run in runs]
    column.job, column.refused = job, refused
    return column


def check_model_type(spec: Spec, args: Any) -> None:
    """EvalError where no checkpoint is given, or one of a kind that the table is not about."""
    if not args.model_path:
        raise EvalError(
            f"{spec.name} has no bundled checkpoint; give one with MODEL or --model-path"
        )
    kind = getattr(read_config(run_benchmark.model_choice(args)), "model_type", "")
    if spec.model_types and kind not in spec.model_types:
        raise EvalError(
            f"{spec.name} is about checkpoints of type {' or '.join(spec.model_types)}, "
            f"{args.model_path} is {kind!r}; give another with MODEL or --model-path"
        )


def _chosen(
    runs: Sequence[PlannedRun], refused: Sequence[Refusal], methods: Sequence[str]
) -> tuple[list[PlannedRun], list[Refusal]]:
    """Those of the methods that were asked for."""
    if "all" in methods:
        return list(runs), list(refused)
    names = set(methods)
    return [r for r in runs if r.name in names], [r for r in refused if r.name in names]


def _presets(request: Request, job: Job, refused: list[Refusal]) -> list[PlannedRun]:
    runs = []
    for name in request.methods:
        if "@" not in name:
            continue
        job.args.methods = name
        try:
            runs += run_benchmark.plan(job.args, job.config, refused, job.benchmark.lacks)
        except EvalError as error:
            refused.append(Refusal(name, None, str(error)))
    return runs


def _variants(
    request: Request, column: Column, job: Job, refused: list[Refusal]
) -> list[PlannedRun]:
    geometry = geometry_of_config(job.config)
    seeds = tuple(run_benchmark.parse_numbers("SEEDS", job.args.seeds))
    runs = []
    for variant in request.spec.variants:
        for tokens in request.tokens:
            try:
                more = {"regions": _regions(job)} if variant.asks_regions else {}
                method = variant.build(tokens, geometry, **more)
                ledger = ledger_of(method, geometry)
            except (ValueError, EvalError) as error:
                refused.append(Refusal(variant.slug, tokens, str(error)))
                continue
            run = PlannedRun(method, tokens, ledger, suffix=f"+{variant.slug}")
            column.variants[run.cell] = variant
            runs += for_each_seed(run, seeds)
    return runs


def for_each_seed(run: PlannedRun, seeds: Sequence[int]) -> list[PlannedRun]:
    """The run, or of a method that draws one a seed."""
    method: Any = run.method
    if not (hasattr(method, "seed") and method.draws):
        return [run]
    every = tuple(seeds)
    return [replace(run, method=replace(method, seed=s), seed=s, seeds=every) for s in every]


def _regions(job: Job) -> Regions:
    """What the data says of the job's questions."""
    return job.benchmark.regions(job.samples, job.files)


def check_methods(methods: Sequence[str]) -> None:
    """EvalError for a name that is none, before anything is planned."""
    for name in methods:
        method, at, preset = name.partition("@")
        if name in ("all", BLANK):
            continue
        if method not in METHODS or (at and preset not in METHODS[method].presets):
            raise EvalError(
                f"unknown method {name!r}; known are {', '.join(sorted(METHODS))}, NAME@PRESET, "
                "all and 'blank picture'"
            )
