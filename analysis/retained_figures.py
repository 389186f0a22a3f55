"""Sheets of retained tokens: stages of methods on pictures, and grids of methods and budgets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis import plots
from analysis.retained_drawing import draw_panel, legend, panel_size
from analysis.retained_geometry import CROPS, kept_tokens
from analysis.retained_looks import Asked, Planned
from analysis.setting import Case
from visiondrop.show import ledger_text

__all__ = ["grid_figure", "stages_figure"]

MOST_ROWS, MOST_COLUMNS = 3, 8
"""With more methods than rows a grid has two blocks beside each other, if they are not too wide."""


def short(text: str, length: int = 44) -> str:
    """A text cut to a length."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def heading(asked: Asked) -> str:
    """Question and answers, as a row's title."""
    case = asked.shown.case
    return headline(case, asked.shown.full, {asked.planned.title: asked.answer})


def headline(case: Case, full: str, answers: Mapping[str, str]) -> str:
    """A question with the answers of methods, the unpruned model and the data, where known."""
    known = {"all tokens": full, "right": case.answer}
    told = {**answers, **{name: answer for name, answer in known.items() if answer}}
    parts = [f"{name}: “{short(answer, 20)}”" for name, answer in told.items()]
    return "   ".join([short(case.question), *parts])


def stages_figure(looks: Sequence[Asked], stem: Path) -> list[Path]:
    """A row for each method on each picture: the picture, then what is kept after each stage."""
    columns = 1 + max(len(one.stages) for one in looks)
    width = min(plots.PAGE, 1.4 * columns)
    shapes = [panel_size(list(one.boxes), one.shown.image.size) for one in looks]
    heights = [0.27 + width / columns * min(2.0, h / w) for w, h in shapes]
    size = (width, sum(heights) + 0.3)
    with plots.figure(1, 1, figsize=size) as (drawn, only):
        only.remove()
        rows = drawn.subfigures(len(looks), 1, height_ratios=heights, squeeze=False)[:, 0]
        for row, one in zip(rows, looks, strict=True):
            row.suptitle(heading(one), fontsize=8, x=0.01, ha="left")
            axes = row.subplots(1, columns, squeeze=False)[0]
            views = list(one.boxes)
            draw_panel(axes[0], one.shown.image, None, one.shown.squares, views)
            axes[0].set_xlabel(f"{sum(map(len, one.boxes.values()))} patches", fontsize=7)
            for axis, stage in zip(axes[1:], one.stages, strict=False):
                draw_panel(axis, one.shown.image, stage, one.shown.squares, views)
                axis.set_xlabel(f"{stage.name}: {stage.tokens} tokens", fontsize=7)
            for axis in axes[1 + len(one.stages) :]:
                axis.set_axis_off()
        legend(drawn, any(one.shown.squares for one in looks), merges(looks))
        return plots.save(drawn, stem)


def merges(looks: Sequence[Asked]) -> bool:
    """Whether anything was absorbed."""
    return any(stage.links() for one in looks for stage in one.stages)


def grid_figure(
    looks: Sequence[Asked], planned: Sequence[Planned], stem: Path, joins: bool = False
) -> list[Path]:
    """Methods (rows) and budgets (columns) on each picture: what is kept at the end.

    Below each panel: visual tokens after the last stage, and the share of the region's patches that
    is kept, where a region is known. What cannot be says why. Lines from absorbed patches to what
    stands for them hide small panels: `joins` draws them.
    """
    labels = list(dict.fromkeys(one.label for one in planned))
    # A method without a budget stands in the first column.
    budgets: list[int | None] = list(dict.fromkeys(o.tokens for o in planned if o.tokens)) or [None]
    blocks = 2 if len(labels) > MOST_ROWS and 2 * len(budgets) <= MOST_COLUMNS else 1
    rows = -(-len(labels) // blocks)
    columns = blocks * len(budgets)
    pictures = list(dict.fromkeys(one.shown.case.sample.key for one in looks))
    firsts = {key: next(o for o in looks if o.shown.case.sample.key == key) for key in pictures}
    side = min(1.5, (plots.PAGE - 0.2 * blocks) / columns)
    shapes = [panel_size(list(o.boxes), o.shown.image.size) for o in firsts.values()]
    lines = 0.17 + 0.22 * any(CROPS in one.boxes for one in looks)
    heights = [0.35 + rows * (lines + side * min(2.0, h / w)) for w, h in shapes]
    size = (max(plots.COLUMN, side * columns + 0.2 * blocks), sum(heights) + 0.45)
    with plots.figure(1, 1, figsize=size) as (drawn, only):
        only.remove()
        parts = drawn.subfigures(len(pictures), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, shape, (key, first) in zip(parts, shapes, firsts.items(), strict=True):
            case = first.shown.case
            part.suptitle(headline(case, first.shown.full, {}), fontsize=8, x=0.01, ha="left")
            axes = part.subplots(rows, columns, squeeze=False)
            own = {
                (o.planned.label, o.planned.tokens): o
                for o in looks
                if o.shown.case.sample.key == key
            }
            for place in range(rows * blocks):
                block, row = divmod(place, rows)
                line = axes[row, block * len(budgets) : (block + 1) * len(budgets)]
                if place >= len(labels):
                    for axis in line:
                        axis.set_axis_off()
                    continue
                _row(line, labels[place], budgets, own, planned, shape, row == 0, joins)
        region = any(o.shown.squares for o in looks)
        note = "below each: visual tokens after the last stage"
        note += ", and how much of what is asked for is kept" * region
        tiled = any(CROPS in one.boxes for one in looks)
        note += "; large: the crops, small: the thumbnail" * tiled
        legend(drawn, region, merges_at_end(looks), note, joins)
        return plots.save(drawn, stem)


def merges_at_end(looks: Sequence[Asked]) -> bool:
    """Whether anything was absorbed in what a grid shows."""
    return any(one.stages[-1].links() for one in looks)


def _row(
    axes: Sequence[Any],
    label: str,
    budgets: Sequence[int | None],
    own: dict[tuple[str, int | None], Asked],
    planned: Sequence[Planned],
    shape: tuple[float, float],
    top: bool,
    joins: bool,
) -> None:
    plans = {one.tokens: one for one in planned if one.label == label}
    for i, (axis, asked) in enumerate(zip(axes, budgets, strict=True)):
        budget = None if i == 0 and None in plans else asked
        one = own.get((label, budget))
        if one is None:
            axis.set(xticks=[], yticks=[])
            axis.set_box_aspect(shape[1] / shape[0])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if budget in plans:
                axis.text(
                    0.5, 0.5, reason_text(plans[budget].reason), fontsize=7, ha="center",
                    va="center", transform=axis.transAxes,
                )  # fmt: skip
        else:
            views = list(one.boxes)
            draw_panel(axis, one.shown.image, one.stages[-1], one.shown.squares, views, joins)
            axis.set_xlabel(panel_text(one), fontsize=7, labelpad=2)
        if top and asked is not None:
            axis.set_title(f"{asked} tokens", fontsize=8)
        if i == 0:
            title = next(iter(plans.values())).title.replace(", ", "\n")
            axis.set_ylabel(title, fontsize=7)


def panel_text(one: Asked) -> str:
    """Tokens at the end, and the share of the region that is kept."""
    last = one.stages[-1]
    share = one.share(last)
    text = f"{last.tokens}" if np.isnan(share) else f"{last.tokens}, {100 * share:.0f} %"
    if CROPS not in one.boxes:
        return text
    kept = kept_tokens(last)
    views = (f"{len(kept & own.keys())} {view}" for view, own in one.boxes.items())
    return "\n".join([text, *views])


def reason_text(reason: str) -> str:
    """Why a cell is empty, in two or three short lines."""
    found = re.search(r"least is ([\d.]*\d)", reason)
    return f"least is\n{found.group(1)}" if found else "cannot\nrun here"


def describe(looks: Sequence[Asked]) -> list[dict[str, Any]]:
    """Each panel for JSON."""
    return [
        {
            "picture": one.shown.case.picture,
            "question": one.shown.case.question,
            "right": one.shown.case.answer,
            "answer": one.answer,
            "answer_of_full": one.shown.full,
            "method": one.planned.method.to_dict() if one.planned.method else None,
            "label": one.planned.label,
            "asked": one.planned.tokens,
            "mean_tokens": one.sample.mean_tokens,
            "ledger": ledger_text(one.sample),
        }
        for one in looks
    ]
