"""A comparison as a table for the terminal, as Markdown with pictures, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava.eval.compare.changes import COLUMNS, OUTCOMES, Change, Compared, Group
from llava.eval.compare.redrawing import Drawn
from llava.eval.compare.runs import Run
from llava.eval.comparing import SEED, show_interval
from llava.eval.files import write_atomically
from llava.eval.intervals import CONFIDENCE, RESAMPLES
from llava.eval.table import format_number, markdown

LISTED = 200  # changed answers that the report lists; the CSV has all
TOLD = 8  # changed scores that the terminal shows
LONGEST = 200  # characters of a text in a table


def title_of(compared: Compared) -> str:
    """Benchmark, split, questions."""
    benchmark, files = compared.questions.benchmark, compared.questions.files
    return f"{benchmark.title}, {files.split}, {compared.everything.n} questions: B against A"


def head_of(compared: Compared) -> list[str]:
    """Who A and B are, and what else a reader must know."""
    return [
        f"A  {_describe(compared.a)}",
        f"B  {_describe(compared.b)}",
        *compared.notes,
    ]


def _describe(run: Run) -> str:
    if run.plain:
        return f"{run.path}"
    result = run.result
    mean = result.get("mean_tokens")
    tokens = "" if mean is None else f", {mean:.1f} visual tokens a layer"
    seeds = f", seeds {', '.join(map(str, run.seeds))}" if len(run.seeds) > 1 else ""
    made = f"{result['model']}, {result['dtype']}, batch {result['batch_size']}"
    return f"{run.name}{tokens}{seeds}; {made}; {run.path}"


def verdict(compared: Compared) -> list[str]:
    """The difference with its interval, and McNemar's p, in sentences."""
    metric, lines = compared.questions.benchmark.metric, []
    if compared.interval is not None:
        i = compared.interval
        lines.append(
            f"{metric}, B minus A: {show_interval(i)} ({CONFIDENCE:.0%} paired bootstrap interval, "
            f"{RESAMPLES:,} draws of whole pictures of {i.clusters}, seed {SEED})"
        )
    elif compared.everything.scores is None:
        lines.append("nothing is scored here: texts only")
    else:
        lines.append("no interval: all questions are about one picture")
    for (seed_a, seed_b), test in compared.tests.items():
        which = [f"seed {s} of {x}" for x, s in (("A", seed_a), ("B", seed_b)) if s is not None]
        many = f" ({', '.join(which)})" if which else ""
        lines.append(
            f"McNemar's exact p{many}: {test.p:.3g}; of {test.n}, A alone is right on {test.lost}, "
            f"B alone on {test.gained}; it takes them for independent draws"
        )
    if compared.everything.scores is not None and compared.graded:
        lines.append("no McNemar test: scores between 0 and 1")
    return lines


def rows_of(compared: Compared) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table by question type."""
    names = [compared.names[outcome] for outcome in OUTCOMES]
    metric = compared.questions.benchmark.metric
    head = ["type", "n", *names, f"A {metric}", f"B {metric}", "B - A"]
    groups = {"all": compared.everything, **compared.types}
    return head, [[name, *_cells(group)] for name, group in groups.items()]


def _cells(group: Group) -> list[str]:
    scores = ["-"] * 3
    if group.scores is not None:
        a, b = group.scores
        scores = [format_number(a, 2), format_number(b, 2), f"{b - a:+.2f}"]
    return [str(group.n), *(str(group.counts[outcome]) for outcome in OUTCOMES), *scores]


def print_comparison(compared: Compared, console: Console) -> None:
    """For the terminal: head, table, verdict, the first changed scores."""
    for line in head_of(compared):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    head, rows = rows_of(compared)
    table = Table(title=title_of(compared), box=SIMPLE_HEAD)
    table.pad_edge = False
    for i, name in enumerate(head):
        table.add_column(escape(name), justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for line in verdict(compared):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    flips = compared.of("worse", "better")
    for change in flips[:TOLD]:
        a, b = (_short(text, 40) for text in change.texts)
        line = (
            f"  {compared.names[change.outcome]}: {_short(change.question, 60)}  A {a!r}, B {b!r}"
        )
        right = f"  right: {_short(change.right, 50)}" if change.right else ""
        console.print(line + right, highlight=False, markup=False, soft_wrap=True)
    if len(flips) > TOLD:
        console.print(f"  and {len(flips) - TOLD} more; --out DIR writes them all")


def write_tables(compared: Compared, folder: Path) -> list[Path]:
    """``flips.csv``: every answer that changed; ``flips.json``: the same with head and counts."""
    changed = [change.to_dict() for change in compared.of("worse", "better", "text")]
    content = {
        "a": _run_json(compared.a),
        "b": _run_json(compared.b),
        "benchmark": compared.questions.benchmark.name,
        "split": compared.questions.files.split,
        "metric": compared.questions.benchmark.metric,
        "notes": compared.notes,
        "all": compared.everything.to_dict(),
        "types": {name: group.to_dict() for name, group in compared.types.items()},
        "difference": None if compared.interval is None else compared.interval.to_dict(),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
        "mcnemar": [
            {"seed_a": a, "seed_b": b, **test.to_dict()} for (a, b), test in compared.tests.items()
        ],
        "changed": changed,
    }
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in changed:
        writer.writerow({**row, "types": "; ".join(row["types"])})
    paths = [folder / "flips.csv", folder / "flips.json"]
    write_atomically(paths[0], sheet.getvalue())
    write_atomically(paths[1], json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return paths


def _run_json(run: Run) -> dict[str, Any]:
    wanted = ("method", "tokens", "mean_tokens", "score", "model", "dtype", "batch_size", "n")
    result = {name: run.result[name] for name in wanted if name in run.result}
    return {"path": str(run.path), "name": run.name, "seeds": list(run.seeds), **result}


def write_report(
    compared: Compared,
    folder: Path,
    drawn: Sequence[Drawn] = (),
    pictures: Mapping[int, str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """``report.md``.

    Args:
        drawn: changes that are shown at length.
        pictures: place among them -> file of the drawing, below ``folder``.
        notes: what could not be drawn.
    """
    lines = [f"# {plain(title_of(compared))}", ""]
    lines += [f"- {plain(line)}" for line in (*head_of(compared), *verdict(compared), *notes)]
    lines += ["", markdown(*_plain_table(*rows_of(compared)))]
    if drawn:
        lines += ["## Some of them, with the tokens that were kept", ""]
        for i, one in enumerate(drawn):
            lines += _entry(compared, i, one, (pictures or {}).get(i))
    changed = compared.of("worse", "better", "text")
    changed.sort(key=lambda change: OUTCOMES.index(change.outcome))
    lines += [f"## All that changed: {len(changed)}", ""]
    if changed:
        lines.append(markdown(*_plain_table(*_list(compared, changed[:LISTED]))))
    if len(changed) > LISTED:
        lines += [f"The first {LISTED}; flips.csv and flips.json have them all.", ""]
    path = folder / "report.md"
    write_atomically(path, "\n".join(lines))
    return path


def _entry(compared: Compared, i: int, one: Drawn, picture: str | None) -> list[str]:
    """A change at length: question, answers, what is right, drawing."""
    change = one.change
    known = [compared.names[change.outcome], *change.kinds]
    if change.seeds != (None, None):
        known.append("seeds " + " and ".join(str(s) for s in change.seeds if s is not None))
    about = change.sample.image or "no picture"
    head = [f"{', '.join(known)}; id {change.sample.question_id}, {about}"]
    rows = [
        [f"{letter} {run.name}", plain(text), "-" if score is None else f"{score:.2f}"]
        for letter, run, text, score in zip(
            "AB", (compared.a, compared.b), change.texts, change.scores or (None, None)
        )
    ]
    if change.right:
        rows.append(["right", plain(change.right), ""])
    lines = [f"### {i + 1}. {plain(change.question)}", "", plain(head[0]), ""]
    lines.append(markdown(["", "answer", "score"], rows))
    lines += [f"{plain(note)}\n" for note in one.notes]
    if picture is not None:
        lines += [f"![tokens kept by A and B]({picture})", ""]
    return lines


def _list(compared: Compared, changes: Sequence[Change]) -> tuple[list[str], list[list[str]]]:
    head = ["what", "id", "question", "A", "B", "right"]
    return head, [
        [
            compared.names[change.outcome],
            str(change.sample.question_id),
            change.question,
            *change.texts,
            change.right,
        ]
        for change in changes
    ]


def _plain_table(
    head: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    return [plain(cell) for cell in head], [[plain(cell) for cell in row] for row in rows]


def plain(text: str) -> str:
    """A text of any origin as one line of Markdown that shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", _short(text, LONGEST))


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."
