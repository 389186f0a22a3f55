"""The runs of a benchmark: answered in one process or several, scored, written down."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, BinaryIO

import numpy as np

from llava.eval.answering import LoadedModel, answer_questions, dataset_of, in_several_batches
from llava.eval.answers import AnswerStore, take_answers
from llava.eval.benchmarks import Benchmark, BenchmarkFiles
from llava.eval.cli import default_workers, run_settings
from llava.eval.engines import usable_engine
from llava.eval.errors import EvalError
from llava.eval.loading import ModelChoice, load_model
from llava.eval.near_ties import all_near_ties, near_ties
from llava.eval.planning import PlannedRun, Refusal
from llava.eval.prefixes import may_turn_answers, sharing_note
from llava.eval.preparing import HELD, HELD_BY_WORKER, QuestionDataset
from llava.eval.processes import Group, launch, share
from llava.eval.result import build_result, read_result, write_result
from llava.eval.samples import Sample, batches_of
from llava.eval.settings import RunSettings
from llava.eval.sharded import Shards
from llava.eval.wandb_log import LoggedRun, log_run
from visiondrop import TowerCache

ANSWERS = "answers.jsonl"
RESULT = "result.json"


@dataclass
class Job:
    """All that the runs of one command share; the model is loaded when it is first needed."""

    args: argparse.Namespace
    benchmark: Benchmark
    files: BenchmarkFiles
    samples: list[Sample]
    choice: ModelChoice
    config: Any
    out: Path
    processes: int = 1
    group: Group = field(default_factory=Group)
    shards: Shards = field(default_factory=Shards)
    tower_cache: TowerCache | None = None
    scores: dict[str, list[list[float]]] = field(default_factory=dict)
    """Cell -> for each of its seeds the score (0 to 1) of every question."""
    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Cell -> for each of its seeds what the score is made of, where it is no mean of those."""
    _loaded: LoadedModel | None = None
    _settings: RunSettings | None = None
    _dataset: QuestionDataset | None = None

    @property
    def loaded(self) -> LoadedModel:
        if self._loaded is None:
            self._loaded = load_model(self.choice)
        return self._loaded

    def settings(self, run: PlannedRun) -> RunSettings:
        if self._settings is None:  # the checkpoint and the questions are hashed once
            files = str(self.files.questions)
            self._settings = run_settings(self.args, self.choice, self.config, files, {})
        asked, own = self.args.image_cache == "on", self._settings
        shared = may_turn_answers(asked, run.method, self.samples, own.dtype)
        engine = usable_engine(self.args.engine, run.method)
        own = replace(own, method=run.method.to_dict(), seed=run.seed)
        return replace(own, image_cache=shared, engine=engine)

    def new_tower_cache(self, max_bytes: int) -> TowerCache:
        """A store of tower outputs that runs over these samples may share, whatever their method:
        none changes another's answers by a bit."""
        batches = batches_of(len(self.samples), self.args.batch_size)
        return TowerCache(max_bytes, in_several_batches(self.samples, batches))

    def answers(self, run: PlannedRun) -> Path:
        return run.folder(self.out) / ANSWERS

    def store(
        self, run: PlannedRun, part: str | None = None, lock: BinaryIO | None = None
    ) -> AnswerStore:
        return AnswerStore(
            self.answers(run),
            self.settings(run),
            self.samples,
            part,
            overwrite=self.args.overwrite and part is None,
            lock=lock,
        )

    def dataset(self, settings: RunSettings) -> QuestionDataset:
        """The questions as the model takes them, the same for all runs."""
        if self._dataset is None:
            pictures = self.benchmark.pictures(self.files)
            held = HELD if self.args.workers == 0 else HELD_BY_WORKER
            self._dataset = dataset_of(self.loaded, self.samples, pictures, settings, held)
        return self._dataset

    def answer(
        self,
        run: PlannedRun,
        store: AnswerStore,
        batches: Sequence[int] | None = None,
        position: int = 0,
    ) -> None:
        """Answer what is open of a run, in this process."""
        if self.shards.size > 1:
            wanted = range(len(store.batches)) if batches is None else batches
            batches = self.shards.same(sorted(set(store.todo) & set(wanted)))
        if not set(store.todo) & set(range(len(store.batches)) if batches is None else batches):
            return
        settings = store.settings
        workers = self.args.workers
        if workers is None:
            workers = default_workers(settings.device)
        label = run.cell + (f" seed {run.seed}" if len(run.seeds) > 1 else "")
        answer_questions(
            self.loaded,
            run.method,
            store,
            self.dataset(settings),
            batches,
            workers,
            f"{label:<16}",
            position,
            self.tower_cache,
            self.args.image_cache == "on",
        )

    def finish(self, run: PlannedRun, store: AnswerStore) -> dict[str, Any]:
        """Put the answers in place, score them and write the result json."""
        rows = store.finish()
        by_rank = store.computed_by
        computed = [by_rank.get(rank, 0) for rank in range(max([self.processes - 1, *by_rank]) + 1)]
        computed[0] += store.computed
        scores = self.benchmark.score(rows, self.files)
        result = build_result(
            self.benchmark,
            self.files,
            run.method.name,
            run.tokens,
            store.settings,
            self.config,
            rows,
            scores,
            run.ledger,
            sum(computed),
            store.seconds,
            run.seed,
            run.method.flops_by_ledger,
        )
        folder = store.path.parent
        for file in folder.glob("*.tmp[0-9]*"):  # of a process that was killed; the lock is ours
            file.unlink()
        written = self.benchmark.write_files(rows, self.files, folder)
        result["files"] = [file.relative_to(folder).as_posix() for file in written]
        result["label"], result["cell"], result["budget"] = run.label, run.cell, run.budget
        result["processes"] = [{"rank": r, "computed": n} for r, n in enumerate(computed)]
        result["near_ties"] = near_ties(store.samples, store.margins())
        asked = self.args.image_cache == "on"
        result["image_cache"] = sharing_note(asked, run.method, store.samples)
        if self.shards.size > 1:
            result["tensor_parallel"] = self.shards.size
        if run.moved:
            result["layers"] = list(run.moved)
        self.scores.setdefault(run.cell, []).append(scores.per_sample)
        if scores.parts is not None:
            self.parts.setdefault(run.cell, []).append(scores.parts)
        write_result(store.path.with_name(RESULT), result)
        return result


def check_runs(job: Job, runs: Sequence[PlannedRun]) -> None:
    """Open and close every answers file: a foreign one is refused before anything is computed."""
    for run in runs:
        with AnswerStore(
            run.folder(job.out) / ANSWERS,
            job.settings(run),
            job.samples,
            overwrite=job.args.overwrite,
        ):
            pass


def run_all(
    job: Job,
    runs: Sequence[PlannedRun],
    on_result: Callable[[dict[str, Any]], None] | None = None,
    refused: list[Refusal] | None = None,
) -> list[dict[str, Any]]:
    """Answer and score every run; one result for each cell of the table, in order.

    An optional run that turns out not to run on this model goes to ``refused``.  In a group of
    processes every one calls this; process 0 scores and has the results, the others have none."""
    cells: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as held:
        locks: list[BinaryIO | None] = [None] * len(runs)
        if job.processes > 1:
            if job.group.rank == 0:  # nobody else writes here until all is scored
                locks = [held.enter_context(take_answers(job.answers(run))) for run in runs]
            _answer_together(job, runs, locks)
            if job.group.rank > 0:
                return []
        for run, lock in zip(runs, locks):
            with job.store(run, lock=lock) as store:
                # What failed in another process just now is not tried again at once.
                reason = _try(job, run, store, store.missing if job.processes > 1 else None)
                if reason is not None:
                    if refused is not None:
                        refused.append(Refusal(run.label, run.budget and run.tokens, reason))
                    continue
                if job.shards.follows:
                    continue
                result = job.finish(run, store)
            cells.setdefault(run.cell, []).append(result)
            if on_result is not None:
                on_result(result)
    return [_aggregate(job, cell, results) for cell, results in cells.items()]


def _try(
    job: Job,
    run: PlannedRun,
    store: AnswerStore,
    batches: Sequence[int] | None = None,
    position: int = 0,
) -> str | None:
    """Answer a run; the reason why an optional one cannot run here, None where it did."""
    try:
        job.answer(run, store, batches, position)
    except ValueError as error:
        if not run.optional:
            raise EvalError(f"{run.label}: {error}") from error
        return str(error)
    return None


def log_to_wandb(job: Job, run: PlannedRun) -> str:
    """Log a complete run; returns a line that says what was done."""
    folder = run.folder(job.out)
    result = read_result(folder / RESULT)
    assert result is not None, "only complete runs are logged"
    names = ("score", "n", "failed", "mean_tokens", "flops", "kv_bytes")
    summary = {name: result[name] for name in names if result[name] is not None}
    summary.update({f"figures/{name}": value for name, value in result["figures"].items()})
    summary.update({f"types/{kind}": cell["score"] for kind, cell in result["types"].items()})
    config = {k: v for k, v in result.items() if k not in (*names, "types", "computed")}
    with job.store(run) as store:
        settings, rows = store.settings, store.rows()
    logged = LoggedRun(
        f"{job.benchmark.name}/{run.cell}", folder / "wandb.json", settings, config, summary, rows
    )
    return log_run(logged, job.loaded, run.method, job.dataset(settings))


def _aggregate(job: Job, cell: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """One result from several seeds': mean and sample standard deviation, kept beside them."""
    if len(results) == 1:
        return results[0]
    scores = [result["score"] for result in results]
    scored = None not in scores
    speeds = [r["samples_per_second"] for r in results if r["samples_per_second"]]
    types = {
        kind: {
            "score": fmean(result["types"][kind]["score"] for result in results),
            "spread": stdev(result["types"][kind]["score"] for result in results),
            "n": value["n"],
        }
        for kind, value in results[0]["types"].items()
    }
    combined = {
        **results[0],
        "score": fmean(scores) if scored else None,
        "spread": stdev(scores) if scored else None,
        "scores": scores,
        "seeds": [result["seed"] for result in results],
        "types": types,
        "figures": {
            name: fmean(result["figures"][name] for result in results)
            for name in results[0]["figures"]
        },
        "failed": max(result["failed"] for result in results),
        "computed": sum(result["computed"] for result in results),
        "processes": [
            {"rank": rank, "computed": sum(process["computed"] for process in processes)}
            for rank, processes in enumerate(zip(*(result["processes"] for result in results)))
        ],
        "near_ties": all_near_ties([result["near_ties"] for result in results]),
        "samples_per_second": fmean(speeds) if speeds else None,
    }
    for name in ("seed", "settings_digest", "method_config"):
        combined.pop(name)
    combined["method_config"] = {
        k: v for k, v in results[0]["method_config"].items() if k != "seed"
    }
    write_result(job.out / cell / RESULT, combined)
    return combined


# --- several processes -----------------------------------------------------------------------


def _answer_together(
    job: Job, runs: Sequence[PlannedRun], locks: Sequence[BinaryIO | None]
) -> None:
    """Answer in this process's group, or in one that is started for it."""
    todo = []
    if job.group.rank == 0:
        for run, lock in zip(runs, locks):
            with job.store(run, lock=lock) as store:  # brings together what a crash left apart
                todo.append(store.todo)
    if job.group.size > 1:
        answer_in_group(job, runs, todo)
        job.group.wait()
    elif any(todo):
        launch("llava.eval.run_benchmark", [*job.args.argv, "--answers-only"], job.processes)


def answer_in_group(
    job: Job, runs: Sequence[PlannedRun], todo: list[list[int]] | None = None
) -> None:
    """The work of one process of a group: its share of every run's open batches.

    ``todo`` says which these are, in process 0; left out, it looks."""
    if todo is None and job.group.rank == 0:
        todo = []
        for run in runs:
            with job.store(run, job.group.part) as store:
                todo.append(store.todo)
    answer_part(job, runs, job.group.part, job.group.broadcast(todo))


def answer_part(
    job: Job, runs: Sequence[PlannedRun], part: str, todo: Sequence[Sequence[int]] | None = None
) -> None:
    """The share of process ``part`` ("0of2") of every run's batches ``todo`` (of all batches)."""
    rank, size = map(int, part.split("of"))
    everything = range(len(batches_of(len(job.samples), job.args.batch_size)))
    for run, batches in zip(runs, todo or [everything] * len(runs)):
        own = share(batches, rank, size)
        if own:
            with job.store(run, part) as store:
                _try(job, run, store, own, position=job.group.local_rank or rank)
