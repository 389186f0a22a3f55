"""FastV: after layer K, the visual tokens that the last token of the prompt looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.drops import OneDrop
from visiondrop.reducer import Positions
from visiondrop.scoring import top_tokens
from visiondrop.tiles import Tiles
from visiondrop.views import DecoderView


@dataclass
class FastV(OneDrop):
    """FastV (Chen et al., ECCV 2024, arXiv 2403.06764).

    Layers 0..K-1 see everything. Score of a visual token: attention of layer K - 1 from the
    prompt's last token to it, softmax over the whole row, mean over heads. The best stay, in their
    order and at their positions; the rest is dropped before layer K. Chosen once, at prefill, as in
    the authors' KV-cache code (`fastv_kvcache.py`); their first code, without a cache, prunes anew
    for every generated token.

    Args:
        layer: K, the decoder layer before which tokens are dropped, at least 1.
        ratio: R, the share of the picture's tokens that is dropped: round(N (1 - R)) stay.
        tokens: how many stay (`fast_v_attention_rank`), instead of `ratio`.
        positions: "original" (released) or "renumbered".
    """

    name = "fastv"
    title = "FastV"
    paper = "arXiv 2403.06764"
    where = "LLM layer K"
    signal = "last token's attention"
    reads_text = looks_back = tiled = True
    tiles = Tiles(newlines="pool")
    counted_by = ("ratio", "tokens")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "K2_R50": {"layer": 2, "ratio": 0.5},
        "K2_R75": {"layer": 2, "ratio": 0.75},
        "lmms-eval_K3": {"layer": 3, "ratio": 0.5},
        "192": {"layer": 2, "tokens": 192},
        "128": {"layer": 2, "tokens": 128},
        "64": {"layer": 2, "tokens": 64},
    }

    layer: int = 2
    ratio: float = 0.5
    tokens: int | None = None
    positions: Positions = "original"

    def kept(self, total: int) -> int:
        """How many of a picture's `total` tokens stay."""
        return round(total * (1 - self.ratio)) if self.tokens is None else self.tokens

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Keep what the last token looks at; skipped where no more are left."""
        kept = self.kept(view.full)
        if kept >= view.hidden.shape[1]:
            return None
        row = view.last.rows([view.length - 1])[:, :, 0].mean(1)
        scores = row[:, view.start : view.end]
        return keep_only(view.hidden, view.sizes, top_tokens(scores, kept))
