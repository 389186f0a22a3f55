"""LaTeX with booktabs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llava.eval.tables.grid import Grid, Text

SPECIAL: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "▲": r"$\uparrow$",
    "▼": r"$\downarrow$",
}
_PATTERN = re.compile("|".join(map(re.escape, SPECIAL)))
MARKS = {"": "", "better": r"$\uparrow$", "worse": r"$\downarrow$"}


def escape(text: str) -> str:
    """Text as LaTeX prints it; characters that plain LaTeX does not know become "?"."""
    out = _PATTERN.sub(lambda found: SPECIAL[found.group()], text)
    return "".join(c if c.isascii() else "?" for c in out)


def cell(text: Text) -> str:
    """One cell: bold where it is surely best."""
    made = escape(text.text)
    return (rf"\textbf{{{made}}}" if text.best else made) + MARKS[text.mark]


def latex(grid: Grid, caption: str, label: str, texts: int = 2) -> str:
    """A ``table*``, shrunk to the page's width; needs the packages booktabs and graphicx.

    Args:
        texts: columns at the left that hold words.
    """
    width = len(grid.head)
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9:-]', '-', label)}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * texts}{'r' * (width - texts)}}}",
        r"\toprule",
        " & ".join(map(escape, grid.head)) + r" \\",
    ]
    for name, rows in grid.groups:
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{c}}{{\textit{{{escape(name)}}}}} \\"]
        lines += [" & ".join(map(cell, row)) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}"]
    return "\n".join(lines) + "\n"
