"""The runs of a benchmark: answered in one process or several, scored, written down."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from llava.eval.answering import LoadedModel, answer_questions
from llava.eval.answers import AnswerStore
from llava.eval.benchmarks import Benchmark, BenchmarkFiles
from llava.eval.cli import default_workers, run_settings
from llava.eval.errors import EvalError
from llava.eval.loading import ModelChoice, load_model
from llava.eval.planning import PlannedRun, Refusal
from llava.eval.preparing import QuestionDataset
from llava.eval.result import build_result, read_result, write_result
from llava.eval.samples import Sample, batches_of, chunk_of_batches
from llava.eval.settings import RunSettings
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
    tower_cache: TowerCache | None = None
    scores: dict[str, list[list[float]]] = field(default_factory=dict)
    """Cell -> for each of its seeds the score (0 to 1) of every question."""
    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Cell -> for each of its seeds what the score is made of, where it is no mean of those."""
    _loaded: LoadedModel | None = None

    @property
    def loaded(self) -> LoadedModel:
        if self._loaded is None:
            self._loaded = load_model(self.choice)
        return self._loaded

    def settings(self, run: PlannedRun) -> RunSettings:
        return run_settings(
            self.args,
            self.choice,
            self.config,
            str(self.files.questions),
            run.method.to_dict(),
            run.seed,
        )

    def store(self, run: PlannedRun, part: str | None = None) -> AnswerStore:
        return AnswerStore(
            run.folder(self.out) / ANSWERS,
            self.settings(run),
            self.samples,
            part,
            overwrite=self.args.overwrite and part is None,
        )

    def dataset(self, settings: RunSettings) -> QuestionDataset:
        loaded = self.loaded
        return QuestionDataset(
            self.samples,
            self.benchmark.pictures(self.files),
            loaded.tokenizer,
            loaded.image_processor,
            loaded.model.config,
            settings.conv_mode,
            settings.image_aspect_ratio,
            settings.blank_picture,
        )

    def answer(
        self,
        run: PlannedRun,
        store: AnswerStore,
        batches: Sequence[int] | None = None,
        position: int = 0,
    ) -> None:
        """Answer what is open of a run, in this process."""
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
        )

    def finish(self, run: PlannedRun, store: AnswerStore, computed: int) -> dict[str, Any]:
        """Put the answers in place, score them and write the result json."""
        rows = store.finish()
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
            computed,
            store.seconds,
            run.seed,
            run.method.flops_by_ledger,
        )
        folder = store.path.parent
        written = self.benchmark.write_files(rows, self.files, folder)
        result["files"] = [file.relative_to(folder).as_posix() for file in written]
        result["label"], result["cell"], result["budget"] = run.label, run.cell, run.budget
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

    An optional run that turns out not to run on this model goes to ``refused``."""
    if job.processes > 1:
        _answer_in_processes(job, runs)
    cells: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        with job.store(run) as store:
            before = _computed_before(job, run, store)
            reason = _try(job, run, store)
            if reason is not None:
                if refused is not None:
                    refused.append(Refusal(run.label, run.budget and run.tokens, reason))
                continue
            result = job.finish(run, store, before + store.computed)
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


def _computed_before(job: Job, run: PlannedRun, store: AnswerStore) -> int:
    """Answers that this command's other processes computed."""
    if job.processes == 1:
        return 0
    done = len(store.samples) - sum(len(store.batches[k]) for k in store.todo)
    return done - _there_at_start.get((job.out, run.cell, run.seed), 0)


_there_at_start: dict[tuple[Path, str, int], int] = {}


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


def _answer_in_processes(job: Job, runs: Sequence[PlannedRun]) -> None:
    """Start one process a chunk, each with the same flags, and wait; raise if one failed."""
    open_batches = False
    for run in runs:
        with job.store(run) as store:
            todo = store.todo
            done = len(store.samples) - sum(len(store.batches[k]) for k in todo)
            _there_at_start[(job.out, run.cell, run.seed)] = done
            open_batches = open_batches or bool(todo)
    if not open_batches:
        return
    children = []
    for i in range(job.processes):
        environment = dict(os.environ)
        if torch.cuda.is_available():
            visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
            names = [v for v in visible if v] or [str(d) for d in range(torch.cuda.device_count())]
            environment["CUDA_VISIBLE_DEVICES"] = names[i % len(names)]
        else:
            cores = len(os.sched_getaffinity(0))
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // job.processes)))
        command = [
            sys.executable,
            "-m",
            "llava.eval.run_benchmark",
            *job.args.argv,
            "--part",
            f"{i}of{job.processes}",
        ]
        children.append(subprocess.Popen(command, env=environment))
    try:
        codes = [child.wait() for child in children]
    except BaseException:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
        raise
    if any(codes):
        raise EvalError(
            f"{sum(map(bool, codes))} of {len(codes)} processes stopped (exit status "
            f"{', '.join(map(str, codes))}; their messages are above); what they answered is kept, "
            "run the same command again to go on"
        )


def answer_part(job: Job, runs: Sequence[PlannedRun], part: str) -> None:
    """The work of one of several processes: its chunk of every run."""
    index, _, count = part.partition("of")
    chunk = chunk_of_batches(
        len(batches_of(len(job.samples), job.args.batch_size)), int(count), int(index)
    )
    for run in runs:
        with job.store(run, part) as store:
            _try(job, run, store, chunk, position=int(index))
