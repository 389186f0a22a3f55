"""VFlowOpt's ratios: one stage before the LLM and two inside it, with a given mean over its
layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from visiondrop.budgets import check_average, check_layers, scaled_layers
from visiondrop.functional.patches import cells

__all__ = ["RELEASED", "released_shape", "three_counts"]

RELEASED: dict[float, dict[str, Any]] = {
    0.10: {"ratios": (0.1166, 1.0, 0.6011), "t": 39.26, "grid": 17.39},
    0.25: {"ratios": (0.2651, 0.9833, 0.8773), "t": 34.76, "grid": 15.58},
    0.50: {"ratios": (0.7233, 0.7487, 0.487), "t": 28.68, "grid": 11.76},
}
"""What the authors' search found for LLaVA-OneVision 7B, by the share of tokens kept on average;
alpha is 0 in all.
"""


def released_shape(
    tokens: float, num_layers: int, num_patches: int, layers: Sequence[int] | None = None
) -> dict[str, Any]:
    """VFlowOpt's fields at another average: those of the released setting that keeps the nearest
    share of tokens.

    Of it are taken how much more than the mean enters the LLM, and the first ratio inside; the last
    follows from the mean. A grid of more cells than tokens becomes one cell.

    Args:
        layers: None takes 10 and 20 of 32.
    """
    check_average(tokens, num_patches)
    share = min(RELEASED, key=lambda kept: abs(kept - tokens / num_patches))
    setting, side = RELEASED[share], round(num_patches**0.5)
    at = scaled_layers((10, 20), num_layers) if layers is None else tuple(layers)
    check_layers(at, num_layers, "a stage of vflowopt")
    enter = min(num_patches, max(1, round(setting["ratios"][0] / share * tokens)))
    counts = three_counts(tokens, enter, setting["ratios"][1], at, num_layers)
    fits = cells((side, side), setting["grid"])[1] <= enter
    return {
        "ratios": tuple(b / a for a, b in itertools.pairwise((num_patches, *counts))),
        "layers": at,
        "t": setting["t"],
        "grid": setting["grid"] if fits else float(side),
    }


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
