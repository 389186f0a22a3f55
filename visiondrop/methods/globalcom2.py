"""GlobalCom2: the thumbnail decides how much of each crop stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from visiondrop.adapters.base import Geometry
from visiondrop.functional.anyres_layout import Newlines, TileGrid, row_order, tile_order
from visiondrop.merging import keep_only
from visiondrop.reducer import Positions, Reducer
from visiondrop.scoring import cls_logits
from visiondrop.tiles import PictureChoice, Tiles
from visiondrop.views import EncoderView


@dataclass
class GlobalCom2(Reducer):
    """GlobalCom2 (Liu et al., arXiv 2501.05179), training-free, for any-resolution pictures.

    s_j = mean over heads of q_CLS k_j / sqrt(d), before the softmax, in the tower layer that reads
    the features; n patches a tile, r = retention_ratio. Thumbnail: the best int(n r) by s, sent by
    falling s. Crop c: S_c = sum of the thumbnail's s over its cells,
    w = softmax((S - max S) / temperature), r_c = min(1, r (1 + w_c - mean w)); of its cells without
    padding the best int(cells * r_c) stay by
    s / |s| + t / |t|, where t is the thumbnail's s, stretched over the unpadded picture and cut.

    Needs crops: models that see one tile a picture refuse it.

    Args:
        retention_ratio: r, the share kept of the thumbnail and, about, of the crops.
        temperature: of the softmax over crops.
        placement: "released" takes a kept cell's number within the unpadded part of its crop for
            its number in the whole crop, so that order and rows go wrong where there is padding,
            and closes every row of the padded grid with a newline. "exact" puts tokens where they
            belong and closes the unpadded rows, as LLaVA does. Without padding both are the same.
        rounding: "float16" rounds the crops' tokens and newlines (not the thumbnail's) so, whatever
            the model's type, as released; "none" does not.
        positions: "renumbered" from 0 (released), or "original".
    """

    name = "globalcom2"
    title = "GlobalCom2"
    paper = "arXiv 2501.05179"
    where = "encoder, any-resolution"
    signal = "thumbnail sets each crop's share, CLS logits"
    needs = ("cls", "crops", "patches")
    before_llm = tiled = True
    presets = {"R25": {"retention_ratio": 0.25}, "R10": {"retention_ratio": 0.1}}

    retention_ratio: float = 0.25
    temperature: float = 10.0
    placement: Literal["released", "exact"] = "released"
    rounding: Literal["float16", "none"] = "float16"
    positions: Positions = "renumbered"

    @classmethod
    def from_average(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """The ratio tokens / num_patches; the crops' true share differs by picture."""
        return cls(retention_ratio=tokens / num_patches, **options)

    def check(self, geometry: Geometry) -> None:
        """Refuse models without crops, and ratios that keep nothing."""
        super().check(geometry)
        least = 1 / geometry.num_patches
        if not least <= self.retention_ratio <= 1:
            raise ValueError(
                f"{self.name}: retention_ratio={self.retention_ratio}; give {least:.4f} to 1"
            )
        if self.temperature <= 0:
            raise ValueError(f"{self.name}: temperature={self.temperature}; give more than 0")

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """The nominal share in every layer; the true one differs by picture."""
        return [int(num_patches * self.retention_ratio)] * num_layers

    def scales(self, thumbnail: Tensor, grid: TileGrid) -> Tensor:
        """The share r_c of each crop that stays, [crops], from the thumbnail's scores [n]."""
        total = grid.crop_sums(thumbnail)
        weight = ((total - total.max()) / self.temperature).softmax(0) + 1e-8
        return (self.retention_ratio * (1 + weight - weight.mean())).clamp(max=1)

    def select(self, scores: Tensor, grid: TileGrid) -> list[Tensor]:
        """The patches that each tile keeps: the thumbnail's by falling score, the crops' rising.

        Args:
            scores: [1 + crops, n], see `scoring.cls_logits`, of the tower layer that reads the
                features (`EncoderView.following`).
        """
        side, (top, bottom, left, right) = grid.side, grid.content
        thumbnail = scores[0].view(1, 1, side, side)
        count = int(side * side * self.retention_ratio)
        kept = [scores[0].sort(descending=True, stable=True).indices[:count]]
        size = (bottom - top, right - left)
        stretched = interpolate(thumbnail, size, mode="bilinear", align_corners=False)[0, 0]
        parts = [grid.valid(crop) for crop in range(grid.crops)]
        cells = torch.tensor([(r1 - r0) * (c1 - c0) for r0, r1, c0, c1 in parts])
        counts = (cells.to(scores.device) * self.scales(scores[0], grid)).long().tolist()
        for crop, (r0, r1, c0, c1) in enumerate(parts):
            y, x = crop // grid.columns * side - top, crop % grid.columns * side - left
            local = scores[crop + 1].view(side, side)[r0:r1, c0:c1].flatten()
            shown = stretched[y + r0 : y + r1, x + c0 : x + c1].flatten()
            score = normalize(local, dim=0) + normalize(shown, dim=0)
            order = score.sort(descending=True, stable=True).indices
            cell = order[: counts[crop]].sort().values
            kept.append((cell // (c1 - c0) + r0) * side + cell % (c1 - c0) + c0)
        return kept

    def pack(self, kept: list[Tensor], grid: TileGrid) -> Tensor:
        """The order: the thumbnail's tokens, then the crops' rows with newlines.

        Args:
            kept: as from `select`; slot s of a tile is its s-th token there.

        Returns: [M, 2] pairs (tile, slot), see `visiondrop.functional.anyres_layout`.
        """
        places, released = kept[1:], self.placement == "released"
        if released:
            windows = [grid.valid(crop) for crop in range(grid.crops)]
            places = [
                (p // grid.side - r0) * (c1 - c0) + p % grid.side - c0
                for p, (r0, _, c0, c1) in zip(places, windows, strict=True)
            ]
        newlines: Newlines = "grid" if released else "window"
        thumbnail = tile_order(0, torch.arange(kept[0].shape[0], device=kept[0].device))
        return torch.cat([thumbnail, row_order(places, grid, unpad=False, newlines=newlines)])

    def picture_stage(self, view: EncoderView, grid: TileGrid, tiles: Tiles) -> PictureChoice:
        """Select over all tiles, pack."""
        kept = self.select(cls_logits(*view.following, view.scale), grid)
        reductions = [
            keep_only(view.features[t : t + 1], view.sizes[t : t + 1], k[None] + 1)
            for t, k in enumerate(kept)
        ]
        return PictureChoice(reductions, self.pack(kept, grid), self.finish)

    def finish(self, tokens: list[Tensor], newline: Tensor) -> tuple[list[Tensor], Tensor]:
        """Decoder embeddings of the tiles [m, D'] and the newline [D'], rounded as released."""
        if self.rounding == "none":
            return tokens, newline
        crops = [tile.half().to(tile.dtype) for tile in tokens[1:]]
        return [*tokens[:1], *crops], newline.half().to(newline.dtype)
