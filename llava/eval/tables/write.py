"""A table's files: Markdown, LaTeX, CSV and a plot, written anew after each benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from llava.eval.errors import EvalError
from llava.eval.files import write_atomically
from llava.eval.methods_plot import draw, sorted_series
from llava.eval.tables import text
from llava.eval.tables.board import Board
from llava.eval.tables.figures import Figures, figures_of, means
from llava.eval.tables.grid import published_grid, rows_of, scores_grid
from llava.eval.tables.latex import latex
from llava.eval.tables.sheet import sheet
from llava.eval.tables.spec import FULL, Spec
from visiondrop.methods import METHODS


@dataclass
class Writer:
    """Writes a table.

    Attributes:
        folder: where its files go.
        command: that makes it, as the files say.
        same_model: whether the checkpoint is the one that published numbers are about.
    """

    spec: Spec
    board: Board
    folder: Path
    command: str
    same_model: bool = False
    figures: dict[str, Figures] = field(default_factory=dict)

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.spec.name}{ending}"

    def update(self, names: Sequence[str] | None = None) -> list[Path]:
        """Compare anew in the columns ``names`` (all by default), and write the files."""
        for column in self.board.columns:
            if names is None or column.name in names or column.name not in self.figures:
                self.figures[column.name] = figures_of(column)
        plotted = self._plot()
        write_atomically(self.path(".md"), self.markdown(plotted is not None))
        details = text.details(self.spec, self.board, self.figures, self.same_model)
        write_atomically(self.path("_details.md"), f"{details}\nMade by `{self.command}`.\n")
        caption = f"{self.spec.title}. {text.reading(self.board, self.figures)}".replace("**", "")
        grid = scores_grid(self.board, self.figures)
        write_atomically(self.path(".tex"), latex(grid, caption, self.spec.name))
        write_atomically(
            self.path(".csv"), sheet(self.spec, self.board, self.figures, self.same_model)
        )
        paths = [self.path(ending) for ending in (".md", "_details.md", ".tex", ".csv")]
        return paths + ([plotted] if plotted else [])

    def markdown(self, plotted: bool = False) -> str:
        """The main file."""
        spec, board = self.spec, self.board
        name = self.path("").name
        parts = [f"# {spec.title}\n"]
        if plotted:
            parts.append(f"![mean share of the full model's score, against tokens]({name}.png)\n")
        if board.results:
            parts += [
                f"{text.reading(board, self.figures)}\n",
                f"Every cell with n, interval, McNemar's p and published number: "
                f"[{name}_details.md]({name}_details.md), and in the CSV.\n",
                "## Scores\n",
                text.grid_text(scores_grid(board, self.figures)),
            ]
        parts += self._published()
        if lines := text.not_run(board):
            parts += ["## Not run\n", "".join(f"- {line}\n" for line in lines)]
        parts += ["## Settings\n", *[f"- {text.settings_line(c)}" for c in board.columns], ""]
        return "\n".join([*parts, f"Made by `{self.command}`.\n"])

    def _published(self) -> list[str]:
        """Published numbers apart, with the model that they are about."""
        columns = self.board.columns
        methods = [FULL, *(name for name in METHODS if name != FULL)]
        cells = text.published_cells(self.spec, self.board, self.spec.tokens, methods)
        head = f"## Published numbers: {self.spec.published_model}\n"
        if not cells:
            return [head, "None in `llava/eval/published/published.csv`.\n"]
        grid = published_grid([c.name for c in columns], [c.title for c in columns], cells)
        named = {cell.split("[")[1].rstrip("]") for cell in cells.values()}
        apart = "" if self.same_model else "Another model than the one above. "
        return [
            head,
            f"{apart}Groups are the papers' own counts, which are no true means for methods that "
            "drop inside the LLM; what each number was measured on stands in the CSV.\n",
            text.grid_text(grid),
            "".join(f"- {line}\n" for line in text.source_lines(sorted(named))),
        ]

    def _plot(self) -> Path | None:
        """Mean share of the full model's score against true mean tokens; None without a point."""
        shares = means(self.board, self.figures)
        usable = sum(bool(f.relative) for f in self.figures.values())
        points = []
        for row in rows_of(self.board):
            share, tokens = shares.get(row.key), mean_tokens(self.board, row.key)
            complete = share is not None and share.benchmarks == usable
            if complete and tokens is not None and row.tokens is not None and not row.group:
                assert share is not None
                points.append((row.place, row.label, tokens, share.percent))
        if not points:
            return None
        found = [r for r in self.board.results if r.get("budget")]
        budgets = sorted({r["tokens"] for r in found})
        title = f"{found[0]['model']}, mean over {usable} benchmark{'s' * (usable > 1)}"
        what = "score, % of the full model's"
        try:
            return draw(sorted_series(points), 100.0, budgets, what, title, self.path(".png"))
        except EvalError:
            return None


def mean_tokens(board: Board, key: tuple[str, int | None]) -> float | None:
    """A row's true mean over the columns."""
    found = [c.cells[key].result["mean_tokens"] for c in board.columns if key in c.cells]
    known = [value for value in found if value is not None]
    return fmean(known) if known else None
