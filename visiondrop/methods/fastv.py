"""FastV: after layer K, the visual tokens that the last token of the prompt looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from visiondrop.adapters.base import Geometry
from visiondrop.budgets import (
    check_layers,
    refuse_options,
    scaled_layers,
    single_drop,
    stepwise,
)
from visiondrop.merging import Reduction, keep_only
from visiondrop.reducer import Positions, Reducer
from visiondrop.scoring import top_tokens
from visiondrop.views import DecoderView


@dataclass
class FastV(Reducer):
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
    inside_llm = True
    reads_text = True
    looks_back = True
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

    @classmethod
    def from_average(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> FastV:
        """K = 2 of 32 layers, or less where the mean needs it (see `budgets.single_drop`)."""
        refuse_options(options, ("ratio", "tokens"), cls.name)
        layer, kept = single_drop(
            tokens,
            scaled_layers((2,), num_layers)[0],
            num_layers,
            num_patches,
            given=options.pop("layer", None),
            name=cls.name,
        )
        return cls(layer=layer, tokens=kept, **options)

    @classmethod
    def from_nominal(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> FastV:
        """As papers count: `tokens` stay after layer K, the full layers before it left out."""
        refuse_options(options, ("ratio", "tokens"), cls.name)
        options.setdefault("layer", scaled_layers((2,), num_layers)[0])
        return cls(tokens=round(tokens), **options)

    def kept(self, total: int) -> int:
        """How many of a picture's `total` tokens stay."""
        return round(total * (1 - self.ratio)) if self.tokens is None else self.tokens

    def check(self, geometry: Geometry) -> None:
        """Refuse an impossible layer or count."""
        super().check(geometry)
        check_layers((self.layer,), geometry.num_layers, "FastV's drop")
        if not 1 <= self.kept(geometry.num_patches) <= geometry.num_patches:
            raise ValueError(
                f"fastv would keep {self.kept(geometry.num_patches)} tokens; a picture has "
                f"{geometry.num_patches}: keep 1 to that many (tokens=, or ratio=)"
            )

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Everything in layers 0..K-1, then what stays."""
        return stepwise((self.layer,), (self.kept(num_patches),), num_layers, num_patches)

    def llm_layers(self) -> tuple[int, ...]:
        """Before layer K."""
        return (self.layer,)

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Keep what the last token looks at."""
        kept = self.kept(view.full)
        if kept >= view.hidden.shape[1]:
            return None
        row = view.last.rows([view.length - 1])[:, :, 0].mean(1)
        scores = row[:, view.start : view.end]
        return keep_only(view.hidden, view.sizes, top_tokens(scores, kept))
