"""What the scorers share: label files read with clear errors, and answers by question."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError
from llava.eval.samples import Sample, read_jsonl


def read_json(path: str | Path, what: str) -> Any:
    """A JSON file's content; EvalError names the file, and the line where it is broken.

    Args:
        what: what the file should be, as in "a GQA question file"."""
    path = Path(path)
    if not path.is_file():
        raise EvalError(f"file not found: {path}; expected {what}")
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise EvalError(
            f"{path}, line {error.lineno}, column {error.colno}: {what} was expected, and this is "
            f"not valid JSON ({error.msg}); was the download cut short? Fetch it again"
        ) from None
    except UnicodeDecodeError as error:
        raise EvalError(
            f"{path}: {what} was expected, and this is no UTF-8 text ({error}); fetch it again"
        ) from None


def human_answers(entry: Mapping[str, Any], where: str) -> list[str]:
    """The people's answers in ``{"answers": [{"answer": str, ...}, ...]}``; at least one.

    Args:
        where: file and entry, for the error."""
    try:
        answers = [given["answer"] for given in entry["answers"]]
    except (KeyError, TypeError):
        answers = []
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise EvalError(
            f'{where}: "answers" must be a list of {{"answer": "text", ...}}, got '
            f"{str(entry.get('answers'))[:80]!r}; use the official file"
        )
    return answers


def words_of(text: str) -> str:
    """A text without spaces and marks, in lower case, to find it in another version of itself."""
    return re.sub(r"[\W_]+", "", text).lower()


def failed(row: Mapping[str, Any]) -> bool:
    """Whether a row of an answers file says that its question could not be answered."""
    return "error" in (row.get("metadata") or {})


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """Rows ``{"question_id", "text", ...}`` of an answers file; EvalError names the bad line."""
    rows = []
    for number, row in read_jsonl(path):
        if "question_id" not in row or not isinstance(row.get("text"), str):
            raise EvalError(
                f'{path}, line {number}: an answer is {{"question_id": ..., "text": "..."}}, got '
                f"{str(row)[:80]!r}"
            )
        rows.append(row)
    if not rows:
        raise EvalError(f"{path} holds no answer")
    return rows


def by_question(rows: Iterable[Mapping[str, Any]], path: str | Path = "answers") -> dict[str, str]:
    """question_id (as text) -> answer; EvalError for a question that is answered twice."""
    texts: dict[str, str] = {}
    for row in rows:
        name = str(row["question_id"])
        if name in texts:
            raise EvalError(f"{path}: question_id {row['question_id']!r} is answered twice")
        texts[name] = row["text"]
    return texts


def question_ids(samples: Sequence[Sample], path: str | Path) -> list[Any]:
    """The questions' ids in order; EvalError for one that comes twice."""
    lines: dict[Any, int] = {}
    for sample in samples:
        if sample.question_id in lines:
            raise EvalError(
                f"{path}: question_id {sample.question_id!r} comes twice (lines "
                f"{lines[sample.question_id]} and {sample.line}); answers are matched by it"
            )
        lines[sample.question_id] = sample.line
    return list(lines)


def require_known(
    names: Sequence[Hashable], known: Mapping[Any, Any], what: str, path: str | Path
) -> None:
    """Raise EvalError where ``known``, read from ``path``, lacks some names; it lists three."""
    missing = [name for name in names if name not in known]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:3])
        raise EvalError(
            f"{path} has no {what} for {len(missing)} of {len(names)}: {shown}"
            f"{', ...' if len(missing) > 3 else ''}; do the two files belong together?"
        )


def in_words(answers: Sequence[str]) -> str:
    """People's answers for reports, the most frequent first: "red (6), dark red (3), maroon"."""
    counts = Counter(answers).most_common()
    return ", ".join(text + (f" ({n})" if n > 1 else "") for text, n in counts)


def by_type(
    per_sample: Sequence[float], types: Sequence[str | None]
) -> dict[str, tuple[float, int]]:
    """Mean score (0 to 100) and number of questions of each type, in alphabetical order."""
    groups: dict[str, list[float]] = defaultdict(list)
    for score, kind in zip(per_sample, types, strict=True):
        if kind is not None:
            groups[kind].append(score)
    return {k: (100 * sum(v) / len(v), len(v)) for k, v in sorted(groups.items())}
