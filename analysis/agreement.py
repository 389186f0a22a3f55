"""How far methods keep the same patches: intersection over union, beside what chance gives.

Two sets are compared where they are made: the patches that stand for themselves at the end, after
the last stage, and the same decoder layer by decoder layer, averaged. Sets of different sizes
cannot agree wholly; `most` is the largest value that their sizes allow. Chance takes any patch as
likely as another: of pictures in tiles, which get shares by importance, even random sets agree a
little more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

from analysis import plots, report
from analysis.overlap import expected_iou
from analysis.retained_geometry import (
    kept_tokens,
    region_share,
    region_squares,
    retained,
    token_boxes,
)
from analysis.retained_looks import Planned
from analysis.setting import Case, Look, Setting
from llava.eval.errors import EvalError
from llava.eval.truth import SIDE as SQUARE

__all__ = ["KeptSets", "agree", "chance_iou", "compute", "coverage", "findings", "iou", "plot"]

AT = {"end": "kept at the end", "layers": "mean over decoder layers"}
"""What is compared."""

DARK = 60
"""Per cent from which on numbers are white."""

Entries = tuple[tuple[int, frozenset[int]], ...]


@dataclass(frozen=True)
class KeptSets:
    """What one method keeps of one picture.

    Attributes:
        sets: (first decoder layer that sees it, patches), by rising layer from 0.
        layers: of the decoder.
        total: patches of the unpruned picture.
        region: share of the region's patches that is kept at the end; NaN where unknown.
    """

    sets: Entries
    layers: int
    total: int
    region: float = float("nan")

    @property
    def end(self) -> frozenset[int]:
        """Patches that the last layer sees."""
        return self.sets[-1][1]


def iou(a: frozenset[int], b: frozenset[int]) -> float:
    """|a and b| / |a or b|; 1 of two empty sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


def chance_iou(a: int, b: int, total: int) -> float:
    """The mean of `iou` over random sets of `a` and `b` out of `total` patches.

    Their intersection is hypergeometric. Raises `ValueError` for sets larger than that.
    """
    if not 0 <= min(a, b) <= max(a, b) <= total:
        raise ValueError(f"sets of {a} and {b} patches out of {total}")
    return expected_iou(a, b, total) if a or b else 1.0


def agree(a: KeptSets, b: KeptSets) -> dict[str, tuple[float, float, float]]:
    """(iou, what chance gives, the most that the sizes allow) at the end and over layers."""
    out = {"end": _triple(a.end, b.end, a.total)}
    starts = sorted({first for first, _ in (*a.sets, *b.sets)} | {a.layers})
    triples, lengths = [], []
    for first, after in zip(starts, starts[1:], strict=False):
        triples.append(_triple(_at(a.sets, first), _at(b.sets, first), a.total))
        lengths.append(after - first)
    mean = np.average(np.array(triples), axis=0, weights=lengths)
    return {**out, "layers": (float(mean[0]), float(mean[1]), float(mean[2]))}


def _at(sets: Entries, layer: int) -> frozenset[int]:
    return [kept for first, kept in sets if first <= layer][-1]


def _triple(a: frozenset[int], b: frozenset[int], total: int) -> tuple[float, float, float]:
    most = min(len(a), len(b)) / max(len(a), len(b), 1) if a or b else 1.0
    return iou(a, b), chance_iou(len(a), len(b), total), most


def kept_sets(look: Look, setting: Setting, original: tuple[int, int]) -> KeptSets:
    """What a method kept of a picture of (width, height), from its trace."""
    sample, case = look.trace, look.case
    tiled = any(sample.grids)
    rows, columns = setting.geometry.grid
    size = original if tiled else (columns * SQUARE, rows * SQUARE)
    boxes = token_boxes(sample, (rows, columns), size)
    every = {token for own in boxes.values() for token in own}
    squares = region_squares(case.region or (), original, size, tiled)
    stages = retained(sample, boxes)
    if not sample.stages:
        seen = frozenset(every)
        return KeptSets(((0, seen),), setting.layers, len(seen))
    # What came in is all there was: patches that show padding alone do not count.
    came = frozenset(sample.stages[0].identity.tolist()) & every
    sets: dict[int, frozenset[int]] = {0: came}
    for stage, drawn in zip(sample.stages, stages, strict=True):
        sets[stage.layer or 0] = kept_tokens(drawn)
    share = region_share([p for p in stages[-1].patches if p.token in came], squares)
    return KeptSets(tuple(sorted(sets.items())), setting.layers, len(came), share)


def read(setting: Setting, planned: Planned, cases: Sequence[Case]) -> list[KeptSets]:
    """What a method keeps in each case, in order."""
    assert planned.method is not None
    sizes: dict[str, tuple[int, int]] = {}
    out = []
    for look in setting.walk(planned.method, cases, label=planned.label):
        name = look.case.picture
        if name not in sizes:
            sizes[name] = setting.dataset([look.case])[0].image_size or (0, 0)
        out.append(kept_sets(look, setting, sizes[name]))
    return out


def compute(setting: Setting, planned: Sequence[Planned], cases: Sequence[Case]) -> Any:
    """Every pair of methods: a pandas table with 95 % intervals over pictures.

    Columns: a, b, tokens, at ("end" or "layers"), iou, low, high, chance, most, above (iou minus
    chance), above_low, above_high, n (questions), pictures.

    Raises `EvalError` where fewer than two methods can be.
    """
    return tables(setting, planned, cases)[0]


def coverage(setting: Setting, planned: Sequence[Planned], cases: Sequence[Case]) -> Any:
    """Every method: how much of what the question asks for it keeps at the end.

    Columns: method, tokens, kept (patches at the end), region (share kept), low, high, chance (the
    share of all patches that is kept), n, pictures.
    """
    return tables(setting, planned, cases)[1]


def tables(setting: Setting, planned: Sequence[Planned], cases: Sequence[Case]) -> tuple[Any, Any]:
    """`compute` and `coverage` from one walk."""
    import pandas as pd

    can = [one for one in planned if one.method is not None]
    if len(can) < 2:
        raise EvalError("agreement needs two methods that run here at the budget; give more")
    found = {(one.label, one.tokens): read(setting, one, cases) for one in can}
    pictures = [case.picture for case in cases]
    pairs, regions = [], []
    for budget in dict.fromkeys(one.tokens for one in can):
        labels = [one.label for one in can if one.tokens == budget]
        for a, b in combinations_with_replacement(labels, 2):
            both = zip(found[a, budget], found[b, budget], strict=True)
            rows = [agree(one, other) for one, other in both]
            for at in AT:
                values = np.array([row[at] for row in rows])
                pairs.append({"a": a, "b": b, "tokens": budget, "at": at, **_row(values, pictures)})
        for label in labels:
            own = found[label, budget]
            regions.append({"method": label, "tokens": budget, **_region(own, pictures)})
    return pd.DataFrame(pairs), pd.DataFrame(regions)


def _row(values: np.ndarray, pictures: Sequence[str]) -> dict[str, float]:
    """One pair's row from [n, 3]."""
    mean = report.mean_interval(values[:, 0].tolist(), pictures)
    above = report.mean_interval((values[:, 0] - values[:, 1]).tolist(), pictures)
    return {
        "iou": mean.difference,
        "low": mean.low,
        "high": mean.high,
        "chance": float(values[:, 1].mean()),
        "most": float(values[:, 2].mean()),
        "above": above.difference,
        "above_low": above.low,
        "above_high": above.high,
        "n": mean.n,
        "pictures": mean.clusters,
    }


def _region(own: Sequence[KeptSets], pictures: Sequence[str]) -> dict[str, float]:
    share = report.mean_interval([one.region for one in own], pictures)
    return {
        "kept": float(np.mean([len(one.end) for one in own])),
        "region": share.difference,
        "low": share.low,
        "high": share.high,
        "chance": float(np.mean([len(one.end) / one.total for one in own])),
        "n": share.n,
        "pictures": share.clusters,
    }


def findings(table: Any) -> dict[str, float]:
    """Numbers by stable names: "visiondrop~visionzip@64/end": iou, and the same "/chance"."""
    out = {}
    for row in table.itertuples():
        name = f"{row.a}~{row.b}@{row.tokens}/{row.at}"
        out[name], out[f"{name}/chance"] = row.iou, row.chance
    return out


def plot(table: Any, stem: Path, titles: dict[str, str] | None = None) -> list[Path]:
    """Heat maps of one budget, in per cent, with chance in brackets below."""
    import seaborn as sns

    titles = titles or {}
    names = list(dict.fromkeys(table["a"]))
    labels = [titles.get(name, name).replace(", ", "\n") for name in names]
    some = [at for at in AT if (table["at"] == at).any()]
    size = (plots.PAGE, 0.9 + 0.29 * len(names))
    with plots.figure(1, len(some), figsize=size, sharey=True, squeeze=False) as (drawn, axes):
        for axis, at in zip(axes[0], some, strict=True):
            own = table[table["at"] == at].set_index(["a", "b"])
            value = np.full((len(names), len(names)), np.nan)
            text = np.full(value.shape, "", dtype=object)
            for (a, b), row in own.iterrows():
                i, j = names.index(a), names.index(b)
                value[j, i] = 100 * row["iou"]
                text[j, i] = f"{100 * row['iou']:.0f}"
                if i != j:
                    text[j, i] += f"\n({100 * row['chance']:.0f})"
            sns.heatmap(
                value, annot=text, fmt="", cmap=plots.HEAT, vmin=0, vmax=100, cbar=False, ax=axis,
                annot_kws={"fontsize": 7, "linespacing": 0.9}, linewidths=0.5,
                xticklabels=labels, yticklabels=labels,
            )  # fmt: skip
            for label in axis.texts:
                dark = float(label.get_text().split()[0]) > DARK
                label.set_color("white" if dark else "black")
            axis.set_title(f"{AT[at]}: overlap in % (by chance)")
            axis.tick_params(length=0)
            axis.set_xticklabels(labels, rotation=90)
        return plots.save(drawn, stem)
