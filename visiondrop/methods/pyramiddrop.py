"""PyramidDrop: stage by stage, the visual tokens that the last instruction token looks at; or the
same stages with another score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

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
from visiondrop.methods.controls import evenly, permutation
from visiondrop.reducer import Positions, Reducer
from visiondrop.scoring import CausalCorrection, column_mean, top_tokens
from visiondrop.tiles import Tiles
from visiondrop.transfer import to_device
from visiondrop.views import DecoderView

Score = Literal["text", "all_text", "visual", "visual_corrected", "random", "uniform"]
"""Who judges the visual tokens at PyramidDrop's stages."""

CORRECTIONS: Mapping[str, CausalCorrection] = {"visual": "off", "visual_corrected": "expectation"}


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
        score: whose attention, before each stage, ranks what is left. "text" (released): that of
            the prompt's last token. "all_text": of all text tokens after the picture, their mean
            (of the last token where the prompt ends with the picture). "visual": of the visual
            tokens themselves, as in VisionDrop's LLM stage (`scoring.column_mean`);
            "visual_corrected": the same, each column divided by what causality leaves it under
            uniform attention. Two controls: "random" (an independent draw at each stage, seeded by
            `seed`, layer and sample key) and "uniform" (evenly spaced among what is left).
        seed: of the draws of score="random", and without meaning otherwise.
    """

    name = "pyramiddrop"
    title = "PyramidDrop"
    paper = "arXiv 2410.17247"
    where = "LLM 1/4, 1/2, 3/4"
    signal = "last instruction token"
    inside_llm = True
    tiled = True
    tiles = Tiles(newlines="pool")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"layers": (8, 16, 24), "ratios": (0.5, 0.25, 0.125)},
    }

    layers: tuple[int, ...] = (8, 16, 24)
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    positions: Positions = "renumbered"
    score: Score = "text"
    seed: int = 0

    def __post_init__(self) -> None:
        self.layers, self.ratios = tuple(self.layers), tuple(self.ratios)

    @property
    def reads_text(self) -> bool:  # type: ignore[override]
        """Only where the text judges: other scores know nothing behind the picture."""
        return self.score in ("text", "all_text")

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Only with score="random"."""
        return self.score == "random"

    @property
    def seeded(self) -> bool:  # type: ignore[override]
        """Where it draws."""
        return self.draws

    @property
    def reads_keys(self) -> bool:
        """Where it draws."""
        return self.draws

    def to_dict(self) -> dict[str, Any]:
        """For JSON. What is as released, or without meaning, is left out: answers on disk are known
        by this, those from before there was a choice too.
        """
        out = super().to_dict()
        if not self.draws:
            out.pop("seed")
        if self.score == "text":
            out.pop("score")
        return out

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
        if self.score not in get_args(Score):
            known = ", ".join(map(repr, get_args(Score)))
            raise ValueError(f"pyramiddrop: score={self.score!r}; possible: {known}")
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
        """Keep the best; skipped where no more are left."""
        kept = int(view.full * self.ratios[self.layers.index(view.layer)])
        if not 0 < kept < view.hidden.shape[1]:
            return None
        return keep_only(view.hidden, view.sizes, self.choose(view, kept))

    def choose(self, view: DecoderView, kept: int) -> Tensor:
        """[G, kept], places among the visual tokens of what stays, rising."""
        pictures, n = view.hidden.shape[:2]
        if self.score == "random":
            drawn = [
                permutation(f"{self.seed}/{view.layer}/{key}", n)[:kept].sort().values
                for key in view.keys
            ]
            return torch.stack(drawn).to(view.hidden.device)
        if self.score == "uniform":
            places = to_device(torch.tensor(evenly(kept, n)), view.hidden.device)
            return places.expand(pictures, -1)
        return top_tokens(self.scores(view), kept)

    def scores(self, view: DecoderView) -> Tensor:
        """[G, n] in float32, the attention that the n visual tokens get, mean over heads and over
        the rows that `score` names.
        """
        if self.score in CORRECTIONS:
            correction = CORRECTIONS[self.score]
            return column_mean(
                view.query, view.key, view.scale, correction=correction, places=view.places
            )
        last = to_device(torch.tensor([view.length - 1]), view.hidden.device)
        every = self.score == "all_text" and len(view.text_places) > 0
        row = view.this.mean_row(view.text_places if every else last)
        return row[:, view.start : view.end]
