"""Budgets of methods that drop inside the LLM: from an average to layers and counts, and back.

N visual tokens enter a decoder of L layers; the *mean* is that of visual tokens over its layers.
A first drop before layer f leaves f layers full, so no mean below about N f / L can be reached
there. The rule of this project: the drops stand where the method's authors put them (scaled by
depth); where the asked mean cannot be reached so, the first drop moves forward to the largest
f >= 1 that reaches it; where f = 1 does not, the budget is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "between",
    "bisect",
    "check_average",
    "check_counts",
    "check_layers",
    "first_drop",
    "geometric_drops",
    "listed_drops",
    "nearest_counts",
    "ratio_of",
    "refuse_options",
    "scaled_layers",
    "single_drop",
    "stepwise",
]

DEPTH = 32
"""Decoder layers of the model (LLaVA-1.5 7B) that the papers' layers are given for."""


def scaled_layers(layers: Sequence[int], num_layers: int, depth: int = DEPTH) -> tuple[int, ...]:
    """Layers given for a decoder of `depth` layers in one of `num_layers`.

    round(l * num_layers / depth), at least 1, and rising (a layer that would fall on the one before
    it moves one up).

    Raises `ValueError` where the decoder is too shallow for so many separate layers.
    """
    out: list[int] = []
    for layer in layers:
        at_least = out[-1] + 1 if out else 1
        out.append(max(round(layer * num_layers / depth), at_least))
    if out and out[-1] >= num_layers:
        raise ValueError(
            f"a decoder of {num_layers} layers is too shallow for drops at layers "
            f"{', '.join(map(str, layers))} of {depth}: at least {len(out) + 1} layers are needed; "
            "give the layers yourself"
        )
    return tuple(out)


def stepwise(
    layers: Sequence[int], counts: Sequence[int], num_layers: int, num_patches: int
) -> list[int]:
    """Visual tokens of each decoder layer when `counts[i]` remain from `layers[i]` on.

    A count that is not below what there is changes nothing.
    """
    table, tokens, out = dict(zip(layers, counts, strict=True)), num_patches, []
    for layer in range(num_layers):
        tokens = min(tokens, table.get(layer, tokens))
        out.append(tokens)
    return out


# ------------------------------------------------------------------------------ checks


def check_layers(layers: Sequence[int], num_layers: int, what: str = "a drop") -> None:
    """Raise `ValueError` unless `layers` rise and lie in 1..num_layers - 1."""
    for before, layer in itertools.pairwise((0, *layers)):
        if not 0 < layer < num_layers:
            raise ValueError(
                f"{what} before layer {layer}: the decoder has layers 0 to {num_layers - 1}, and "
                f"{what} can stand before layers 1 to {num_layers - 1}"
            )
        if layer <= before:
            raise ValueError(f"layer {layer} comes after layer {before}; list layers rising")


def check_average(tokens: float, num_patches: int) -> None:
    """Raise `ValueError` where a mean is more than there is, or not a positive number."""
    if not (math.isfinite(tokens) and 0 < tokens <= num_patches):
        raise ValueError(
            f"an average of {tokens} visual tokens was asked for; a picture has {num_patches} at "
            "most, and the average must be above 0"
        )


def check_counts(counts: Sequence[int], layers: Sequence[int], num_patches: int, name: str) -> None:
    """Raise `ValueError` unless there is one count of 1 to `num_patches` tokens for each layer."""
    if len(counts) != len(layers):
        raise ValueError(
            f"{name} has {len(layers)} layers and {len(counts)} counts in tokens; give one count "
            "for each layer"
        )
    for count in counts:
        if isinstance(count, bool) or not 1 <= count <= num_patches or count != int(count):
            raise ValueError(
                f"{name}: {count} tokens asked for where a picture has {num_patches}; give 1 to "
                f"{num_patches}"
            )


def refuse_options(options: Mapping[str, object], names: Sequence[str], method: str) -> None:
    """Raise `ValueError` where a budget and a field that it sets were both given."""
    if both := sorted(set(options) & set(names)):
        raise ValueError(
            f"{method}: a number of tokens and {both[0]}={options[both[0]]!r} were both given; "
            "give one of them"
        )


def first_drop(
    tokens: float,
    official: int,
    least: Callable[[int], float],
    *,
    given: int | None = None,
    earliest: int = 1,
    name: str,
) -> int:
    """The layer before which the first drop stands: `official` or, where the mean needs it, the
    largest earlier one.

    Args:
        tokens: the mean asked for.
        official: the authors' layer at this depth.
        least: the least mean that can be reached with the first drop before a given layer.
        given: the layer that the user set; it is not moved.
        earliest: the least layer, 0 for methods that name the layer whose output they prune.
        name: the method's, for the error.

    Raises `ValueError` where the earliest layer (or `given`) does not reach it.
    """
    for layer in range(official, earliest - 1, -1) if given is None else (given,):
        if least(layer) <= tokens:
            return layer
    raise ValueError(
        f"{name}: an average of {tokens} visual tokens is not reachable, least is "
        f"{math.ceil(least(layer) * 100) / 100:.2f} with the first drop at layer {layer}: until "
        "then every token is there; ask for that or more, or reduce before the LLM"
    )


# ------------------------------------------------------------------------------ solving


def bisect(mean: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The x in [low, high] where the rising function `mean` reaches `target`."""
    for _ in range(100):
        middle = (low + high) / 2
        if mean(middle) > target:
            high = middle
        else:
            low = middle
    return low


def single_drop(
    tokens: float,
    official: int,
    num_layers: int,
    num_patches: int,
    *,
    given: int | None = None,
    least: int = 1,
    name: str = "one drop",
) -> tuple[int, int]:
    """(layer, visual tokens kept from it on) of one drop whose mean is `tokens`.

    The count is rounded, so the mean is off by half a token at most.

    Raises `ValueError` where `tokens` cannot be reached.
    """
    check_average(tokens, num_patches)
    if given is not None:
        check_layers((given,), num_layers)

    def lowest(f: int) -> float:
        return (f * num_patches + (num_layers - f) * least) / num_layers

    layer = first_drop(tokens, official, lowest, given=given, name=name)
    kept = round((tokens * num_layers - layer * num_patches) / (num_layers - layer))
    return layer, min(max(kept, least), num_patches)


def geometric_drops(
    tokens: float,
    official: Sequence[int],
    num_layers: int,
    num_patches: int,
    *,
    given: Sequence[int] | None = None,
    name: str = "several drops",
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(layers, counts) of several drops, each to the same share of what it finds, with mean
    `tokens`.

    Counts are max(1, N r^k) for k = 1, 2, ... with one r solved for the mean, then rounded: the
    mean is off by half a token at most.

    Raises `ValueError` where `tokens` cannot be reached.
    """
    check_average(tokens, num_patches)
    if given is not None:
        check_layers(given, num_layers)
        official = given

    def weights(f: int) -> list[int]:
        return [b - a for a, b in itertools.pairwise((0, f, *official[1:], num_layers))]

    def mean(f: int, ratio: float) -> float:
        counts = (max(1.0, num_patches * ratio**k) for k in range(len(official) + 1))
        return sum(w * c for w, c in zip(weights(f), counts, strict=True)) / num_layers

    fixed = official[0] if given is not None else None
    first = first_drop(tokens, official[0], lambda f: mean(f, 0.0), given=fixed, name=name)
    ratio = 1.0
    if tokens < num_patches:
        ratio = bisect(lambda r: mean(first, r), tokens, 0.0, 1.0)
    counts = [max(1, round(num_patches * ratio**k)) for k in range(1, len(official) + 1)]
    return (first, *official[1:]), tuple(counts)


def listed_drops(
    tokens: float,
    official: Sequence[int],
    lists: Callable[[float], Sequence[float]],
    ledger: Callable[[tuple[int, ...], tuple[int, ...]], Sequence[int]],
    num_patches: int,
    *,
    given: Sequence[int] | None = None,
    earliest: int = 1,
    name: str = "listed drops",
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(layers, counts) with mean `tokens`, the counts from a family of lists that someone tuned.

    The member of the family with that mean is found by bisection; its counts, made whole, then move
    by two at most to come as close as whole numbers allow: half a token at most. Where stages that
    must drop something leave too little (means just below N), the last stages go.

    Args:
        official: the layers of the drops.
        lists: x in [0, num_patches] -> counts (not whole), rising with x.
        ledger: (layers, counts) -> visual tokens of each decoder layer.
        given: layers that the user set; they are not moved.
        earliest: the least layer of the first drop.

    Raises `ValueError` where `tokens` cannot be reached.
    """
    check_average(tokens, num_patches)
    layers = tuple(official if given is None else given)

    def mean(at: tuple[int, ...], counts: Sequence[float]) -> float:
        held = ledger(at, tuple(max(1, round(count)) for count in counts))
        return sum(held) / len(held)

    while layers and mean(layers, [num_patches] * len(layers)) < tokens - 0.5:
        layers = layers[:-1]
    if not layers:
        return (), ()
    few = [1] * len(layers)
    fixed = layers[0] if given is not None else None
    first = first_drop(
        tokens,
        layers[0],
        lambda f: mean((f, *layers[1:]), few),
        given=fixed,
        earliest=earliest,
        name=name,
    )
    layers = (first, *layers[1:])

    def member(x: float) -> list[int]:
        return [max(1, round(count)) for count in lists(x)][: len(layers)]

    x = bisect(lambda x: mean(layers, member(x)), tokens, 0.0, float(num_patches))
    counts = nearest_counts(member(x), lambda c: mean(layers, c), tokens, num_patches)
    return layers, counts


def nearest_counts(
    counts: Sequence[int],
    mean: Callable[[tuple[int, ...]], float],
    target: float,
    most: int,
    reach: int = 2,
) -> tuple[int, ...]:
    """Of all counts within `reach` of the given ones (1 to `most`), those whose mean is closest to
    `target`; of equals the ones that differ least.
    """
    shifts = sorted(
        itertools.product(range(-reach, reach + 1), repeat=len(counts)),
        key=lambda shift: sum(map(abs, shift)),
    )
    near = (
        tuple(min(most, max(1, c + s)) for c, s in zip(counts, shift, strict=True))
        for shift in shifts
    )
    return min(near, key=lambda candidate: abs(mean(candidate) - target))


def between(x: float, table: Sequence[tuple[float, Sequence[float]]]) -> list[float]:
    """Linear interpolation in a table of (x, values), rising in x; held at its ends."""
    if x <= table[0][0]:
        return list(table[0][1])
    for (left, low), (right, high) in itertools.pairwise(table):
        if x <= right:
            share = (x - left) / (right - left)
            return [a + share * (b - a) for a, b in zip(low, high, strict=True)]
    return list(table[-1][1])


def ratio_of(count: int, total: int) -> float:
    """The ratio nearest to count / total with int(total * ratio) == count (truncation loses one
    where the quotient is rounded down).
    """
    ratio = count / total
    return ratio if int(total * ratio) == count else math.nextafter(ratio, 2.0)
