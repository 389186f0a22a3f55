"""Whether two runs can be compared, and which answers of them belong together."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llava.eval.answers import Row
from llava.eval.benchmarks import BENCHMARKS, Benchmark, BenchmarkFiles, get_benchmark
from llava.eval.compare.runs import Run
from llava.eval.errors import EvalError
from llava.eval.oracle import without_placeholder
from llava.eval.samples import Sample, answer_key
from llava.eval.settings import RunSettings, file_digest

PLAIN_SETTINGS = [
    field.name
    for field in fields(RunSettings)
    if field.name not in ("method", "seed", "questions", "model", "model_fingerprint")
]


@dataclass(frozen=True)
class Questions:
    """What both runs answered.

    Attributes:
        samples: the questions that are compared, in the file's order.
        left_out: how many answers of each run are not, under --common.
    """

    benchmark: Benchmark
    files: BenchmarkFiles
    samples: list[Sample]
    left_out: tuple[int, int]


Answers = dict[int | None, list[Row]]
"""Seed -> answers to `Questions.samples`, in order."""


def match(
    a: Run,
    b: Run,
    name: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    common: bool = False,
) -> tuple[Questions, Answers, Answers]:
    """The questions of both runs, with the answers of each.

    Args:
        name, data, split: the benchmark and where its files are; by default as the runs say, and
            the bundled folder.
        common: compare what both answered, where question files or limits differ.

    Raises EvalError where the runs are not about the same questions.
    """
    named = {r.path: str(r.result["benchmark"]) for r in (a, b) if not r.plain}
    if name is not None and name not in BENCHMARKS:
        get_benchmark(name)  # raises, listing the known ones
    if len(set(named.values()) | ({name} if name else set())) > 1:
        said = [f"{path} answers {of}" for path, of in named.items()]
        said += [f"--benchmark says {name}"] if name else []
        raise EvalError(f"not the same benchmark: {'; '.join(said)}; compare runs of one")
    splits = {str(r.result["split"]) for r in (a, b) if not r.plain}
    if len(splits) > 1:
        raise EvalError(
            f"not the same split: {a.name} answers {a.result['split']!r}, {b.name} "
            f"{b.result['split']!r}; compare runs of one"
        )
    benchmark_name = name or next(iter(named.values()))
    asked = split or next((s for s in splits if s in BENCHMARKS[benchmark_name].splits), None)
    benchmark = get_benchmark(benchmark_name, asked)
    files = benchmark.files(data or benchmark.default_data)
    if splits and files.split not in splits:
        raise EvalError(
            f"{files.questions.parent} holds the split {files.split!r}, and the runs answer "
            f"{splits.pop()!r}; say with --data where its files are"
        )
    _check_questions(a, b, files, common)
    everything = benchmark.read(files)
    found = [_answers_by_key(run, everything, files.questions, common) for run in (a, b)]
    both = set.intersection(*(set(rows) for side in found for rows in side.values()))
    if not both:
        raise EvalError(f"{a.path} and {b.path} have no question in common; nothing to compare")
    counts = [max(len(rows) for rows in side.values()) for side in found]
    if not common and any(len(rows) != len(both) for side in found for rows in side.values()):
        raise EvalError(
            f"{a.name} answers {counts[0]} questions and {b.name} {counts[1]}, {len(both)} of them "
            "the same; answer as many with both (LIMIT), or compare those with --common"
        )
    samples = [sample for sample in everything if sample.key in both]
    answers = [
        {seed: [rows[sample.key] for sample in samples] for seed, rows in side.items()}
        for side in found
    ]
    left_out = (a.count - len(samples), b.count - len(samples))
    return Questions(benchmark, files, samples, left_out), answers[0], answers[1]


def _check_questions(a: Run, b: Run, files: BenchmarkFiles, common: bool) -> None:
    """Raise EvalError where question files differ: those of the runs, or that of the data."""
    asked = {r.name: r.result["questions_sha256"] for r in (a, b) if not r.plain}
    if len(set(asked.values())) > 1 and not common:
        told = ", ".join(f"{name}: SHA-256 {digest[:12]}..." for name, digest in asked.items())
        raise EvalError(
            f"the runs answer different question files ({told}); compare runs of one, or the "
            "questions that both have with --common"
        )
    if asked and file_digest(files.questions) not in asked.values():
        raise EvalError(
            f"{files.questions} is not the question file that was answered (another SHA-256); say "
            "with --data where the files of these runs are"
        )


def _answers_by_key(
    run: Run, everything: Sequence[Sample], questions: Path, common: bool
) -> dict[int | None, dict[str, Row]]:
    """Seed -> sample key -> answer."""
    found = {}
    for seed, own in run.seeds.items():
        rows = _with_samples(own.rows, everything) if run.plain else own.rows
        known = {sample.key for sample in everything}
        keyed: dict[str, Row] = {}
        for number, row in enumerate(rows, start=1):
            key = answer_key(row)
            if key in keyed:
                raise EvalError(
                    f"{own.path}, answer {number}: question_id {row['question_id']!r} is answered "
                    "twice; remove one of the lines"
                )
            if key in known:
                keyed[key] = row
            elif not common:
                raise EvalError(
                    f"{own.path}, answer {number}: its question (id {row['question_id']!r}) is not "
                    f"in {questions}; say with --data where its files are, or give --common to "
                    "leave it out"
                )
        found[seed] = keyed
    return found


def _with_samples(rows: Sequence[Row], everything: Sequence[Sample]) -> list[Row]:
    """LLaVA's own answers name no picture; id and prompt find the question, in the file's order
    where several are alike."""
    places: dict[str, list[Sample]] = defaultdict(list)
    for sample in everything:
        places[_loose_key(sample.question_id, sample.prompt)].append(sample)
    out = []
    for row in rows:
        waiting = places.get(_loose_key(row["question_id"], row["prompt"]), [])
        same = [s for s in waiting if s.round_id == row.get("round_id", s.round_id)]
        if same:
            sample = same[0]
            waiting.remove(sample)
            more: dict[str, Any] = {"image": sample.image, "prompt": sample.prompt}
            if sample.round_id is not None:
                more["round_id"] = sample.round_id
            row = {**row, "question_id": sample.question_id, **more}
        out.append(row)
    return out


def _loose_key(question_id: Any, prompt: str) -> str:
    return json.dumps([str(question_id), without_placeholder(prompt)], ensure_ascii=False)


def differing_settings(a: Run, b: Run) -> list[str]:
    """What else differs than the method, in sentences; the model first."""
    if a.plain or b.plain:
        names = " and ".join(r.name for r in (a, b) if r.plain)
        return [f"{names}: a plain answers file; nothing is known of how it was made"]
    told = []
    models = [(r.result["model"], r.result.get("model_fingerprint")) for r in (a, b)]
    if models[0] != models[1]:
        which = [name + (f" (files {digest[:12]}...)" if digest else "") for name, digest in models]
        told.append(f"the models differ: A is of {which[0]}, B of {which[1]}")
    told += _pairs("settings", a.result, b.result, PLAIN_SETTINGS)
    old, new = (r.result.get("versions") or {} for r in (a, b))
    told += _pairs("versions", old, new, sorted({*old, *new}))
    if told:
        told.append("so some of the texts may differ for another reason than the method")
    return told


def _pairs(
    what: str, a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str]
) -> list[str]:
    unlike = [f"{n} {a.get(n)} in A, {b.get(n)} in B" for n in names if a.get(n) != b.get(n)]
    return [f"{what} differ: {'; '.join(unlike)}"] if unlike else []
