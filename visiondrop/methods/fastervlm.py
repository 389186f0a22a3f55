"""FasterVLM: the patches that CLS attends to most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visiondrop.functional.anyres_layout import Newlines, TileGrid, row_order, tile_order
from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions
from visiondrop.scoring import top_tokens
from visiondrop.views import EncoderView


@dataclass
class FasterVLM(PictureBudget):
    """FasterVLM (Zhang et al., arXiv 2412.01818), training-free and text-free.

    score_j = mean over heads of softmax(q_CLS K^T / sqrt(d))_j in the layer that makes the
    features. The best `tokens` patches stay, in spatial order; CLS itself is not sent.

    Any-resolution pictures: every tile, the thumbnail included, keeps its own best `tokens`
    patches, and `pack` says in which order they enter the LLM. The mechanism does not run such
    pictures yet; selection and packing equal the released code's on ready tiles.

    Args:
        tokens: patches kept of a picture or tile (`visual_token_num` in the released code).
        positions: "renumbered" from 0 (released), or "original".
    """

    name = "fastervlm"
    title = "FasterVLM"
    paper = "arXiv 2412.01818"
    where = "encoder"
    signal = "CLS attention"
    needs = ("cls",)
    presets = {
        "R50": {"tokens": 288},
        "R75": {"tokens": 144},
        "R90": {"tokens": 58},
        "R95": {"tokens": 29},
        **{str(n): {"tokens": n} for n in (192, 128, 64)},
    }

    tokens: int = 64
    positions: Positions = "renumbered"

    def encoder_stage(self, view: EncoderView) -> Reduction:
        """Keep the best patches of G pictures (or tiles): [G, tokens, D]."""
        kept = top_tokens(view.cls_attention, self.tokens) + int(view.has_cls)
        return keep_only(view.features, view.sizes, kept)

    @staticmethod
    def pack(tiles: Reduction, grid: TileGrid, *, unpad: bool = False) -> Tensor:
        """The order of an any-resolution picture: the thumbnail's tokens, then the crops' rows.

        Args:
            tiles: `encoder_stage`'s outcome for T tiles, the thumbnail first.
            unpad: false as released, where the merge type is fixed to "spatial": no unpadding, no
                newline. True is the released code's unused branch for "spatial_unpad": what lies in
                the padding is lost, and a newline, which the budget does not count, closes every
                other row, also an empty one.

        Returns: [M, 2] pairs (tile, slot), see `visiondrop.functional.anyres_layout`.
        """
        places = tiles.source - 1
        thumbnail = tile_order(0, torch.arange(places.shape[1], device=places.device))
        newlines: Newlines = "window" if unpad else "none"
        rows = row_order(list(places[1:]), grid, unpad=unpad, newlines=newlines)
        return torch.cat([thumbnail, rows])
