"""Pictures whose tiles follow one another in the prompt, each whole, the thumbnail last (InternVL).

Nothing is unpadded and there are no newlines: token p of tile t has the id t * n + p with n tokens
a tile, which is its place in the unpruned picture, too (`TileRun.locate`).

How the crops lie is told by no input of the model. It is read off the pixels: the processor scales
one picture to the crops and to the thumbnail, so that the crops, put together rightly and scaled
down, look like the thumbnail.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from visiondrop.functional.anyres_layout import TileGrid

__all__ = ["TileRun", "arrangement"]


@dataclass(frozen=True)
class TileRun(TileGrid):
    """A picture of `rows` x `columns` crops, and a thumbnail behind them or none.

    Attributes:
        thumbnail: whether there is one.
    """

    thumbnail: bool = True

    @classmethod
    def of(cls, tiles: Tensor, side: int) -> TileRun:
        """How the `tiles` [T, 3, h, w] of a picture lie, each `side` x `side` tokens."""
        count, _, height, width = tiles.shape
        rows, columns = arrangement(tiles) if count > 1 else (1, 1)
        original = columns * width, rows * height
        return cls(rows, columns, original, side, "flat", thumbnail=count > 1)

    @property
    def tiles(self) -> int:
        """Crops, and the thumbnail."""
        return self.crops + int(self.thumbnail)

    @property
    def overview(self) -> int:
        """The tile that shows the whole picture."""
        return self.tiles - 1

    @property
    def unpruned(self) -> int:
        """Tokens of the picture in the unpruned model."""
        return self.tiles * self.side**2

    @property
    def window(self) -> tuple[int, int, int, int]:
        """All of the crops' token grid: there is no padding."""
        return 0, self.tokens[0], 0, self.tokens[1]

    def row_of(self, ids: Tensor) -> Tensor:
        """-1: no token has a newline."""
        return torch.full_like(ids, -1)

    def slots(self, ids: Tensor) -> Tensor:
        """Place of each token id in the unpruned sequence: the id itself."""
        return ids

    def shown(self, tile: int) -> tuple[int, int, int, int]:
        """All of it."""
        return 0, self.side, 0, self.side

    def importance(self, thumbnail: Tensor) -> Tensor:
        """As in `TileGrid`, in the order of the tiles here: the thumbnail last."""
        if not self.thumbnail:
            return torch.ones(1, dtype=torch.float64, device=thumbnail.device)
        return super().importance(thumbnail).roll(-1)


def arrangement(tiles: Tensor) -> tuple[int, int]:
    """(rows, columns) in which the crops look most like the thumbnail; among equals, fewest rows.

    Args:
        tiles: [T, 3, h, w] with T >= 2, the crops row by row and the thumbnail behind them.
    """
    crops, thumbnail = tiles[:-1], tiles[-1:].float()
    count, cells = len(crops), 32
    goal = interpolate(thumbnail, (cells, cells), mode="area")
    shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    errors = []
    for shape in shapes:
        grid = crops.float().unflatten(0, shape)
        mosaic = grid.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)[None]
        errors.append((interpolate(mosaic, (cells, cells), mode="area") - goal).square().mean())
    return shapes[int(torch.stack(errors).argmin())]
