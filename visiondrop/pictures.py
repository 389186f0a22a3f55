"""Several pictures in one prompt: what a method's counts mean there.

Either each picture has the whole budget, or the prompt has it and its pictures share every count of
it, to the token.
"""

from __future__ import annotations

import dataclasses
import heapq
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

__all__ = ["Pictures", "Portion", "apportion", "check_pictures"]


@dataclass(frozen=True)
class Pictures:
    """How a method treats several pictures in a prompt; set by `Reducer.on_pictures`.

    Args:
        budget: "each" picture has the method's counts for itself, or the pictures of a prompt
            "split" them.
        share: how they split: in proportion to their "patches" (those that the unpruned model
            sees), or "equal".
    """

    budget: Literal["each", "split"] = "each"
    share: Literal["patches", "equal"] = "patches"

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            if (value := getattr(self, name)) not in typing.get_args(hint):
                known = ", ".join(map(repr, typing.get_args(hint)))
                raise ValueError(f"pictures: {name}={value!r}; possible: {known}")

    @property
    def split(self) -> bool:
        """Whether pictures split the counts."""
        return self.budget == "split"

    def portions(self, patches: Sequence[int]) -> list[Portion | None]:
        """Of the pictures of one prompt; None where a picture has all.

        Args:
            patches: of each picture.
        """
        if not self.split or len(patches) < 2:
            return [None] * len(patches)
        weights = tuple(patches) if self.share == "patches" else (1,) * len(patches)
        return [Portion(i, weights, tuple(patches)) for i in range(len(patches))]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Portion:
    """One picture's part of every count.

    Attributes:
        index: the picture; weights: of all pictures of the prompt; room: the most for each.
    """

    index: int
    weights: tuple[int, ...]
    room: tuple[int, ...]

    def __call__(self, count: int) -> int:
        """Of `count` for all; `count` itself where that is more than there is, which leaves all
        pictures whole.

        Raises `ValueError` where not every picture could have one.
        """
        if count >= sum(self.room):
            return count
        if count < len(self.weights):
            raise ValueError(
                f"{count} visual tokens for a prompt of {len(self.weights)} pictures, which are to "
                "split them (on_pictures(budget='split')): give at least one for each, or "
                "budget='each'"
            )
        return apportion(count, self.weights, self.room)[self.index]


@lru_cache(maxsize=4096)
def apportion(total: int, weights: tuple[int, ...], room: tuple[int, ...]) -> tuple[int, ...]:
    """`total` in whole parts in proportion to `weights`, each at least 1 and none above its `room`.

    A divisor method (Webster's, after one for each): of two totals the larger never gives anyone
    less, so that the parts of a falling row of counts fall, too. Among equals the first comes
    first.
    """
    parts = [1] * len(weights)
    queue = [(-w / 1.5, i) for i, w in enumerate(weights) if room[i] > 1]
    heapq.heapify(queue)
    for _ in range(total - len(weights)):
        _, i = heapq.heappop(queue)
        parts[i] += 1
        if parts[i] < room[i]:
            heapq.heappush(queue, (-weights[i] / (parts[i] + 0.5), i))
    return tuple(parts)


def check_pictures(method: Any) -> None:
    """Raise `ValueError` where pictures cannot split a method's counts."""
    if not method.pictures.split:
        return
    reason = None
    if method.tiles.budget != "picture":
        reason = f"its counts are a {method.tiles.budget}'s: use on_tiles(budget='picture')"
    elif method.before_llm and method.before == "tower":
        reason = "it merges inside the vision tower, picture by picture"
    elif method.before_llm and method.before == "prompt":
        reason = "it sees all pictures of a prompt together already"
    elif not method.has_counts:
        reason = "it works by ratios, or finds out by itself"
    if reason is not None:
        raise ValueError(
            f"{method.name!r} with on_pictures(budget='split') has no counts of a prompt to split: "
            f"{reason}"
        )
