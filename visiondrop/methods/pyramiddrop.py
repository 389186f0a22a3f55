"""PyramidDrop: stage by stage, the visual tokens that the last instruction token looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from visiondrop.adapters.base import Geometry
from visiondrop.budgets import (
    check_layers,
    geometric_drops,
    ratio_of,
    refuse_options,
    scaled_layers,
    stepwise,
)
from visiondrop.merging import Reduction, keep_only
from visiondrop.reducer import Positions, Reducer
from visiondrop.scoring import top_tokens
from visiondrop.tiles import Tiles
from visiondrop.views import DecoderView


@dataclass
class PyramidDrop(Reducer):
    """PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247).

    Before layer l of `layers` the visual tokens are ranked with that layer's own input norm, query
    and key projections at the present positions: the attention of the prompt's last token to them,
    softmax over the whole row, mean over heads. int(N ratio) stay, N being the picture's tokens
    before any drop; in their order, nothing merged, positions numbered anew. Newlines of an
    any-resolution picture are tokens like others (released).

    Args:
        layers: `layer_list`, decoder layers before which a stage acts.
        ratios: `image_token_ratio_list`, the share of all N tokens that stays from each on.
        positions: "renumbered" (released) or "original".
    """

    name = "pyramiddrop"
    title = "PyramidDrop"
    paper = "arXiv 2410.17247"
    where = "LLM 1/4, 1/2, 3/4"
    signal = "last instruction token"
    inside_llm = True
    reads_text = tiled = True
    tiles = Tiles(newlines="pool")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"layers": (8, 16, 24), "ratios": (0.5, 0.25, 0.125)},
    }

    layers: tuple[int, ...] = (8, 16, 24)
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    positions: Positions = "renumbered"

    def __post_init__(self) -> None:
        self.layers, self.ratios = tuple(self.layers), tuple(self.ratios)

    @classmethod
    def from_average(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> PyramidDrop:
        """Stages at 1/4, 1/2, 3/4 of the depth that each keep the same share of what they find, as
        the official halves do (`budgets.geometric_drops`). The paper counts true means, so this is
        its nominal count too.
        """
        refuse_options(options, ("ratios",), cls.name)
        layers, counts = geometric_drops(
            tokens,
            scaled_layers((8, 16, 24), num_layers),
            num_layers,
            num_patches,
            given=options.pop("layers", None),
            name=cls.name,
        )
        ratios = tuple(ratio_of(count, num_patches) for count in counts)
        return cls(layers=layers, ratios=ratios, **options)

    def check(self, geometry: Geometry) -> None:
        """Refuse impossible layers or shares."""
        super().check(geometry)
        check_layers(self.layers, geometry.num_layers, "a PyramidDrop stage")
        if len(self.ratios) != len(self.layers):
            raise ValueError(
                f"pyramiddrop has {len(self.layers)} layers and {len(self.ratios)} ratios; give "
                "one ratio for each layer"
            )
        for ratio in self.ratios:
            if not (0 < ratio <= 1 and int(geometry.num_patches * ratio) >= 1):
                raise ValueError(
                    f"pyramiddrop: ratio {ratio} keeps int({geometry.num_patches} x {ratio}) "
                    f"tokens; ratios from 1/{geometry.num_patches} to 1 keep at least one"
                )

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """int(N ratio) tokens from each stage on."""
        counts = [int(num_patches * ratio) for ratio in self.ratios]
        return stepwise(self.layers, counts, num_layers, num_patches)

    def llm_layers(self) -> tuple[int, ...]:
        """The layers with a stage."""
        return self.layers

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Keep what the last token of the prompt looks at; skipped where no more are left."""
        kept = int(view.full * self.ratios[self.layers.index(view.layer)])
        if not 0 < kept < view.hidden.shape[1]:
            return None
        row = view.this.rows([view.length - 1])[:, :, 0].mean(1)
        scores = row[:, view.start : view.end]
        return keep_only(view.hidden, view.sizes, top_tokens(scores, kept))
