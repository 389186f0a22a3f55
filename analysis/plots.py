"""How figures look: fonts that read at a column's width, lines that are told apart without colour.

Colours are of Okabe and Ito's colour-blind safe set, in an order of rising lightness; every line
also has a marker and a dash of its own, every bar a hatch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["COLUMN", "HEAT", "PAGE", "Look", "fold_text", "figure", "look_of", "outline", "save"]

COLUMN, PAGE = 3.35, 7.0
"""Widths in inches of one column and of both of a two-column paper."""
HEAT = "Greys"
"""Colour map of scores over a picture: dark is much; it prints as it is seen."""


@dataclass(frozen=True)
class Look:
    """How one series is drawn."""

    color: str
    marker: str
    dash: Any
    hatch: str


_LOOKS = {
    "full": Look("0.35", "", (0, (1, 1)), ""),
    "last_text": Look("#D55E00", "s", "-", "//"),
    "all_text": Look("#E69F00", "D", "--", ".."),
    "visual": Look("black", "o", "-", ""),
    "visual_corrected": Look("#0072B2", "^", "-", "xx"),
    "visual_no_mask": Look("#56B4E9", "v", "--", "++"),
    "cls": Look("#009E73", "P", "-", "--"),
    "patches": Look("#CC79A7", "X", "--", "\\\\"),
    "random": Look("0.6", "<", ":", "oo"),
    "uniform": Look("0.6", ">", (0, (5, 2)), "**"),
    "oracle": Look("0.15", "*", (0, (3, 1, 1, 1)), "||"),
    "truth": Look("0.15", "*", (0, (3, 1, 1, 1)), "||"),
}
_LOOKS |= {"text": _LOOKS["last_text"], "visiondrop": _LOOKS["visual"]}
_OTHERS = [
    Look("#0072B2", "^", "-", "xx"),
    Look("#D55E00", "s", "--", "//"),
    Look("#009E73", "P", "-.", "--"),
    Look("#CC79A7", "X", (0, (3, 1, 1, 1)), "\\\\"),
    Look("#56B4E9", "v", ":", "++"),
    Look("#E69F00", "D", (0, (5, 1)), ".."),
    Look("0.45", "h", "--", "oo"),
    Look("0.2", "d", "-.", "**"),
]


def look_of(name: str, others: list[str] | None = None) -> Look:
    """The look of a score, control or method; others get one by their place in a list."""
    if name in _LOOKS:
        return _LOOKS[name]
    place = others.index(name) if others and name in others else sum(map(ord, name))
    return _OTHERS[place % len(_OTHERS)]


@contextmanager
def figure(*args: Any, **kwargs: Any) -> Iterator[Any]:
    """`(figure, axes)` of `matplotlib.pyplot.subplots` in this style, closed at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(
        context="paper",
        style="ticks",
        font="DejaVu Sans",
        rc={
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.frameon": False,
            "lines.linewidth": 1.3,
            "lines.markersize": 4,
            "axes.linewidth": 0.7,
            "pdf.fonttype": 42,
            "savefig.dpi": 200,
        },
    )
    kwargs.setdefault("constrained_layout", True)
    drawn, axes = plt.subplots(*args, **kwargs)
    try:
        yield drawn, axes
    finally:
        plt.close(drawn)


def save(drawn: Any, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.pdf, each whole or not at all; returns their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    out = []
    for kind in ("png", "pdf"):
        path = stem.with_name(f"{stem.name}.{kind}")
        part = stem.with_name(f".{stem.name}.{os.getpid()}.{kind}")
        # No date in the file: the same numbers make the same bytes.
        metadata = {"CreationDate": None} if kind == "pdf" else None
        drawn.savefig(part, metadata=metadata)
        os.replace(part, path)
        out.append(path)
    return out


def outline(axis: Any, patches: Any, grid: tuple[int, int], **style: Any) -> None:
    """Draw the border of a set of patch ids over a heat map of a (rows, columns) grid."""
    rows, columns = grid
    inside = set(map(int, patches))
    style = {"color": "#D55E00", "linewidth": 1.0, **style}
    for patch in inside:
        row, column = divmod(patch, columns)
        top, left = row - 0.5, column - 0.5
        edges = {
            patch - columns if row > 0 else -1: ((left, left + 1), (top, top)),
            patch + columns if row + 1 < rows else -2: ((left, left + 1), (top + 1, top + 1)),
            patch - 1 if column > 0 else -3: ((left, left), (top, top + 1)),
            patch + 1 if column + 1 < columns else -4: ((left + 1, left + 1), (top, top + 1)),
        }
        for neighbour, (x, y) in edges.items():
            if neighbour not in inside:
                axis.plot(x, y, **style)


def fold_text(text: str, width: int) -> str:
    """A title in lines of at most `width` characters."""
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
