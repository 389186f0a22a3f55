"""SparseVLM: visual tokens judged by the words of the prompt that matter, the dropped recycled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from visiondrop.density_peaks import golden_ratio_noise, recycle, seeded_noise
from visiondrop.merging import Reduction
from visiondrop.methods.drops import ListedDrops
from visiondrop.reducer import Positions
from visiondrop.text_rating import rated_by_text, text_raters
from visiondrop.views import DecoderView

LAYERS = (2, 6, 15)
"""`pruning_loc` for 32 decoder layers."""


@dataclass
class SparseVLM(ListedDrops):
    """SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417), version 1 of the released code.

    Text raters: the text tokens after the picture that softmax_text(V T^T), averaged over the
    visual tokens V, puts above average (on input embeddings, once). After each layer of `layers`:
    score = that layer's attention from the raters to a visual token, mean over heads and raters.
    min(tokens[i], n - 1) of n tokens stay in their order. Of the d dropped ones, the
    c = int(0.3 d) + 1 with the highest scores are clustered (`density_peaks.dpc_knn`) into
    int(c / 10) + 1 plain means, which stand behind the kept tokens and take part in what follows.

    The released code has fixed lists (`presets`, by RETAIN_TOKN) for the paper's rank-adaptive
    counts. It names three full layers two, and leaves merged tokens out: "192" has mean 206.5.

    Args:
        layers: `pruning_loc`: the decoder layers whose output is pruned.
        tokens: how many visual tokens are kept after each, merged ones not counted.
        noise: what breaks ties of density: "golden-ratio" (a fixed sequence), "zero", or "random"
            (as released, but seeded by the sample's key).
        positions: "renumbered" (released) or "original" (a merged token takes its centre's).
    """

    name = "sparsevlm"
    title = "SparseVLM"
    paper = "arXiv 2410.04417"
    where = "LLM layers 2, 6, 15"
    signal = "text raters, recycling"
    reads_text = looks_back = uses_input = True
    official = LAYERS
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "192": {"layers": LAYERS, "tokens": (300, 200, 110)},
        "128": {"layers": LAYERS, "tokens": (303, 110, 36)},
        "96": {"layers": LAYERS, "tokens": (238, 48, 26)},
        "64": {"layers": LAYERS, "tokens": (66, 30, 17)},
    }

    layers: tuple[int, ...] = LAYERS
    tokens: tuple[int, ...] = (300, 200, 110)
    noise: Literal["golden-ratio", "zero", "random"] = "golden-ratio"
    positions: Positions = "renumbered"

    @staticmethod
    def recycled(dropped: int) -> tuple[int, int]:
        """(candidates, clusters) among so many dropped tokens."""
        candidates = int(0.3 * dropped) + 1
        return candidates, int(candidates / 10) + 1

    @staticmethod
    def added(dropped: int) -> int:
        """A token for each cluster."""
        return SparseVLM.recycled(dropped)[1]

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Let the raters score, keep, recycle; a lone token stays."""
        n = view.hidden.shape[1]
        if n < 2:
            return None
        kept = self.kept(view.layer - 1, n)
        raters = text_raters(view.input_visual, view.input_text)
        scores = self.score(view, raters)
        ranked = scores.sort(dim=-1, descending=True, stable=True).indices
        candidates, clusters = self.recycled(n - kept)
        noise = self.tie_break(view, candidates)
        return recycle(view.hidden, view.sizes, ranked, kept, candidates, clusters, noise)

    def score(self, view: DecoderView, raters: Tensor) -> Tensor:
        """[G, n], attention of the raters [G, a] to the tokens in the layer that just ran."""
        rows = view.last.rows(view.text_places)
        return rated_by_text(rows[..., view.start : view.end], raters)

    def tie_break(self, view: DecoderView, n: int) -> Tensor | None:
        """[n] or [G, n] noise for the densities of n candidates."""
        if self.noise == "random":
            seeds = [f"{view.layer}/{key}" for key in view.keys]
            return seeded_noise(n, seeds, view.hidden.device)
        return golden_ratio_noise(n, view.hidden.device) if self.noise != "zero" else None
