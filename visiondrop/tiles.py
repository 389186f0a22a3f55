"""Budgets of any-resolution pictures: what a number of tokens means where a picture has several
tiles, how the tiles share it, and what becomes of newlines and padding.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.merging import Reduction

__all__ = ["PictureChoice", "Tiles", "frame_budgets", "tile_budgets"]

ROUNDING = 1e-9


@dataclass(frozen=True)
class Tiles:
    """How a method treats pictures of several tiles; set by `Reducer.on_tiles`.

    Args:
        budget: what the method's counts mean. "picture": so many of each picture, however many
            tiles it has. "ratio": so many of the largest picture (2880 for LLaVA-NeXT), and of any
            other the same share of its tiles' patches. "tile": so many of each tile.
        share: how the tiles of a picture share what enters the LLM: by "importance", what the
            vision tower's attention says of the thumbnail's part that a crop shows (the thumbnail
            itself gets as much as a crop on average), or "equal".
        newlines: "row": they stay while a token of their row stays, and no method sees or counts
            them. "none": where something is reduced, they are dropped. "pool": they are visual
            tokens like others (in the LLM; before it all rows keep theirs).
        padding: patches that show the border around the picture, which unpruned LLaVA-NeXT cuts
            away: "hidden" from the method, "shown" to it and sent if it keeps them, or "lost",
            shown to it and cut away after its choice.
    """

    budget: Literal["picture", "ratio", "tile"] = "picture"
    share: Literal["importance", "equal"] = "importance"
    newlines: Literal["row", "none", "pool"] = "row"
    padding: Literal["hidden", "shown", "lost"] = "hidden"

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            if (value := getattr(self, name)) not in typing.get_args(hint):
                known = ", ".join(map(repr, typing.get_args(hint)))
                raise ValueError(f"tiles: {name}={value!r}; possible: {known}")

    def share_of(self, grid: TileGrid, num_patches: int) -> float:
        """By what a method's counts are multiplied for one picture.

        Args:
            num_patches: patches of all tiles of the largest picture.
        """
        return self.share_of_parts(grid.tiles, grid.tiles * grid.side**2, num_patches)

    def share_of_parts(self, parts: int, tokens: int, num_patches: int) -> float:
        """The same for a picture, or a video, of so many parts (tiles, or frames) and tokens."""
        if self.budget == "picture":
            return 1.0
        if self.budget == "tile":
            return float(parts)
        return tokens / num_patches

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclass
class PictureChoice:
    """What a method keeps of one picture where it decides over all tiles together.

    Attributes:
        tiles: for each tile its reduction (G = 1) of the tower's tokens, CLS first if there is one.
        order: [M, 2] pairs (tile, slot), see `functional.anyres_layout`; None: as the options for
            any-resolution pictures say.
        finish: (tokens of each tile [m, D'], newline [D']) -> the same as they are to be sent.
    """

    tiles: list[Reduction]
    order: Tensor | None = None
    finish: Callable[[list[Tensor], Tensor], tuple[list[Tensor], Tensor]] | None = None


def tile_budgets(total: int, weights: Sequence[float], room: Sequence[int]) -> list[int]:
    """`total` tokens shared among tiles in proportion to `weights`, none above its `room`.

    Tiles whose share would not fit are filled, and the others share the rest. Shares are rounded
    down; what that leaves goes, one each, to the largest remainders (among equals to the first).
    """
    given, open_ = [0] * len(room), [t for t in range(len(room)) if room[t]]
    left = min(total, sum(room))
    while left and open_:
        whole = sum(weights[t] for t in open_)
        part = {t: left * weights[t] / whole if whole else left / len(open_) for t in open_}
        full = [t for t in open_ if part[t] >= room[t]]
        if not full:
            floor = {t: math.floor(part[t] + ROUNDING) for t in open_}
            order = sorted(open_, key=lambda t: -round(part[t] - floor[t], 9))
            more = order[: left - sum(floor.values())]
            return [floor.get(t, given[t]) + (t in more) for t in range(len(room))]
        for t in full:
            given[t] = room[t]
        left -= sum(room[t] for t in full)
        open_ = [t for t in open_ if t not in full]
    return given


def frame_budgets(total: int, frames: int) -> list[int]:
    """`total` tokens over `frames`, as equal as can be, the larger ones spread evenly."""
    return [(i + 1) * total // frames - i * total // frames for i in range(frames)]
