"""FasterVLM: the patches that CLS attends to most."""

from __future__ import annotations

from dataclasses import dataclass

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

    Any-resolution pictures, as released (`on_tiles(**FasterVLM.released_tiles)`): every tile, the
    thumbnail included, keeps its own best `tokens`; the merge type is fixed to "spatial", so that
    nothing is unpadded and no newline is sent. Its unused branch for "spatial_unpad" has
    newlines="pool", padding="lost".

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
    tiled = True
    released_tiles = {"budget": "tile", "share": "equal", "newlines": "none", "padding": "shown"}
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
