"""The picture of `analysis.scoring_comparison`: accuracy by budget, and differences to the text's
score, for each benchmark.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.plots import PAGE, figure, look_of, save
from llava.eval.tables.scores import ORACLE, SCORES
from llava.eval.tables.spec import FULL

if TYPE_CHECKING:
    import pandas as pd

TITLES = {**SCORES, ORACLE: "oracle"}
GAP = 0.075
"""Between the error bars of one budget, in budgets."""


def plot(table: pd.DataFrame, stem: Path) -> list[Path]:
    """Draw a table of `scoring_comparison.table_of` as `stem`.png and `stem`.pdf.

    Above, each benchmark's own score against the mean of visual tokens, one line a score, the
    unpruned model a horizontal line. Below, each score minus the last text token's at the same
    budget, with its paired 95 % interval; side by side within a budget.
    """
    names = list(dict.fromkeys(table["benchmark"]))
    pruned = table[table["score"] != FULL]
    budgets = sorted(pruned["asked"].unique())
    scores = [name for name in TITLES if (pruned["score"] == name).any()]
    place = {budget: at for at, budget in enumerate(budgets)}
    with figure(2, len(names), figsize=(PAGE, 4.1), squeeze=False, sharex=True) as (drawn, axes):
        for column, name in enumerate(names):
            own = table[table["benchmark"] == name]
            above, below = axes[0][column], axes[1][column]
            _accuracy(above, own, scores, place)
            _differences(below, own, scores, place)
            first = own.iloc[0]
            above.set_title(f"{first['title']} ({first['n']})")
            above.set_ylabel(first["metric"] + ", %" if column == 0 else first["metric"])
            below.set_xticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
            below.set_xlim(-0.5, len(budgets) - 0.5)
        axes[1][0].set_ylabel("minus last text token, points")
        drawn.supxlabel("visual tokens, mean over decoder layers", fontsize=8)
        handles: dict[str, Any] = {}
        for axis in axes.flat:
            handles |= {label: h for h, label in zip(*axis.get_legend_handles_labels())}
        drawn.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=4,
            handlelength=3.2, columnspacing=1.4,
        )  # fmt: skip
        return save(drawn, stem)


def _accuracy(axis: Any, own: Any, scores: list[str], place: dict[float, int]) -> None:
    full = own[own["score"] == FULL]
    if len(full):
        look = look_of(FULL)
        axis.axhline(
            full["accuracy"].iloc[0], color=look.color, linestyle=look.dash, label="all tokens"
        )
    for name in scores:
        line = own[own["score"] == name].sort_values("asked")
        look = look_of(name)
        axis.plot(
            [place[budget] for budget in line["asked"]], line["accuracy"],
            color=look.color, marker=look.marker, linestyle=look.dash, label=TITLES[name],
            markersize=6 if look.marker == "*" else 4,
        )  # fmt: skip


def _differences(axis: Any, own: Any, scores: list[str], place: dict[float, int]) -> None:
    look = look_of("text")
    axis.axhline(0, color=look.color, linewidth=0.9)
    others = [name for name in scores if name != "text"]
    for at, name in enumerate(others):
        line = own[(own["score"] == name) & own["difference"].notna()]
        look = look_of(name)
        middle = line["difference"]
        ends = [middle - line["difference_low"], line["difference_high"] - middle]
        where = [place[b] + GAP * 1.6 * (at - (len(others) - 1) / 2) for b in line["asked"]]
        axis.errorbar(
            where, middle, ends, color=look.color, marker=look.marker, linestyle="none",
            elinewidth=0.8, markersize=4.5 if look.marker == "*" else 3,
        )  # fmt: skip
