"""Token counts of one stage before the LLM and two inside it, with a given mean over its layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = ["three_counts"]


def three_counts(
    mean: float,
    enter: int,
    share: float,
    layers: Sequence[int],
    num_layers: int,
    least: int = 1,
) -> tuple[int, int, int]:
    """(tokens that enter the LLM, tokens from layer `layers[0]` on, tokens from `layers[1]` on).

    The last follows from the mean; the middle is `share` of what enters, or the nearest to that
    which leaves the last between `least` and the middle. Rounded, the mean is off by half a token
    at most.

    Args:
        mean: of visual tokens over the decoder layers.
        enter: how many enter, at least the mean.
        share: of these, from `layers[0]` on, above 0 and at most 1.

    Raises `ValueError` where fewer than the mean enter, or so many that `least` in the other
    layers is too much.
    """
    if len(layers) != 2:
        raise ValueError(f"{len(layers)} layers; this rule is for two stages inside the LLM")
    first, second, third = (b - a for a, b in itertools.pairwise((0, *layers, num_layers)))
    rest = mean * num_layers - first * enter
    low, high = rest / (second + third), min((rest - least * third) / second, enter)
    half = 0.5 * num_layers
    if low > enter + half or rest < least * (second + third) - half:
        most = (mean * num_layers - least * (second + third)) / first
        raise ValueError(
            f"a mean of {mean:g} visual tokens over {num_layers} layers with stages before layers "
            f"{layers[0]} and {layers[1]}: {enter} cannot enter the LLM; from {mean:g} to {most:g} "
            "can"
        )
    middle = round(max(low, min(share * enter, high)))
    middle = max(least, min(middle, enter))
    last = round((rest - second * middle) / third)
    return enter, middle, max(least, min(last, middle))
