"""Score against true mean tokens, in small multiples by the place where methods act.

Readable in grey: each panel's methods differ by marker and are named at their line's end;
VisionDrop, random and uniform are drawn in every panel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError
from llava.eval.tables.places import PLACES, place_of

SHOWN_EVERYWHERE = {  # label -> colour, line style
    "visiondrop": ("black", "-"),
    "random": ("0.6", "--"),
    "uniform": ("0.6", ":"),
}
MARKERS = "osD^vP*X<>"
LABEL_GAP = 0.045  # between the names at the lines' ends, as a share of the axis


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Places moved apart, in order, until neighbours are ``gap`` apart, as little as possible."""
    order = sorted(range(len(places)), key=places.__getitem__)
    # Pool neighbours that would overlap and centre each pool on its members' mean.
    pools: list[list[int]] = []
    for i in order:
        pools.append([i])
        while len(pools) > 1 and _low(pools[-1], places, gap) < _high(pools[-2], places, gap) + gap:
            last = pools.pop()
            pools[-1] += last
    out = [0.0] * len(places)
    for pool in pools:
        start = _low(pool, places, gap)
        for k, i in enumerate(pool):
            out[i] = start + k * gap
    return out


def _low(pool: Sequence[int], places: Sequence[float], gap: float) -> float:
    return sum(places[i] for i in pool) / len(pool) - gap * (len(pool) - 1) / 2


def _high(pool: Sequence[int], places: Sequence[float], gap: float) -> float:
    return _low(pool, places, gap) + gap * (len(pool) - 1)


Series = dict[str, dict[str, list[tuple[float, float]]]]
"""Place -> method -> (true mean tokens, score)."""


def series(results: Sequence[Mapping[str, Any]]) -> Series:
    """Place -> method -> (true mean tokens, score), rising in tokens; what drops nothing is left
    out."""
    return sorted_series(
        (place_of(result), result["label"], result["mean_tokens"], result["score"])
        for result in results
    )


def sorted_series(points: Iterable[tuple[str, str, float, float]]) -> Series:
    """From (place, method, tokens, score); see `series`."""
    out: Series = {place: {} for place in PLACES}
    for place, label, tokens, score in points:
        out[place].setdefault(label, []).append((tokens, score))
    out.pop("no token dropped")
    out["control"].pop("full", None)
    return {
        place: {label: sorted(points) for label, points in methods.items()}
        for place, methods in out.items()
    }


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """The results of one benchmark; see `draw`."""
    first = results[0]
    full = next((r["score"] for r in results if r["method"] == "full"), None)
    asked = sorted({r["tokens"] for r in results if r.get("budget")})
    title = f"{first['model']}, {first['n']} questions"
    return draw(series(results), full, asked, "TextVQA accuracy, %", title, path)


def draw(
    found: Series,
    full: float | None,
    asked: Sequence[int],
    what: str,
    title: str,
    path: Path,
) -> Path:
    """Draw it as a PNG; EvalError where nothing was dropped.

    Args:
        full: the unpruned model's score, a line in every panel.
        asked: the budgets, ticks of the axis.
        what: the scores' name and unit.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    lines = {label: points for methods in found.values() for label, points in methods.items()}
    if not lines:
        raise EvalError("no method here drops a token: nothing to plot")
    panels = [place for place, methods in found.items() if set(methods) - set(SHOWN_EVERYWHERE)]
    panels = panels or [next(place for place, methods in found.items() if methods)]
    sns.set_theme(style="whitegrid", context="paper", font="DejaVu Sans")
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.1 * len(panels) + 0.4, 5.2), sharey=True, squeeze=False
    )
    tokens = [x for points in lines.values() for x, _ in points]
    scores = [y for points in lines.values() for _, y in points] + ([full] if full else [])
    low, high = min(scores), max(scores)
    margin = 0.05 * (high - low) or 1.0
    for axis, place in zip(axes[0], panels, strict=True):
        axis.set_xscale("log", base=2)
        axis.set_ylim(low - margin, high + margin)
        axis.set_xlim(min(tokens) * 0.9, max(tokens) * 2.9)
        if full is not None:
            axis.axhline(full, color="0.3", linewidth=0.8)
            axis.text(min(tokens) * 0.95, full, "full", va="bottom", fontsize=8)
        names = []
        for label, (colour, style) in SHOWN_EVERYWHERE.items():
            if label in lines:
                axis.plot(*zip(*lines[label]), color=colour, linestyle=style, linewidth=2, zorder=2)
                names.append((label, lines[label][-1], colour))
        own = sorted(set(found[place]) - set(SHOWN_EVERYWHERE))
        greys = sns.color_palette("Greys", n_colors=len(own) + 4)[3:-1]
        for i, label in enumerate(own):
            axis.plot(
                *zip(*found[place][label]),
                color=greys[i],
                marker=MARKERS[i % len(MARKERS)],
                markeredgecolor="black",
                markersize=5.5,
                linewidth=0.9,
                zorder=3,
            )
            names.append((f"{label}", found[place][label][-1], "black"))
        gap = LABEL_GAP * (high - low + 2 * margin)
        heights = spread_out([y for _, (_, y), _ in names], gap)
        for (label, (x, y), colour), height in zip(names, heights, strict=True):
            marker = MARKERS[own.index(label) % len(MARKERS)] if label in own else ""
            axis.annotate(
                label,
                (x, y),
                (max(tokens) * 1.3, height),
                fontsize=8,
                va="center",
                color="black" if colour == "black" else "0.35",
                fontweight="bold" if label == "visiondrop" else "normal",
                arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6},
            )
            if marker:
                axis.plot(max(tokens) * 1.23, height, marker, color="white", mec="black", ms=4.5)
        axis.set_xticks(asked, [str(t) for t in asked])
        axis.minorticks_off()
        axis.set_title(place)
        axis.set_xlabel("visual tokens, true mean over decoder layers")
    axes[0][0].set_ylabel(what)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.stem + ".part.png")
    figure.savefig(part, dpi=150, metadata={"Software": None})
    plt.close(figure)
    part.replace(path)
    return path
