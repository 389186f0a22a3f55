"""Figures of positional bias, drawn from the table of `analysis.positional_bias`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from analysis import plots
from analysis.position_readings import TOWER
from analysis.scores import SCORE_NAMES

__all__ = ["plot", "plot_methods"]

MAPS = ("last_text", "all_text", "visual", "visual_corrected", "cls", "truth")
CURVES = ("last_text", "all_text", "visual", "visual_corrected", "cls")
MOST = 4.0
"""Retention, as a multiple of uniform, that is drawn darkest."""


def plot(table: Any, stem: Path, grid: tuple[int, int] = (24, 24), layer: int | None = None) -> Any:
    """Heat maps of what scores keep, curves of attention by position, and both halves by layer.

    Args:
        table: of `positional_bias.compute`; stem: path without suffix.
        layer: decoder layer of maps and curves; by default the middle one of those measured.

    Returns: the paths written. Raises `ValueError` for a layer that was not measured.
    """
    scores = table[table["part"] == "scores"]
    layers = _layers(scores)
    chosen = layers[len(layers) // 2] if layer is None else layer
    if chosen not in layers:
        raise ValueError(f"layer {chosen} was not measured; there are {layers}")
    found = {name: _profile(scores, name, chosen, "kept_map") for name in MAPS}
    with plots.figure(figsize=(plots.PAGE, 3.3)) as (drawn, axis):
        axis.remove()
        left, right = drawn.subfigures(1, 2, width_ratios=(3.6, 3.4), wspace=0.03)
        _maps(left, {name: m for name, m in found.items() if m is not None}, grid, chosen)
        curve, halves = right.subplots(2, 1, height_ratios=(1.2, 1))
        _curves(curve, scores, chosen)
        _halves(halves, scores, layers)
        lines = [axis.get_legend_handles_labels() for axis in (curve, halves)]
        handles = [handle for own, _ in lines for handle in own]
        labels = [label for _, own in lines for label in own]
        right.legend(handles, labels, loc="outside upper center", ncols=2)
        return plots.save(drawn, stem)


def _layers(scores: Any) -> list[int]:
    return sorted({int(layer) for layer in scores["layer"] if layer not in ("", TOWER)})


def _profile(part: Any, name: str, layer: int | str, measure: str) -> np.ndarray | None:
    """[m], a profile of a score at a decoder layer, at the tower, or of what has no layer."""
    own = part[(part["name"] == name) & (part["measure"] == measure)]
    for which in (str(layer), TOWER, ""):
        at = own[own["layer"] == which]
        if len(at):
            return at.sort_values("at")["mean"].to_numpy(dtype=np.float64)
    return None


def _maps(figure: Any, maps: dict[str, np.ndarray], grid: tuple[int, int], layer: int) -> None:
    axes = figure.subplots(2, 3).ravel()
    for axis in axes[len(maps) :]:
        axis.remove()
    image = None
    for axis, (name, values) in zip(axes, maps.items(), strict=False):
        image = axis.imshow(values.reshape(grid), cmap=plots.HEAT, vmin=0, vmax=MOST)
        axis.set_title(SCORE_NAMES[name], fontsize=7)
        axis.set_xticks([])
        axis.set_yticks([])
    bar = figure.colorbar(
        image, ax=list(axes[: len(maps)]), location="bottom", fraction=0.05, pad=0.03, extend="max"
    )
    bar.set_label(f"kept, as a multiple of uniform (layer {layer})", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def _curves(axis: Any, scores: Any, layer: int) -> None:
    for name in (*CURVES, "uniform"):
        values = _profile(scores, name, layer, "by_position")
        if values is None:
            continue
        look = plots.look_of(name)
        label = "if attention were uniform" if name == "uniform" else SCORE_NAMES[name]
        axis.plot(
            (np.arange(len(values)) + 0.5) / len(values), values, label=label, color=look.color,
            linestyle=look.dash, marker=look.marker, markevery=4, markersize=3,
        )  # fmt: skip
    axis.axhline(1, color="0.7", linewidth=0.6, zorder=0)
    axis.set_yscale("log")
    axis.set_xlim(0, 1)
    axis.set_xlabel("place among the visual tokens")
    axis.set_ylabel(f"score / its mean\n(layer {layer})")


def _halves(axis: Any, scores: Any, layers: list[int]) -> None:
    low = scores[scores["measure"] == "kept_lower_half"]
    for name in CURVES:
        own = low[low["name"] == name]
        if not len(own):
            continue
        look = plots.look_of(name)
        if (own["layer"] == TOWER).all():  # one number, whatever the layer
            own = own.iloc[[0] * 2]
            x = [layers[0], layers[-1]]
        else:
            own = own.set_index(own["layer"].astype(int)).loc[layers]
            x = layers
        axis.errorbar(
            x, 100 * own["mean"], color=look.color, linestyle=look.dash, marker=look.marker,
            markersize=3, capsize=2, elinewidth=0.8,
            yerr=100 * np.abs(own[["low", "high"]].to_numpy().T - own["mean"].to_numpy()),
        )  # fmt: skip
    true = low[low["name"] == "truth"]["mean"]
    if len(true):
        look = plots.look_of("truth")
        axis.axhline(
            100 * true.iloc[0], color=look.color, linestyle=look.dash, linewidth=0.9,
            label=SCORE_NAMES["truth"],
        )  # fmt: skip
    axis.axhline(50, color="0.7", linewidth=0.6, zorder=0)
    axis.set_ylim(-5, 105)
    axis.set_yticks([0, 50, 100])
    axis.set_xticks(layers)
    axis.set_xlabel("decoder layer")
    axis.set_ylabel("kept in the\nlower half (%)")


def plot_methods(table: Any, stem: Path) -> list[Path]:
    """Retention by row of the picture for each method, beside the share kept in its lower half."""
    methods = table[table["part"] == "methods"]
    names = list(dict.fromkeys(methods["name"]))
    found = [_profile(methods, name, "", "kept_by_row") for name in names]
    rows = [row for row in found if row is not None]
    low = methods[methods["measure"] == "kept_lower_half"].set_index("name").loc[names]
    scores = table[table["part"] == "scores"]
    true = _profile(scores, "truth", "", "kept_by_row")
    if true is not None:
        names.append(SCORE_NAMES["truth"])
        rows.append(true)
        own = scores[(scores["name"] == "truth") & (scores["measure"] == "kept_lower_half")]
        import pandas as pd

        low = pd.concat([low, own.set_index("name")])
    height = 0.9 + 0.2 * len(names)
    with plots.figure(1, 2, figsize=(plots.PAGE, height), width_ratios=(1.6, 1), sharey=True) as (
        drawn,
        (left, right),
    ):
        image = left.imshow(np.stack(rows), cmap=plots.HEAT, vmin=0, vmax=2.5, aspect="auto")
        left.set_yticks(range(len(names)), [name.replace(":", ", ") for name in names])
        left.tick_params(left=False)
        left.set_xlabel("row of the picture, from the top")
        bar = drawn.colorbar(image, ax=left, extend="max", pad=0.02)
        bar.set_label("kept / uniform", fontsize=7)
        means = 100 * low["mean"].to_numpy()
        error = np.abs(100 * low[["low", "high"]].to_numpy().T - means)
        right.errorbar(
            means, range(len(names)), xerr=error, fmt="o", color="black", markersize=3.5,
            capsize=2, elinewidth=0.8,
        )  # fmt: skip
        right.tick_params(left=False)
        right.axvline(50, color="0.6", linewidth=0.8, linestyle=(0, (5, 2)))
        right.set_xlabel("kept in the lower half (%)")
        return plots.save(drawn, stem)
