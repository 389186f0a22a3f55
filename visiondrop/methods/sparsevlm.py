"""SparseVLM: visual tokens judged by the words of the prompt that matter, the dropped recycled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.functional.density_peaks import golden_ratio_noise, recycle, seeded_noise
from visiondrop.functional.text_rating import rated_by_text, text_raters
from visiondrop.merging import Reduction
from visiondrop.methods.drops import ListedDrops
from visiondrop.reducer import Positions, Reductions
from visiondrop.tiles import Tiles
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
    counts, which `adaptive` switches on. It takes three full layers for two, and leaves merged
    tokens out: "192" has mean 206.5.

    Args:
        layers: `pruning_loc`: the decoder layers whose output is pruned.
        tokens: how many visual tokens are kept after each, merged ones not counted.
        noise: what breaks ties of density: "golden-ratio" (a fixed sequence), "zero", or "random"
            (as released, but seeded by the sample's key).
        adaptive: lambda of the paper (above 0, at most 1): int(lambda (n - rank)) tokens are
            dropped instead, the rank being that of the raters' attention to the visual tokens, mean
            over heads. Counts then differ by picture, and the ledger is an upper bound. Written
            from the paper; the released code has no such thing.
        positions: "renumbered" (released) or "original" (a merged token takes its centre's).
    """

    name = "sparsevlm"
    title = "SparseVLM"
    paper = "arXiv 2410.04417"
    where = "LLM layers 2, 6, 15"
    signal = "text raters, recycling"
    reads_text = looks_back = uses_input = reads_keys = tiled = True
    tiles = Tiles(newlines="pool")
    official = LAYERS
    counted_by = ("tokens", "adaptive")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "192": {"layers": LAYERS, "tokens": (300, 200, 110)},
        "128": {"layers": LAYERS, "tokens": (303, 110, 36)},
        "96": {"layers": LAYERS, "tokens": (238, 48, 26)},
        "64": {"layers": LAYERS, "tokens": (66, 30, 17)},
    }

    layers: tuple[int, ...] = LAYERS
    tokens: tuple[int, ...] = (300, 200, 110)
    noise: Literal["golden-ratio", "zero", "random"] = "golden-ratio"
    adaptive: float | None = None
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

    def check(self, geometry: Geometry) -> None:
        """Refuse impossible layers, counts or shares."""
        super().check(geometry)
        if self.adaptive is not None and not 0 < self.adaptive <= 1:
            raise ValueError(f"sparsevlm: adaptive={self.adaptive}; give above 0 and at most 1")

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Kept and merged tokens, by layer; every token where counts are adaptive."""
        if self.adaptive is not None:
            return [num_patches] * num_layers
        return super().ledger(num_layers, num_patches, has_cls)

    def llm_stage(self, view: DecoderView) -> Reductions:
        """Let the raters score, keep, recycle; a lone token stays."""
        n = view.hidden.shape[1]
        if n < 2:
            return None
        raters = text_raters(view.input_visual, view.input_text)
        attention = view.last.rows(view.text_places)[..., view.start : view.end]
        scores = rated_by_text(attention, raters)
        ranked = scores.sort(dim=-1, descending=True, stable=True).indices
        if self.adaptive is None:
            return self.keep(view, slice(None), ranked, self.kept(view.layer - 1, n))
        # Counts that depend on the picture have to be read back.
        ranks = torch.linalg.matrix_rank(attention.mean(1) * raters[..., None]).tolist()
        drops = [int(self.adaptive * (n - rank)) for rank in ranks]
        return [
            self.keep(view, slice(g, g + 1), ranked, n - drop) if drop > 0 else None
            for g, drop in enumerate(drops)
        ]

    def keep(self, view: DecoderView, rows: slice, ranked: Tensor, kept: int) -> Reduction:
        """The `kept` best of `ranked` [G, n] and the clusters, of the pictures in `rows`."""
        candidates, clusters = self.recycled(ranked.shape[1] - kept)
        noise = self.tie_break(view, candidates)
        if noise is not None and noise.dim() > 1:
            noise = noise[rows]
        tokens, sizes = view.hidden[rows], view.sizes[rows]
        return recycle(tokens, sizes, ranked[rows], kept, candidates, clusters, noise)

    def tie_break(self, view: DecoderView, n: int) -> Tensor | None:
        """[n] or [G, n] noise for the densities of n candidates."""
        if self.noise == "random":
            seeds = [f"{view.layer}/{key}" for key in view.keys]
            return seeded_noise(n, seeds, view.hidden.device)
        return golden_ratio_noise(n, view.hidden.device) if self.noise != "zero" else None
