"""The table in Markdown: scores, published numbers, what was not run, and all that is beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llava.eval.benchmarks.mmbench import MMBench
from llava.eval.comparing import describe, show_interval
from llava.eval.published import Figure, sources
from llava.eval.published import figures as all_figures
from llava.eval.table import markdown, notes
from llava.eval.tables.beside import find, meaning_of, ours, why_not_comparable
from llava.eval.tables.board import Answered, Board, Cell
from llava.eval.tables.figures import REFERENCE, Figures, blind
from llava.eval.tables.grid import Grid, Text, rows_of
from llava.eval.tables.spec import BLANK, FULL, Spec

MARKS = {"": "", "better": " ▲", "worse": " ▼"}


def cell_text(text: Text) -> str:
    """One cell: bold where it is surely best."""
    return (f"**{text.text}**" if text.best else text.text) + MARKS[text.mark]


def grid_text(grid: Grid) -> str:
    """A Markdown table for each group."""
    parts = []
    for name, rows in grid.groups:
        lines = [[cell_text(text) for text in row] for row in rows]
        parts.append(f"### {name}\n\n{markdown(grid.head, lines)}")
    return "\n".join(parts)


def show_p(p: float) -> str:
    """ "0.03", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def settings_line(column: Answered) -> str:
    """What a column's scores depend on."""
    results = [cell.result for cell in column.cells.values()]
    if not results:
        return f"{column.title}: {column.reason or 'nothing answered yet'}"

    def all_of(name: str) -> str:
        return " and ".join(dict.fromkeys(str(result[name]) for result in results))

    found = [r["versions"] for r in results]
    versions = ", ".join(
        f"{name} {' and '.join(dict.fromkeys(v[name] for v in found if name in v))}"
        for name in ("torch", "transformers", "visiondrop")
    )
    first = results[0]
    part = "all" if column.whole else "the first"
    return (
        f"{column.title}: {first['metric']}, split {first['split']}, {part} {first['n']} "
        f"{_asked(column)}, {len(set(column.pictures))} pictures; {all_of('model')}, batch "
        f"{all_of('batch_size')}, {all_of('dtype')}, {all_of('attn_implementation')} on "
        f"{all_of('device')}; {versions}"
    )


def _asked(column: Answered) -> str:
    """What is counted: questions; of MMBench rows, of which several are one question."""
    parts = next((cell.parts[0] for cell in column.cells.values() if cell.parts), None)
    if not isinstance(column.benchmark, MMBench) or parts is None:
        return "questions"
    return f"rows ({parts[:, 1].sum():.0f} questions with all their circular rows)"


def not_run(board: Board) -> list[str]:
    """Why cells are not there, each reason once."""
    lines = [f"{column.title}: {column.reason}" for column in board.missing]
    reasons: dict[str, list[str]] = {}
    for column in board.columns:
        for line in notes([*column.refused]):
            reasons.setdefault(line.removeprefix("not run: "), []).append(column.title)
        for line in notes([*column.failed]):
            reasons.setdefault("failed: " + line.removeprefix("not run: "), []).append(column.title)
    planned = sum(column.reason is None for column in board.columns)
    for reason, titles in reasons.items():
        where = "" if len(set(titles)) == planned > 1 else f" ({', '.join(dict.fromkeys(titles))})"
        lines.append(reason + where)
    return lines


def published_text(figure: Figure) -> str:
    """ "61.9 [copied]"; MME's perception alone says so."""
    part = " (perception)" if figure.benchmark == "MME_perception" else ""
    return f"{figure.value:g}{part} [{figure.source}]"


def published_cells(
    spec: Spec, board: Board, tokens: Sequence[int], methods: Sequence[str]
) -> dict[tuple[tuple[str, int | None], str], str]:
    """(row, benchmark) -> the published number with its source."""
    full = max(
        (f.tokens for f in all_figures() if f.model == spec.published_model and f.method == FULL),
        default=0,
    )
    out = {}
    for column in board.columns:
        for budget in (None, *tokens):
            for method in methods:
                if (budget is None) != (method == FULL):
                    continue
                figure = find(method, column.name, spec.published_model, budget or full)
                if figure is not None:
                    out[(method, budget), column.name] = published_text(figure)
    return out


def source_lines(names: Sequence[str]) -> list[str]:
    """What the sources are, and how far each is trusted."""
    return [
        f"{name} ({source.trust} trust): {source.what}"
        for name, source in sources().items()
        if name in names
    ]


def reading(board: Board, figures: Mapping[str, Figures]) -> str:
    """How to read the table of scores."""
    results = board.results
    pocket = any("pocket" in str(result["model"]) for result in results)
    unsure = blind(board, figures)
    counted = " in the papers' own count" if board.nominal else ""
    seeds = max((len(result.get("seeds", [])) for result in results), default=0)
    spread = f"±: sample standard deviation over {seeds} seeds. " if seeds > 1 else ""
    parts = [
        "tokens: true mean of visual tokens over decoder layers, measured; a group's name is what "
        f"was asked for{counted}. mean %: mean of the scores in percent of the full model's. "
        f"{spread}**Bold**: best at its budget, and "
        "surely: the 95 % interval of its difference to the second best leaves out 0. ▲ better, "
        f"▼ worse than {REFERENCE} at the same budget in the same sense. Intervals are paired "
        "bootstraps that draw whole pictures, and are not adjusted for their number: of twenty "
        "rows that are no different, one is expected to look so."
    ]
    if unsure:
        parts.append(
            f"In {', '.join(unsure)} the full model is not surely better than itself on blank "
            "pictures: there is nothing there that dropping tokens could lose."
        )
    if pocket:
        parts.append(
            "The scores are the bundled model's, on generated scenes: they say nothing about real "
            "pictures and reproduce nobody's number."
        )
    return " ".join(parts)


DETAIL_HEAD = [
    *("method", "asked", "tokens", "n", "score", "vs full", "McNemar p", f"vs {REFERENCE}"),
    *("relative", "published", "ours - published"),
]


def detail_row(
    spec: Spec, column: Answered, figures: Figures, cell: Cell, same_model: bool
) -> list[str]:
    """All that stands beside one score; ``DETAIL_HEAD`` names it."""
    key, result = cell.row.key, cell.result
    test, share = figures.tests.get(key), figures.relative.get(key)
    score = "-" if result["score"] is None else f"{result['score']:.2f}"
    if result.get("spread") is not None:
        score += f" ± {result['spread']:.2f}"
    shown, difference = "-", "-"
    figure = None
    if cell.row.label != BLANK:
        tokens = cell.row.tokens or round(result["mean_tokens"] or 0)
        figure = find(cell.row.label, column.name, spec.published_model, tokens)
    if figure is not None:
        shown = f"{published_text(figure)}, {meaning_of(figure).told}"
        if not (why := why_not_comparable(figure, result, column.whole, same_model)):
            mine = ours(figure, result)
            assert mine is not None
            difference = f"{mine - figure.value:+.1f}"
        else:
            difference = why
    return [
        cell.row.label,
        "-" if cell.row.tokens is None else str(cell.row.tokens),
        "-" if result["mean_tokens"] is None else f"{result['mean_tokens']:.1f}",
        str(result["n"]),
        score,
        show_interval(figures.against_full.get(key)),
        "-" if test is None else show_p(test.p),
        show_interval(figures.against_reference.get(key)),
        "-" if share is None else f"{share:.1f} %",
        shown,
        difference,
    ]


def details(spec: Spec, board: Board, figures: Mapping[str, Figures], same_model: bool) -> str:
    """Benchmark by benchmark: every score with all that stands beside it."""
    parts = [
        f"# {spec.title}: every cell\n",
        f"{describe(FULL)}; McNemar p: exact and two-sided, for scores of 0 and 1 and one seed, "
        "over questions (several on one picture are no independent draws: heed the interval). "
        "published: with its source and what it was measured on; a difference only where "
        "checkpoint, split, metric and budget are the same.\n",
    ]
    rows = rows_of(board)
    for column in board.columns:
        parts.append(f"## {column.title}\n\n{settings_line(column)}.\n")
        lines = [
            detail_row(spec, column, figures[column.name], column.cells[row.key], same_model)
            for row in rows
            if row.key in column.cells
        ]
        if lines:
            parts.append(markdown(DETAIL_HEAD, lines))
    return "\n".join(parts)
