"""Budgets: from an average number of visual tokens to the stages of a reduction, and back.

A *stage* keeps `dominant` visual tokens and folds the others into `contextual` ones. The *ledger*
lists how many visual tokens each decoder layer sees; its mean is what every table of this project
calls "average tokens".

Source: VisionDrop (arXiv 2506.22283), section "Progressive dropping", and the released setting
48/35/26/19 for an average of 32. The rule for other averages is read off from that setting: the
first total is 1.5 T and the totals decay geometrically so that their mean over the decoder layers
is T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

__all__ = [
    "VIDEO_ENTRY_RATIO",
    "Budget",
    "block_weights",
    "check_stages",
    "geometric_totals",
    "ledger",
    "mean_tokens",
    "resized",
    "solve_decay",
    "split_total",
    "stage_layers",
]

Budget = tuple[int, int]
"""(dominant, contextual) of one stage."""

ENTRY_RATIO = 1.5
"""First total over the average, read off from the released setting (48 / 32)."""
VIDEO_ENTRY_RATIO = 3.0
"""The same for videos, of which 3 T tokens enter the LLM in the paper. Its decay is not known; that
it is geometric, too (a ratio of 0.253 over four equal blocks), is ours.
"""


def stage_layers(num_layers: int) -> tuple[int, int, int]:
    """Decoder layers before which the LLM stages act: 1/4, 1/2 and 3/4 of the depth, rounded.

    Raises `ValueError` where the model is too shallow for three separate stages.
    """
    layers = tuple(round(num_layers * k / 4) for k in (1, 2, 3))
    if len({0, *layers, num_layers}) != 5:
        raise ValueError(
            f"a decoder of {num_layers} layers is too shallow for stages at 1/4, 1/2 and 3/4 of "
            "its depth; at least 4 layers are needed. Give the stages yourself: "
            "VisionDrop(encoder=..., llm=...)"
        )
    return layers[0], layers[1], layers[2]


def block_weights(layers: Sequence[int], num_layers: int) -> list[float]:
    """Share of the decoder layers in each block that `layers` cut the decoder into; sums to 1."""
    edges = [0, *layers, num_layers]
    return [(b - a) / num_layers for a, b in zip(edges, edges[1:], strict=False)]


def solve_decay(weights: Sequence[float], entry: float) -> float:
    """The ratio r >= 0 with `entry * sum_k weights[k] * r**k == 1`, by bisection.

    `entry` is the first total over the average. With four equal blocks and 1.5, r = 0.73362...

    Raises `ValueError` where no such ratio exists: `entry * weights[0] > 1` (the first block alone
    exceeds the average) or `entry < 1` (the totals would have to grow).
    """
    if entry < 1 or entry * weights[0] > 1:
        raise ValueError(
            f"no decay reaches the average: the first total is {entry:.3f} times the average and "
            f"the first block holds {weights[0]:.3f} of the layers; the first total must be at "
            f"least 1 and at most {1 / weights[0]:.3f} times the average"
        )
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if entry * sum(w * middle**k for k, w in enumerate(weights)) > 1:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def geometric_totals(
    average: float,
    weights: Sequence[float],
    *,
    most: int | None = None,
    entry: float = ENTRY_RATIO,
) -> list[int]:
    """Totals of the encoder stage and each LLM stage with mean `average` over the layers.

    `most` bounds the first total (the tokens that there are); where the bound bites, the decay is
    solved anew from it. Totals are rounded, ties to even, so the true mean can be a quarter off.
    """
    first = average * entry
    if most is not None and first > most:
        first = float(most)
    ratio = solve_decay(weights, first / average)
    return [round(first * ratio**k) for k in range(len(weights))]


def split_total(total: int) -> Budget:
    """(dominant, contextual) of a total: contextual is an eighth, rounded up (42+6, 30+5, 22+4,
    16+3); a single token is dominant.
    """
    contextual = min(ceil(total / 8), total - 1)
    return total - contextual, contextual


def resized(budget: Budget, total: int) -> Budget:
    """A budget of another total in the same shares; one token at least is dominant."""
    dominant, contextual = budget
    contextual = min(round(total * contextual / (dominant + contextual)), total - 1)
    return total - contextual, contextual


def check_stages(
    encoder: Budget | None,
    llm: Mapping[int, Budget],
    *,
    tokens: int,
    num_layers: int,
) -> None:
    """Refuse an impossible plan before any compute.

    Args:
        encoder: budget of the encoder stage or None.
        llm: budget per decoder layer before which the stage acts.
        tokens: visual tokens of one picture that the first stage may choose from (CLS included
            where the encoder has one and the encoder stage is used).
        num_layers: depth of the decoder.

    Raises `ValueError` naming the stage, the value, the limit and the remedy.
    """
    here, previous = tokens, 0
    stages: list[tuple[str, Budget]] = []
    if encoder is not None:
        stages.append(("encoder stage", encoder))
    for layer, budget in llm.items():
        if not 0 < layer < num_layers:
            raise ValueError(
                f"LLM stage before layer {layer}: the decoder has layers 0 to {num_layers - 1}, a "
                f"stage can stand before layers 1 to {num_layers - 1}"
            )
        if layer <= previous:
            raise ValueError(
                f"LLM stages out of order: layer {layer} comes after layer {previous}; list the "
                "stages by rising layer"
            )
        previous = layer
        stages.append((f"LLM stage before layer {layer}", budget))
    for name, budget in stages:
        if len(budget) != 2 or any(isinstance(n, bool) or not isinstance(n, int) for n in budget):
            raise ValueError(
                f"{name}: a budget is a pair of whole numbers (dominant, contextual), not "
                f"{budget!r}"
            )
        dominant, contextual = budget
        if dominant < 1 or contextual < 0:
            raise ValueError(
                f"{name}: dominant {dominant} and contextual {contextual} given; at least 1 and 0 "
                "needed"
            )
        if dominant > here:
            raise ValueError(
                f"{name}: {dominant} dominant tokens asked for where {here} arrive; lower the "
                f"budget to at most {here}"
            )
        if contextual > here - dominant:
            raise ValueError(
                f"{name}: {contextual} contextual tokens asked for where {here - dominant} tokens "
                f"remain beside {dominant} dominant ones of {here}; lower contextual to "
                f"{here - dominant} or fewer"
            )
        here = dominant + contextual


def ledger(tokens_in: int, llm: Mapping[int, Budget], num_layers: int) -> list[int]:
    """Visual tokens that each decoder layer sees when `tokens_in` enter layer 0.

    A stage whose total exceeds what arrives is skipped, as it is at run time.
    """
    tokens, out = tokens_in, []
    for layer in range(num_layers):
        total = sum(llm[layer]) if layer in llm else tokens
        tokens = min(tokens, total)
        out.append(tokens)
    return out


def mean_tokens(tokens_per_layer: Sequence[int]) -> float:
    """True mean of visual tokens over the decoder layers."""
    return sum(tokens_per_layer) / len(tokens_per_layer)
