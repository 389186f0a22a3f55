"""HiRED: a budget for each partition of a picture, spent on what CLS attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.scoring import attention_row, top_tokens
from visiondrop.tiles import PictureChoice, Tiles, tile_budgets
from visiondrop.views import EncoderView


@dataclass
class HiRED(PictureBudget):
    """HiRED (Arif et al., AAAI 2025, arXiv 2408.10945), training-free and text-free.

    A picture of one tile (LLaVA-1.5), as released: score_j = sum over heads of
    softmax(q_CLS K^T / sqrt(d))_j in the layer that makes the features; the best
    int(n * token_budget_rate) of n patches stay, in spatial order. That is FasterVLM's choice.

    A picture of several tiles (LLaVA-NeXT): its tokens are shared in two stages. The thumbnail gets
    int(tokens * alpha); the crops share the rest by what the thumbnail's CLS attends to in the
    tower's first layer (`partition_budgets`). Within each tile the best by score_j stay. Shares are
    rounded down and end at a crop's patches, so that fewer than `tokens` may be kept; `fill` hands
    out what is left. Where the tokens exceed the picture's patches, it stays whole.

    Args:
        tokens: patches kept; `HiRED.from_rate` takes the released code's `token_budget_rate`, whose
            0.2 is 115 of 576 (the default) and 576 of 2880 with `on_tiles(budget="ratio")`.
        alpha: the thumbnail's share.
        partition: by what crops share, "released" or "paper", see `partition_budgets`.
        fill: give what is left to the crops with the largest remainders, then to whom has room, so
            that the tokens are met exactly. Not in the paper.
        positions: "renumbered" from 0 (released), or "original".
    """

    name = "hired"
    title = "HiRED"
    paper = "arXiv 2408.10945"
    where = "encoder"
    signal = "CLS attention, budget per partition"
    needs = ("cls", "patches")
    tiled = True
    presets = {
        "rate0.2": {"tokens": 115},
        "rate0.4": {"tokens": 230},
        **{str(n): {"tokens": n} for n in (192, 128, 64)},
    }

    tokens: int = 115
    alpha: float = 0.5
    partition: Literal["released", "paper"] = "released"
    fill: bool = False
    positions: Positions = "renumbered"

    @classmethod
    def from_rate(cls, token_budget_rate: float, geometry: Geometry) -> HiRED:
        """The released code's count, int(n * token_budget_rate)."""
        return cls(tokens=int(geometry.num_patches * token_budget_rate))

    def check(self, geometry: Geometry) -> None:
        """Refuse budgets beyond the picture and shares beyond the whole."""
        super().check(geometry)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"{self.name}: alpha={self.alpha}; give 0 to 1")

    def encoder_stage(self, view: EncoderView) -> Reduction:
        """Keep the best patches of G pictures: [G, tokens, D]."""
        kept = top_tokens(view.cls_attention, self.tokens) + int(view.has_cls)
        return keep_only(view.features, view.sizes, kept)

    def picture_stage(
        self, view: EncoderView, grid: TileGrid, tiles: Tiles
    ) -> PictureChoice | None:
        """Share the tokens among the tiles, keep the best of each."""
        side = grid.side
        every = torch.arange(side * side).view(side, side)
        shown = [
            every[r0:r1, c0:c1].flatten() if tiles.padding == "hidden" else every.flatten()
            for r0, r1, c0, c1 in map(grid.shown, range(grid.tiles))
        ]
        room = [len(patches) for patches in shown]
        if self.tokens > sum(room):
            return None
        query, key = (part[:1] for part in view.first)
        early = attention_row(query[:, :, 0], key, view.scale)[0, 1:]
        budgets = partition_budgets(
            early, grid, self.tokens, self.alpha, self.partition, room, self.fill
        )
        reductions = []
        for tile, (patches, budget) in enumerate(zip(shown, budgets, strict=True)):
            patches = patches.to(early.device)
            best = top_tokens(view.cls_attention[tile, patches][None], budget)[0]
            own = slice(tile, tile + 1)
            kept = patches[best][None] + 1
            reductions.append(keep_only(view.features[own], view.sizes[own], kept))
        return PictureChoice(reductions)


def partition_budgets(
    attention: Tensor,
    grid: TileGrid,
    tokens: int,
    alpha: float = 0.5,
    rule: Literal["released", "paper"] = "released",
    room: Sequence[int] | None = None,
    fill: bool = False,
) -> list[int]:
    """How many tokens the thumbnail and each crop of an any-resolution picture may keep.

    Of all `tokens` (int(T n rate) of T tiles with n patches) the thumbnail gets
    int(tokens * alpha); the rest is shared among the crops by how much the thumbnail shows there,
    judged by the CLS attention of an early tower layer; each share is rounded down.
    "paper": a crop's weight is the attention summed over its part of the thumbnail. "released": the
    int(n (1 - alpha)) best patches are marked, and a crop's weight counts the marks in its run of
    n / crops patches in reading order (runs, not the crop's rectangle: a strip of the thumbnail).

    Checked against an independent loop; the released rule was read from the code, not run.

    Args:
        attention: [n], CLS attention of the thumbnail in tower layer 0, summed over heads.
        room: the most that each tile can keep; n by default.
        fill: hand out what rounding down and full tiles leave: to the crops with the largest
            remainders, then to whom has room.

    Returns: the budgets of the thumbnail and of each crop.
    """
    n, crops = attention.shape[0], grid.crops
    room = [n] * grid.tiles if room is None else list(room)
    thumbnail = min(int(tokens * alpha), room[0])
    rest = min(tokens - thumbnail, crops * n)
    if rule == "paper":
        weight = grid.crop_sums(attention)
    else:
        if n % crops:
            raise ValueError(
                f"the released rule cuts {n} patches into {crops} equal runs, which do not come "
                'out even; use the rule "paper"'
            )
        marks = torch.zeros_like(attention)
        marks[top_tokens(attention[None], int(n * (1 - alpha)))[0]] = 1
        weight = marks.view(crops, -1).sum(1)
    if not weight.sum():  # nothing is marked with alpha = 1
        weight = torch.ones_like(weight)
    if not fill:
        shares = (weight / weight.sum() * rest).long().tolist()
        return [thumbnail, *(min(pair) for pair in zip(shares, room[1:], strict=True))]
    shares = tile_budgets(rest, weight.tolist(), room[1:])
    left = min(tokens, sum(room)) - thumbnail - sum(shares)
    free = [most - own for most, own in zip(room, [thumbnail, *shares], strict=True)]
    more = tile_budgets(left, [1.0] * grid.tiles, free)
    return [own + extra for own, extra in zip([thumbnail, *shares], more, strict=True)]
