"""The two runs of a comparison, read from their folders or from plain answers files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.eval.answers import Row
from llava.eval.errors import EvalError
from llava.eval.result import read_result
from llava.eval.running import ANSWERS, RESULT
from llava.eval.samples import SHOWN, read_jsonl

NEEDED = ("benchmark", "split", "n", "questions_sha256", "method_config", "model", "batch_size")


@dataclass(frozen=True)
class SeedRun:
    """The answers of one seed, which may be all there are.

    Attributes:
        result: its result json; empty for a plain answers file.
    """

    path: Path
    rows: list[Row] = field(repr=False)
    result: Mapping[str, Any] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One side of a comparison.

    Attributes:
        name: its cell (``visiondrop-64``), or the answers file's name.
        result: its result json, that of all seeds together; empty for a plain answers file.
        seeds: its answers by seed; one under None where it has one.
    """

    path: Path
    name: str
    result: Mapping[str, Any] = field(repr=False)
    seeds: dict[int | None, SeedRun] = field(repr=False)

    @property
    def plain(self) -> bool:
        """Whether nothing but an answers file is there."""
        return not self.result

    @property
    def count(self) -> int:
        """Questions answered, by each seed."""
        return len(next(iter(self.seeds.values())).rows)


def read_run(path: str | Path, plain: bool = False) -> Run:
    """A run's folder (of one cell, or of one of its seeds), or an answers file.

    Args:
        plain: whether answers without a result json will do.

    Raises EvalError for what is no run, or is not finished, with what to do.
    """
    path = Path(path)
    if not path.exists():
        raise EvalError(f"{path} is not there; give a run's folder, OUT/<benchmark>/<method>-<N>")
    if path.is_file():
        if path.name == ANSWERS and path.with_name(RESULT).is_file():
            return read_run(path.parent, plain)
        if not plain:
            raise EvalError(
                f"{path} has no {RESULT} beside it that says what it answers; give --benchmark "
                "NAME and --data DIR to compare plain answers files"
            )
        return Run(path, path.stem, {}, {None: SeedRun(path, read_rows(path))})
    result = _result_of(path)
    if result is not None and result.get("seeds"):
        found = {seed: _seed_run(path / f"seed-{seed}") for seed in result["seeds"]}
        return Run(path, str(result.get("cell") or path.name), result, dict(found))
    if result is not None:
        one = _seed_run(path)
        name = str(result.get("cell") or path.name)
        name += f" {path.name}" if path.name.startswith("seed-") else ""
        return Run(path, name, result, {None: one})
    if plain and (path / ANSWERS).is_file():
        _check_finished(path)
        file = path / ANSWERS
        return Run(path, path.name, {}, {None: SeedRun(file, read_rows(file))})
    raise EvalError(_no_result(path))


def read_rows(path: Path) -> list[Row]:
    """Rows of an answers file; EvalError names a line that is no answer."""
    rows = []
    for number, row in read_jsonl(path):
        if "question_id" not in row or not all(
            isinstance(row.get(name), str) for name in ("prompt", "text")
        ):
            raise EvalError(
                f'{path}, line {number}: an answer has "question_id", "prompt" and "text", got '
                f"{str(row)[:80]!r}"
            )
        rows.append({**row, "metadata": row.get("metadata") or {}})
    if not rows:
        raise EvalError(f"{path} holds no answer")
    return rows


def _result_of(folder: Path) -> dict[str, Any] | None:
    path = folder / RESULT
    try:
        result = read_result(path)
    except ValueError as error:
        raise EvalError(
            f"{path} is no JSON ({error}); run the same command again to write it anew"
        ) from None
    if result is None:
        return None
    needed = [name for name in NEEDED if not isinstance(result, dict) or name not in result]
    if needed:
        raise EvalError(
            f"{path} does not say {', '.join(needed)}; it is no result of a benchmark's run"
        )
    return result


def _seed_run(folder: Path) -> SeedRun:
    _check_finished(folder)
    result = _result_of(folder)
    answers = folder / ANSWERS
    if result is None or not answers.is_file():
        lacking = RESULT if result is None else ANSWERS
        raise EvalError(f"{folder} has no {lacking}; run the same command again to finish it")
    rows = read_rows(answers)
    if len(rows) != result["n"]:
        raise EvalError(
            f"{answers} holds {len(rows)} answers and {RESULT} beside it is over {result['n']}; "
            "run the same command again to score them anew"
        )
    return SeedRun(folder, rows, result)


def _check_finished(folder: Path) -> None:
    """Raise EvalError for a folder into which a run has not written everything yet."""
    parts = [p for p in folder.glob(f"{ANSWERS}.partial*") if not p.name.endswith(".lock")]
    if parts:
        answered = sum(_answers_in(part) for part in parts)
        raise EvalError(
            f"{folder} is not finished ({answered} answers in {parts[0].name}); run the same "
            "command again to go on"
        )


def _answers_in(part: Path) -> int:
    """Answers in a file that grows; its last line may be half written."""
    count = 0
    for line in part.read_bytes().split(b"\n")[1:-1]:
        try:
            count += len(json.loads(line)["rows"])
        except (ValueError, KeyError, TypeError):
            break
    return count


def _no_result(folder: Path) -> str:
    """Why a folder without a result json cannot be compared, and what to do."""
    _check_finished(folder)
    inside = sorted(p.parent.name for p in folder.glob(f"*/{RESULT}"))
    seeds = sorted(p.name for p in folder.glob("seed-*"))
    if seeds:
        return (
            f"{folder} has {', '.join(seeds)} and no {RESULT} of them all: not finished; run the "
            "same command again, or give one seed's folder"
        )
    if inside:
        more = f" and {len(inside) - SHOWN} more" if len(inside) > SHOWN else ""
        return (
            f"{folder} holds {len(inside)} runs ({', '.join(inside[:SHOWN])}{more}); give the "
            "folder of one"
        )
    if (folder / ANSWERS).is_file():
        return (
            f"{folder} has answers and no {RESULT}; run the same command again to score them, or "
            "give --benchmark NAME and --data DIR"
        )
    return f"{folder} holds no run: no {RESULT} in it; give OUT/<benchmark>/<method>-<N>"
