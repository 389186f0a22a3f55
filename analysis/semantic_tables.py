"""Tables from what `semantic_walk` saw: overlap by layer, two questions on a picture, mixing.

Every row has a mean over cases with a 95 % interval over pictures: bootstrap, except for `cka`,
whose interval leaves out one picture at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.overlap import chance, expected_iou, iou, names
from analysis.report import mean_interval
from analysis.semantic_walk import ASKED, BACKGROUND, OBJECT, SCORES, Seen
from analysis.setting import Unknown
from analysis.similarity import cka, folds, held_out, jackknife
from llava.eval.intervals import bootstrap_intervals

__all__ = ["COLUMNS", "mixing_table", "overlap_table", "pairs_of", "questions_table"]

COLUMNS = (
    "part", "measure", "layer", "score", "kind", "mean", "low", "high", "n", "pictures"
)  # fmt: skip
RESAMPLES = 4000
FOLDS = 5


def _means(values: np.ndarray, pictures: Sequence[str]) -> list[tuple[float, ...]]:
    """(mean, low, high, n, pictures) of each column of `values` [n, m], without NaN."""
    known = ~np.isnan(values).any(1) if values.size else np.zeros(len(values), bool)
    if known.all() and len(set(pictures)) > 1:
        found = bootstrap_intervals(values, list(pictures), resamples=RESAMPLES)
    else:
        found = [mean_interval(c, pictures, resamples=RESAMPLES) for c in values.T.tolist()]
    return [(i.difference, i.low, i.high, i.n, i.clusters) for i in found]


def _table(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"layer": "Int64"})


def _known(seen: Sequence[Seen]) -> list[Seen]:
    known = [s for s in seen if s.found is not None]
    if not known:
        raise Unknown("nobody knows which regions these questions ask for")
    return known


def overlap_table(seen: Sequence[Seen], layers: Sequence[int], tokens: int) -> pd.DataFrame:
    """How well scores find what questions ask for, by layer, over all and by kind of question.

    Scores beside those of layers: "cls" of the vision tower and "random", both without a layer.
    Rows "text_minus_visual" are text scores less "visual_corrected", paired; rows
    "late_minus_early" the mean over the last third of the layers less that over the first
    third, paired. `Unknown` where no region is known.
    """
    known, measures = _known(seen), names(tokens)
    layers_found = np.stack([s.found for s in known])  # type: ignore[misc]  # [cases, L, S, 8]
    luck = np.stack([chance(len(s.asked), s.total, tokens) for s in known])  # type: ignore[arg-type]
    third = max(1, len(layers) // 3)
    trend = layers_found[:, -third:].mean(1) - layers_found[:, :third].mean(1)
    kinds = np.array([s.case.kind for s in known])
    rows: list[tuple[Any, ...]] = []

    def add(part: str, where: list[tuple[Any, str]], block: np.ndarray, kind: str) -> None:
        """A block [cases, len(where), 8]."""
        own = np.ones(len(known), bool) if kind == "all" else kinds == kind
        pictures = [s.case.picture for s, mine in zip(known, own) if mine]
        found = iter(_means(block[own].reshape(own.sum(), -1), pictures))
        for layer, score in where:
            for measure in measures:
                rows.append((part, measure, layer, score, kind, *next(found)))

    places = [(layer, score) for layer in layers for score in SCORES]
    for kind in ["all", *sorted(set(kinds) - {""})]:
        add("overlap", places, layers_found.reshape(len(known), -1, len(measures)), kind)
        add("overlap", [(None, "random")], luck[:, None], kind)
        if all(s.encoder is not None for s in known):
            cls = np.stack([s.encoder for s in known])  # type: ignore[misc]
            add("overlap", [(None, "cls")], cls[:, None], kind)
    text, corrected = layers_found[:, :, :2], layers_found[:, :, 3:]
    lead = (text - corrected).reshape(len(known), -1, len(measures))
    add("text_minus_visual", [(layer, s) for layer in layers for s in SCORES[:2]], lead, "all")
    add("late_minus_early", [(None, score) for score in SCORES], trend, "all")
    return _table(rows)


def pairs_of(seen: Sequence[Seen]) -> list[tuple[Seen, Seen]]:
    """Every two different questions on one picture."""
    by_picture: dict[str, list[Seen]] = {}
    for one in seen:
        by_picture.setdefault(one.case.picture, []).append(one)
    return [
        pair
        for own in by_picture.values()
        for pair in itertools.combinations(own, 2)
        if pair[0].case.question != pair[1].case.question
    ]


def questions_table(seen: Sequence[Seen], layers: Sequence[int]) -> pd.DataFrame:
    """Whether top sets change with the question, over pairs of questions on one picture.

    Measures: "same", intersection over union of both questions' top sets, also of random sets
    (expected) and of what is asked for ("asked"); and for pairs whose regions share no token, kind
    "apart": recall of a question's own region by its top set ("own"), of the other's ("other") and
    their difference ("selective"). `Unknown` without pictures that have two questions.
    """
    pairs = pairs_of(seen)
    if not pairs:
        raise Unknown("no picture here has two questions")
    apart = [p for p in pairs if _apart(*p)]
    rows: list[tuple[Any, ...]] = []
    for kind, some in (("all", pairs), ("apart", apart)):
        if not some:
            continue
        pictures = [a.case.picture for a, _ in some]
        same = np.array([_same(a.tops, b.tops) for a, b in some])  # [pairs, L, S]
        found = iter(_means(same.reshape(len(some), -1), pictures))
        rows += [
            ("questions", "same", layer, s, kind, *next(found)) for layer in layers for s in SCORES
        ]
        size = [a.tops.shape[-1] for a, _ in some]
        luck = np.array([[expected_iou(k, k, a.total)] for k, (a, _) in zip(size, some)])
        rows.append(("questions", "same", None, "random", kind, *_means(luck, pictures)[0]))
        if all(s.asked is not None for pair in some for s in pair):
            both = np.array([[iou(a.asked, b.asked)] for a, b in some])  # type: ignore[arg-type]
            rows.append(("questions", "same", None, "asked", kind, *_means(both, pictures)[0]))
    if apart:
        pictures = [a.case.picture for a, _ in apart]
        recalls = np.array([_recalls(a, b) for a, b in apart])  # [pairs, L, S, 3]
        found = iter(_means(recalls.reshape(len(apart), -1), pictures))
        for layer, score in itertools.product(layers, SCORES):
            for measure in ("own", "other", "selective"):
                rows.append(("questions", measure, layer, score, "apart", *next(found)))
    return _table(rows)


def _apart(first: Seen, second: Seen) -> bool:
    if first.asked is None or second.asked is None:
        return False
    return not len(np.intersect1d(first.asked, second.asked))


def _same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[L, S], overlap of the top sets [L, S, k] of two questions."""
    return np.array([[iou(a, b) for a, b in zip(x, y)] for x, y in zip(first, second)])


def _recalls(first: Seen, second: Seen) -> np.ndarray:
    """[L, S, 3], recall of the own region, of the other one, and the difference, over both."""
    assert first.asked is not None and second.asked is not None
    own = [np.isin(s.tops, s.asked).sum(-1) / len(s.asked) for s in (first, second)]  # type: ignore[arg-type]
    other = [
        np.isin(s.tops, r.asked).sum(-1) / len(r.asked)  # type: ignore[arg-type]
        for s, r in ((first, second), (second, first))
    ]
    mine, others = np.mean(own, 0), np.mean(other, 0)
    return np.stack([mine, others, mine - others], -1)


def mixing_table(
    seen: Sequence[Seen], layers: Sequence[int], grey: Sequence[dict[str, np.ndarray]], seed: int
) -> pd.DataFrame:
    """Do visual and text states mix? By layer, of the states that it reads:

    - "cka": debiased linear alignment, over cases, of mean states: scores "asked" and "rest" (the
      tokens that show what is asked for, or all others; "visual" where nobody knows) against the
      text behind the picture (kind "text") or its last token (kind "last");
    - "cosine" between the means of visual and text tokens, centred by nothing;
    - "moved": how far text states move when a grey picture takes the picture's place: distance over
      the mean of both norms (kinds "text", "last");
    - "reader": area under the ROC curve, within a question, of linear readers of one visual token's
      state on pictures that they were not fitted on: "object" (does it show an object?), "asked"
      (of tokens that show objects: is it asked for?), "asked_with_text" (the same with the
      question's state, bilinear).
    """
    if len({s.case.picture for s in seen}) < 4:
        raise Unknown("states of fewer than 4 pictures say nothing of how they go together")
    pictures = [s.case.picture for s in seen]
    rows: list[tuple[Any, ...]] = []
    known = [s for s in seen if "asked" in s.pooled]
    for name in ("asked", "rest") if len(known) == len(seen) else ("visual",):
        for kind in ("text", "last"):
            for i, layer in enumerate(layers):
                found = _alignment(seen, i, name, kind, pictures)
                rows.append(
                    ("mixing", "cka", layer, name, kind, *found, len(seen), len(set(pictures)))
                )
    cosine = _means(np.stack([s.cosine for s in seen]), pictures)
    rows += [("mixing", "cosine", layer, "visual", "text", *f) for layer, f in zip(layers, cosine)]
    for kind in ("text", "last"):
        moved = np.stack([_moved(s.pooled[kind], g[kind]) for s, g in zip(seen, grey)])
        means = _means(moved, pictures)
        rows += [("mixing", "moved", layer, "grey", kind, *f) for layer, f in zip(layers, means)]
    rows += _readers(seen, layers, seed)
    return _table(rows)


def _alignment(
    seen: Sequence[Seen], i: int, name: str, kind: str, pictures: Sequence[str]
) -> tuple[float, float, float]:
    x, y = (np.stack([s.pooled[n][i] for s in seen]).astype(np.float64) for n in (name, kind))
    # Kernels of centred states: the estimate does not depend on a shift, its rounding does.
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    if np.trace(m) < 1e-10 * (y.shape[0] + np.abs(y).max()):  # all prompts end with the same word
        return (float("nan"),) * 3
    return jackknife(lambda at: cka(k[np.ix_(at, at)], m[np.ix_(at, at)]), pictures)


def _moved(states: np.ndarray, grey: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(states, axis=-1) + np.linalg.norm(grey, axis=-1)
    return 2 * np.linalg.norm(states - grey, axis=-1) / norms


def _readers(seen: Sequence[Seen], layers: Sequence[int], seed: int) -> list[tuple[Any, ...]]:
    """Nothing, and a line that says so, where what is shown is known of too few pictures."""
    known = [s for s in seen if s.states is not None and (s.roles == OBJECT).any()]
    if (count := len({s.case.picture for s in known})) < FOLDS:
        print(f"left out: readers: what is shown is known of {count} pictures, {FOLDS} are needed")
        return []
    roles = np.concatenate([s.roles for s in known])
    question = np.repeat(np.arange(len(known)), [len(s.roles) for s in known])
    pictures = [s.case.picture for s in known]
    fold = folds(pictures, FOLDS, seed)[question]
    shows, tasks = roles != BACKGROUND, {}
    every = np.ones(len(roles), bool)
    tasks["object"] = (every, shows, False)
    tasks["asked"] = (shows, roles == ASKED, False)
    tasks["asked_with_text"] = (shows, roles == ASKED, True)
    rows = []
    for i, layer in enumerate(layers):
        states = np.concatenate([s.states[i] for s in known]).astype(np.float32)  # type: ignore[index]
        text = np.stack([s.pooled["text"][i] for s in known])[question]
        for name, (use, wanted, with_text) in tasks.items():
            areas = held_out(
                states[use], wanted[use], question[use], fold[use], text[use] if with_text else None
            )
            found = mean_interval(
                list(areas.values()), [pictures[q] for q in areas], resamples=RESAMPLES
            )
            ends = (found.difference, found.low, found.high, found.n, found.clusters)
            rows.append(("mixing", "reader", layer, name, "all", *ends))
    return rows
