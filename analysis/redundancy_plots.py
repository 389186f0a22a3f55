"""Figures of redundancy by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis import plots
from analysis.scores import SCORE_NAMES
from analysis.spatial_plots import look_of_method, name_of_method

__all__ = ["name_of_set", "plot"]

STYLES = {
    "dims_90": ("dimensions, 90 %", "black", "o", "-"),
    "dims_99": ("dimensions, 99 %", "0.45", "s", "--"),
    "entropy": ("effective rank (entropy)", "#009E73", "P", "-."),
    "participation": ("participation ratio", "#CC79A7", "X", ":"),
    "needed": ("best tokens, 90 %", "#0072B2", "^", "-"),
    "needed_random": ("random tokens, 90 %", "#56B4E9", "v", "--"),
}


def name_of_set(name: str) -> str:
    """Name of a kept set, as tables and figures write it."""
    return f"best by {SCORE_NAMES[name[4:]]}" if name.startswith("top ") else name_of_method(name)


def look(name: str) -> plots.Look:
    """Look of a kept set."""
    return plots.look_of(name[4:]) if name.startswith("top ") else look_of_method(name)


def ranks(axis: Any, tables: Mapping[str, Any]) -> None:
    """Dimensions and tokens needed, beside what VisionDrop sees."""
    rank = tables["rank"]
    for name, (label, color, marker, dash) in STYLES.items():
        axis.plot(rank["layer"], rank[name], color=color, marker=marker, linestyle=dash,
                  label=label)  # fmt: skip
    own = tables["sets"].query("set == 'visiondrop'").sort_values("layer")
    if len(own):
        axis.step(own["layer"], own["kept"], where="mid", color="#D55E00", linewidth=2,
                  label="VisionDrop sees")  # fmt: skip
    axis.set_yscale("log", base=2)
    top = max(rank["needed_random"].max(), rank["dims_99"].max())
    ticks = [t for t in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if t <= 2 * top]
    axis.set_yticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.set_ylabel("dimensions, tokens")
    axis.set_title("(a) what the states fill", loc="left")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, handlelength=2.2)


def curves(axis: Any, table: Any, what: str, label: str, mark: str) -> list[Any]:
    """One measure of kept sets by layer."""
    for name in dict.fromkeys(table["set"]):
        part = table[table["set"] == name].sort_values("layer")
        title, style = name_of_set(name), look(name)
        axis.plot(part["layer"], part[what], color=style.color, marker=style.marker,
                  linestyle=(0, (4, 1.5)) if name.startswith("top ") else style.dash,
                  markerfacecolor="white" if name.startswith("top ") else style.color,
                  label=title)  # fmt: skip
    own = table[table["set"] == "visiondrop"].sort_values("layer")
    if len(own) and f"{what}_random" in own:
        axis.plot(own["layer"], own[f"{what}_random"], color="black", linewidth=0.8,
                  linestyle=(0, (1, 2)), label="as many as VisionDrop, random")  # fmt: skip
    axis.set_ylabel(label)
    axis.set_ylim(0, None)
    axis.set_title(mark, loc="left")
    return list(axis.get_legend_handles_labels())


def overlaps(axis: Any, rank: Any) -> None:
    """How far the nearest neighbours stay the same."""
    later = rank[rank["layer"] > rank["layer"].min()]
    for what, label, color, marker, dash in (
        ("overlap_before", "with the layer before", "black", "o", "-"),
        ("overlap_first", "with the first layer", "#0072B2", "^", "--"),
    ):
        axis.plot(later["layer"], later[what], color=color, marker=marker, linestyle=dash,
                  label=label)  # fmt: skip
    axis.plot(later["layer"], later["overlap_chance"], color="0.3", linewidth=0.8,
              linestyle=(0, (1, 2)), label="chance")  # fmt: skip
    axis.set_ylim(0, 1)
    axis.set_ylabel("overlap of nearest neighbours")
    axis.set_title("(d) which states are alike", loc="left")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def plot(tables: Mapping[str, Any], stem: Path) -> list[Path]:
    """Effective rank, what kept sets lose, and neighbours, by layer.

    Args:
        tables: of `redundancy.summaries`.
        stem: path without suffix.
    """
    with plots.figure(2, 2, figsize=(plots.PAGE, 6.2)) as (drawn, axes):
        ranks(axes[0, 0], tables)
        handles, labels = curves(
            axes[0, 1], tables["sets"], "error", "variance of dropped states lost",
            "(b) outside the span of kept states",
        )  # fmt: skip
        axes[0, 1].legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
        curves(
            axes[1, 0], tables["sets"], "cosine", "1 - cosine to the nearest kept",
            "(c) distance to the nearest kept state",
        )  # fmt: skip
        overlaps(axes[1, 1], tables["rank"])
        for axis in axes.flat:
            axis.set_xlabel("before decoder layer")
        return plots.save(drawn, stem)
