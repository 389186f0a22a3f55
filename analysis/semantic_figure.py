"""Figure 4: two questions on one picture, and what that looks like over all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import plots
from analysis.panels import Panel, draw_picture, outline_region, panels, show_panel
from analysis.probe import Probe
from analysis.scores import SCORE_NAMES, last_text
from analysis.semantic_walk import SCORES
from analysis.setting import Case, Setting, Unknown
from llava.eval.errors import EvalError

__all__ = ["Example", "choose_pair", "example", "plot"]


@dataclass(frozen=True)
class Example:
    """One picture with two questions.

    Attributes:
        cases: the two; image: the picture as the maps lie over it.
        layers: whose maps are shown.
        maps: [2][len(layers)], attention of the last text token over the picture.
    """

    cases: tuple[Case, Case]
    image: Any
    layers: tuple[int, ...]
    maps: list[list[Panel]]


def choose_pair(cases: Sequence[Case], picture: str | None = None) -> tuple[Case, Case]:
    """The two questions on a picture whose regions lie farthest from each other; of the first
    picture that has two with regions apart, unless one is named. Where nobody knows regions, the
    first two questions.

    Raises `EvalError` for a name that no picture has, `Unknown` where nothing can be chosen.
    """
    names = list(dict.fromkeys(case.picture for case in cases))
    if picture is not None and picture not in names:
        raise EvalError(f"no question is about {picture!r}; there are {', '.join(names[:6])} ...")
    for name in names if picture is None else [picture]:
        own = [case for case in cases if case.picture == name]
        pairs = [
            (a, b)
            for a, b in itertools.combinations(own, 2)
            if a.question != b.question and not set(a.region or ()) & set(b.region or ())
        ]
        if pairs:
            return max(pairs, key=_distance)
    raise Unknown("no picture here has two questions about regions that lie apart")


def _distance(pair: tuple[Case, Case]) -> float:
    middles = []
    for case in pair:
        if not case.region:
            return 0.0
        columns = case.grid[1] if case.grid else 24
        middles.append(np.mean([divmod(p, columns) for p in case.region], 0))
    return float(np.linalg.norm(middles[0] - middles[1]))


def example(setting: Setting, cases: tuple[Case, Case], layers: Sequence[int]) -> Example:
    """Read both prompts at some layers."""
    probe = Probe(tuple(layers), lambda view: {"last_text": last_text(view)})
    maps = []
    for look in setting.walk(probe, cases, label="two questions"):
        grid = setting.geometry.grid
        found = (panels(r.identity, r.values["last_text"], look.trace, grid) for r in look.readings)
        maps.append([own[-1] for own in found])  # of several tiles, the crops
    return Example(cases, setting.image(cases[0]), tuple(layers), maps)


def plot(table: pd.DataFrame, stem: Path, shown: Example | None = None) -> list[Path]:
    """The maps of an example above what the table says by layer."""
    heights = [2.7, 2.6] if shown else [2.6]
    with plots.figure(figsize=(plots.PAGE, sum(heights))) as (drawn, first):
        first.remove()
        parts = drawn.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if shown:
            _maps(parts[0].subplots(2, 1 + len(shown.layers)), shown)
        axes = parts[-1].subplots(1, 3)
        _found(axes[0], table)
        _same(axes[1], table)
        _mixing(axes[2], table)
        for axis in axes:
            axis.set_xlabel("decoder layer")
        return plots.save(drawn, stem)


def _maps(axes: Any, shown: Example) -> None:
    for row, case, maps in zip(axes, shown.cases, shown.maps):
        draw_picture(row[0], shown.image)
        outline_region(row[0], case, shown.image.size, color="white", linewidth=1.8)
        outline_region(row[0], case, shown.image.size, linewidth=0.8)
        row[0].set_ylabel(plots.fold_text(case.question, 20), fontsize=7)
        for axis, panel in zip(row[1:], maps):
            show_panel(axis, panel, shown.image.size)
            outline_region(axis, case, shown.image.size)
    for axis, layer in zip(axes[0, 1:], shown.layers):
        axis.set_title(f"layer {layer}")


def _line(axis: Any, table: pd.DataFrame, name: str, label: str) -> None:
    if not len(table):
        return
    look = plots.look_of(name)
    x = table["layer"].to_numpy(float)
    axis.plot(x, table["mean"], color=look.color, marker=look.marker, ls=look.dash, label=label)
    axis.fill_between(x, table["low"], table["high"], color=look.color, alpha=0.15, lw=0)


def _level(axis: Any, table: pd.DataFrame, name: str, label: str) -> None:
    look = plots.look_of(name)
    for value in table["mean"]:
        axis.axhline(value, color=look.color, ls=look.dash, lw=1, label=label)


def _where(table: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    for column, value in equal.items():
        table = table[table[column] == value]
    return table


def _found(axis: Any, table: pd.DataFrame) -> None:
    area = _where(table, part="overlap", measure="auc", kind="all")
    for score in SCORES:
        _line(axis, _where(area, score=score), score, SCORE_NAMES[score])
    _level(axis, _where(area, score="cls"), "cls", "CLS (tower)")
    _level(axis, _where(area, score="random"), "random", "random")
    axis.set(title="finds what is asked for", ylabel="area under ROC curve", ylim=(0.3, 1.02))
    _legend(axis)


def _same(axis: Any, table: pd.DataFrame) -> None:
    same = _where(table, part="questions", measure="same")
    kind = "apart" if (same["kind"] == "apart").any() else "all"
    same = _where(same, kind=kind)
    for score in SCORES[:3]:
        _line(axis, _where(same, score=score), score, SCORE_NAMES[score])
    _level(axis, _where(same, score="random"), "random", "random")
    axis.set(title="same for another question", ylabel="overlap (IoU)", ylim=(0, 1.05))
    _legend(axis)


_MIXING = {
    ("cka", "asked", "text"): ("visual_corrected", "CKA: asked patches, text"),
    ("cka", "rest", "text"): ("visual_no_mask", "CKA: other patches, text"),
    ("moved", "grey", "last"): ("last_text", "last token, moved by picture"),
    ("reader", "object", "all"): ("cls", "ROC area: shows an object"),
    ("reader", "asked", "all"): ("patches", "ROC area: is asked for"),
    ("reader", "asked_with_text", "all"): ("all_text", "the same, with question"),
}


def _mixing(axis: Any, table: pd.DataFrame) -> None:
    mixing = _where(table, part="mixing")
    for (measure, score, kind), (look, label) in _MIXING.items():
        _line(axis, _where(mixing, measure=measure, score=score, kind=kind), look, label)
    axis.set(title="text and picture in states", ylim=(-0.12, 1.05))
    _legend(axis)


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[1]:
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.45, -0.28), handlelength=2.4, labelspacing=0.25
        )
