"""Figures of where kept tokens lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis import plots
from visiondrop.methods import METHODS

__all__ = ["look_of_method", "name_of_method", "plot"]

_OTHERS = ["", "fastv", "pyramiddrop", "visionzip", "sparsevlm", "divprune"]
ALIASES = {"visiondrop+causal=expectation": "visual_corrected"}
NAMES = {"visiondrop+causal=expectation": "VisionDrop, corrected", "oracle": "oracle"}


def name_of_method(method: str) -> str:
    """As papers write it."""
    if method in NAMES:
        return NAMES[method]
    base, plus, fields = method.partition("+")
    title = METHODS[base].title or base if base in METHODS else base
    return f"{title}, {fields}" if plus else title


def look_of_method(method: str) -> plots.Look:
    """The same in every figure."""
    return plots.look_of(ALIASES.get(method, method), _OTHERS)


def ordered(table: Any) -> list[str]:
    """Methods in the order of a table."""
    return list(dict.fromkeys(table["method"]))


def line(axis: Any, part: Any, x: str, y: str, method: str) -> None:
    """One method over budgets."""
    look = look_of_method(method)
    part = part.sort_values(x)
    axis.plot(
        part[x], part[y], color=look.color, marker=look.marker, linestyle=look.dash,
        label=name_of_method(method),
    )  # fmt: skip


def budgets_on(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with the budgets written at it."""
    axis.set_xscale("log", base=2)
    ticks = sorted(set(values))
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def recall_over_budget(axis: Any, table: Any) -> None:
    """Recall of unnamed regions in relation questions, averaged over the layers."""
    part = table.query("group == 'relation' and place == 'layers'")
    if not len(part):
        part = table.query("group == 'all' and place == 'layers'")
    for method in ordered(part):
        line(axis, part[part["method"] == method], "budget", "unnamed", method)
    chance = part[part["method"] == "random"].sort_values("budget")
    axis.plot(
        chance["budget"], chance["unnamed_chance"], color="black", linewidth=0.8,
        linestyle=(0, (1, 2)), label="chance",
    )  # fmt: skip
    budgets_on(axis, part["budget"])
    axis.set_xlabel("visual tokens, mean over layers")
    axis.set_ylabel("recall of unnamed regions")
    axis.set_ylim(0, None)
    axis.set_title("(a) needed, not named: relations", loc="left")


def named_beside_unnamed(axis: Any, table: Any, budget: int) -> None:
    """Named and unnamed regions of one question side by side."""
    part = table.query("group == 'relation' and place == 'layers' and budget == @budget")
    if not len(part):
        part = table.query("group == 'all' and place == 'layers' and budget == @budget")
    part = part[part["method"] != "oracle"]  # 1 by construction
    at = np.arange(len(part))
    for shift, what, face, hatch in ((-0.2, "named", "0.75", ""), (0.2, "unnamed", "1", "////")):
        values = part[what].to_numpy()
        ends = np.abs(part[[f"{what}_low", f"{what}_high"]].to_numpy().T - values)
        axis.barh(
            at + shift, values, 0.38, xerr=ends, color=face, hatch=hatch, edgecolor="black",
            linewidth=0.6, label=what, error_kw={"linewidth": 0.7, "ecolor": "0.25"},
        )  # fmt: skip
    axis.scatter(
        part["unnamed_chance"], at, marker="|", s=90, color="#D55E00", label="chance", zorder=4
    )
    axis.set_yticks(at, [name_of_method(method) for method in part["method"]])
    axis.invert_yaxis()
    axis.set_xlabel("recall, mean over layers")
    axis.set_xlim(0, 1.0)
    axis.set_title(f"(b) named beside unnamed, {budget} tokens", loc="left")
    axis.legend(loc="lower right", handlelength=1.4)


def distance_over_tokens(axis: Any, table: Any, what: str, label: str, mark: str) -> None:
    """Coverage of the last layers' tokens, over how many they are."""
    part = table.query("place == 'last'")
    part = part[part["patches"] > 0]
    for method in ordered(part):
        line(axis, part[part["method"] == method], "patches", what, method)
    even = part[(part["patches"] >= 1)].sort_values("patches")
    axis.plot(
        even["patches"], even[f"{what}_lattice"], color="black", linewidth=0.8, linestyle="-",
        label="lattice",
    )  # fmt: skip
    axis.set_xscale("log", base=2)
    least, most = even["patches"].min() / 1.5, even["patches"].max() * 1.5
    ticks = [t for t in (1, 4, 16, 64, 256, 1024) if least <= t <= most]
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("tokens kept in the last layers")
    axis.set_ylabel(label)
    axis.set_ylim(0, None)
    axis.set_title(mark, loc="left")


def halves(axis: Any, table: Any, budget: int, mark: str) -> None:
    """Mean distance in the upper and the lower half."""
    part = table.query("place == 'last' and budget == @budget")
    part = part[part["method"] != "oracle"]
    at = np.arange(len(part))
    upper, lower = part["upper"].to_numpy(), part["lower"].to_numpy()
    axis.hlines(at, np.minimum(upper, lower), np.maximum(upper, lower), color="0.6", zorder=1)
    axis.scatter(upper, at, marker="^", s=22, facecolor="white", edgecolor="black",
                 label="upper half", zorder=3)  # fmt: skip
    axis.scatter(lower, at, marker="v", s=22, color="black", label="lower half", zorder=2)
    axis.scatter(part["mean_random"], at, marker="|", s=90, color="#D55E00",
                 label="as many at random", zorder=4)  # fmt: skip
    axis.set_yticks(at, [name_of_method(method) for method in part["method"]])
    axis.invert_yaxis()
    axis.set_xlim(0, None)
    axis.set_xlabel("mean distance to a kept token, last layers")
    axis.set_title(f"{mark} upper and lower half, {budget} tokens", loc="left")
    axis.legend(loc="best", handletextpad=0.2)


def plot(tables: Mapping[str, Any], stem: Path) -> list[Path]:
    """Recall by budget and beside what is named, distances and halves; without recall, the largest
    hole in its place.

    Args:
        tables: of `spatial_misalignment.summaries`.
        stem: path without suffix.
    """
    cover = tables["coverage"]
    budgets = sorted(set(cover["budget"]))
    budget = 64 if 64 in budgets else budgets[len(budgets) // 2]
    with plots.figure(2, 2, figsize=(plots.PAGE, 5.4)) as (drawn, axes):
        if "recall" in tables:
            recall_over_budget(axes[0, 0], tables["recall"])
            named_beside_unnamed(axes[0, 1], tables["recall"], budget)
        else:
            distance_over_tokens(axes[0, 0], cover, "hole", "side of the largest hole", "(a) holes")
            distance_over_tokens(axes[0, 1], cover, "far", "farthest distance", "(b) far corners")
        distance_over_tokens(
            axes[1, 0], cover, "mean", "mean distance to a kept token", "(c) coverage"
        )
        halves(axes[1, 1], cover, budget, "(d)")
        found: dict[str, Any] = {}
        for axis in (axes[0, 0], axes[1, 0]):
            handles, labels = axis.get_legend_handles_labels()
            found |= dict(zip(labels, handles, strict=True))
        drawn.legend(found.values(), found.keys(), loc="outside lower center", ncols=5)
        return plots.save(drawn, stem)
