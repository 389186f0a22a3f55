"""How much of what a question needs is still there, of what its words name and of what they do not.

Pure arithmetic on sets of tokens and squares; chance is what as many tokens drawn at random reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.coverage import expected_hits
from analysis.kept_sets import Span
from analysis.shown import Shown

__all__ = ["GROUPS", "OTHERS", "Wanted", "group_of", "missed", "recall", "wanted"]

GROUPS = {
    "relation": ("near_", "is_near_", "chain_"),
    "place": ("place_", "is_place_"),
    "counting": ("count", "more"),
    "comparison": ("height", "side", "is_height", "is_side", "same", "and", "or"),
    "reading": ("letter", "number", "word", "has_"),
}
"""Kinds of questions by their beginnings. A relation names one thing and asks of another, "the
nearest object above the circle"; a place names none, "the object in the top left corner"; counting
names a kind of thing and needs all of them; a comparison names both; reading names a sign."""

OTHERS = "one thing"


def group_of(kind: str) -> str:
    """Group of a kind of questions; what is left asks about one named thing."""
    longest = max(
        ((p, g) for g, ps in GROUPS.items() for p in ps if kind.startswith(p)),
        key=lambda found: len(found[0]),
        default=("", OTHERS),
    )
    return longest[1] if kind else ""


@dataclass(frozen=True)
class Wanted:
    """What a question needs, as squares of its picture.

    Attributes:
        named, unnamed: squares that are needed, by whether the words name what they show.
        needed: the squares of each needed thing.
        beside: squares of other things.
    """

    named: frozenset[int]
    unnamed: frozenset[int]
    needed: tuple[tuple[int, ...], ...] = ()
    beside: frozenset[int] = field(default_factory=frozenset)


def wanted(
    region: Iterable[int], named: Iterable[int], things: Sequence[Sequence[int]] = ()
) -> Wanted:
    """What a question needs.

    Args:
        region: all squares that it needs; named: those whose thing its words name.
        things: squares of each thing in the picture; one is needed where all of it is.
    """
    whole, said = frozenset(region), frozenset(named)
    needed = tuple(tuple(one) for one in things if whole.issuperset(one))
    others = {square for one in things for square in one} - whole
    return Wanted(whole & said, whole - said, needed, frozenset(others))


def chance_of(squares: Iterable[int], shown: Shown, drawn: int) -> float:
    """Expected share of the squares that `drawn` random tokens show; NaN without squares."""
    sizes = [len(shown.showing([square])) for square in squares]
    if not sizes:
        return float("nan")
    hits = {size: expected_hits(shown.total, drawn, size) for size in set(sizes)}
    return float(np.mean([hits[size] for size in sizes]))


def recall(span: Span, shown: Shown, need: Wanted) -> dict[str, float]:
    """What of a question's need a set of tokens holds.

    patches: tokens kept that show a part of the picture. named, unnamed, region: share of these
    squares that kept tokens show; *_merged: or that went into a token that is there; *_fine: by
    tokens of the finest patches alone; *_chance: what random tokens show; *_over: how much more
    than that. gap: named - unnamed, where both are needed; gap_chance. complete: 1 where each
    needed thing has a square that is shown. spent_*: share of the kept tokens that show something
    named, something else that is needed, another thing, nothing of these; *_even: the same of all
    tokens.
    """
    kept = [i for i in span.kept if i in shown.places]
    by, fine = shown.by(kept), shown.by(kept, fine=True)
    merged = shown.by(span.represented)
    out = {"patches": float(len(kept))}
    parts = {"named": need.named, "unnamed": need.unnamed, "region": need.named | need.unnamed}
    for name, squares in parts.items():
        at = sorted(squares)
        for suffix, mask in (("", by), ("_merged", merged), ("_fine", fine)):
            out[f"{name}{suffix}"] = float(mask[at].mean()) if at else float("nan")
        out[f"{name}_chance"] = chance_of(at, shown, len(kept))
        out[f"{name}_over"] = out[name] - out[f"{name}_chance"]
    for suffix in ("", "_merged", "_chance"):
        out[f"gap{suffix}"] = out[f"named{suffix}"] - out[f"unnamed{suffix}"]
    whole = [bool(by[list(one)].any()) for one in need.needed]
    out["complete"] = float(all(whole)) if whole else float("nan")
    return out | spent(kept, shown, need)


def spent(kept: Sequence[int], shown: Shown, need: Wanted) -> dict[str, float]:
    """Where a budget goes, see `recall`; a token counts for the first of the four that it shows."""
    left = set(shown.places)
    parts: dict[str, set[int]] = {}
    for name, squares in (
        ("named", need.named), ("unnamed", need.unnamed), ("beside", need.beside)
    ):  # fmt: skip
        parts[name] = shown.showing(squares) & left if squares else set()
        left -= parts[name]
    parts["nothing"] = left
    there, out = set(kept), {}
    for name, tokens in parts.items():
        share = len(tokens & there) / len(there) if there else float("nan")
        out[f"spent_{name}"] = share
        out[f"spent_{name}_even"] = len(tokens) / shown.total
    return out


def missed(span: Span, shown: Shown, things: Sequence[Sequence[int]]) -> dict[str, float]:
    """Share of a picture's things of which no square is shown, and what is expected of as many
    random tokens.
    """
    kept = [i for i in span.kept if i in shown.places]
    by = shown.by(kept)
    lost = [not by[list(one)].any() for one in things]
    even = [1 - expected_hits(shown.total, len(kept), len(shown.showing(one))) for one in things]
    return {
        "missed": float(np.mean(lost)) if lost else float("nan"),
        "missed_chance": float(np.mean(even)) if even else float("nan"),
    }
