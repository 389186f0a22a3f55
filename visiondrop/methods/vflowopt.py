"""VFlowOpt: attention and patch entropy, recycling, ratios found by search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.budgets import check_layers, stepwise
from visiondrop.functional.calibration import calibrated_attention
from visiondrop.functional.patches import CLIP_MEAN, CLIP_STD, cells, grey_entropy
from visiondrop.functional.ratios import RELEASED, released_shape
from visiondrop.functional.recycling import prune_lowest
from visiondrop.merging import Reduction
from visiondrop.reducer import Positions, Reducer
from visiondrop.views import DecoderView, ProjectedView


@dataclass
class VFlowOpt(Reducer):
    """VFlowOpt (Yang et al., ICCV 2025, arXiv 2508.05211), training-free.

    importance = attention + alpha * softmax(entropy) over a picture's n patches. Attention: mean
    over heads and over the *calibrating* tokens, those that receive more than t times the mean
    attention in the tower layer that makes the features (the one that receives most always
    calibrates). Entropy: of the grey levels within each patch, in bits.

    Before the LLM the most important stay and the others are recycled: those of one cell of a grid
    x grid coarse raster become their mean, weighted by importance, at the place of the most
    important of them, whose importance it keeps. Inside the LLM the least important are dropped, by
    the same importance. Positions are numbered anew at the LLM's entry and kept inside it.

    The number of tokens is exact here (the released code keeps a count and adds one token for each
    cell in use). Written from the paper and from what its released code does on LLaVA-OneVision;
    checked against a loop of our own, not against figures of that code. Entropy is of the picture's
    own grey levels, where that code takes those of normalised pixels cast to 8 bits.

    Args:
        ratios: share of what arrives that stays: before the LLM, then before each of `layers`.
        layers: decoder layers with a stage, (10, 20) of 32.
        t: calibration threshold, times the mean attention.
        alpha: weight of entropy; the released settings have 0, the search tries -1 to 1.
        grid: side of a recycling cell in patches, need not be whole.
        recycle: "encoder" (released), "all" (inside the LLM too), or "none".
        image_mean, image_std: how the pictures were normalised (CLIP's; SigLIP: 0.5 each).
        positions: "original" or "renumbered" inside the LLM.
    """

    name = "vflowopt"
    title = "VFlowOpt"
    paper = "arXiv 2508.05211"
    where = "before the LLM + inside it"
    signal = "calibrated attention + patch entropy, recycling, searched ratios"
    before_llm = True
    needs = ("patches",)
    before = "projected"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"{share:.0%}": dict(setting) for share, setting in RELEASED.items()
    }

    ratios: tuple[float, ...] = RELEASED[0.25]["ratios"]
    layers: tuple[int, ...] = (10, 20)
    t: float = RELEASED[0.25]["t"]
    alpha: float = 0.0
    grid: float = RELEASED[0.25]["grid"]
    recycle: Literal["encoder", "all", "none"] = "encoder"
    image_mean: Sequence[float] = CLIP_MEAN
    image_std: Sequence[float] = CLIP_STD
    positions: Positions = "original"

    def __post_init__(self) -> None:
        self.ratios, self.layers = tuple(self.ratios), tuple(self.layers)
        self.image_mean, self.image_std = tuple(self.image_mean), tuple(self.image_std)

    @property
    def inside_llm(self) -> bool:  # type: ignore[override]
        """Whether there is a stage inside the LLM."""
        return bool(self.layers)

    @property
    def entry_positions(self) -> Positions:
        """Those of a shorter input."""
        return "renumbered"

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
        """The released setting that keeps the nearest share of tokens, with ratios of that mean
        over the decoder layers (`ratios.released_shape`), off by half a token at most. Ratios that
        are given (from a search) must have that mean.
        """
        if "ratios" not in options:
            layers = options.pop("layers", None)
            options = {**released_shape(tokens, num_layers, num_patches, layers), **options}
        method = cls(**options)
        mean = method.mean_tokens(num_layers, num_patches)
        if abs(mean - tokens) > 0.5:
            raise ValueError(
                f"vflowopt: an average of {tokens} and ratios that have another, {mean:.2f}, were "
                "given; give one of them"
            )
        return method

    def counts(self, num_patches: int) -> list[int]:
        """Tokens left by each stage."""
        out = [num_patches]
        for ratio in self.ratios:
            out.append(out[-1] - round(out[-1] * (1 - ratio)))
        return out[1:]

    def check(self, geometry: Geometry) -> None:
        """Refuse impossible stages, and budgets below one token a cell."""
        super().check(geometry)
        check_layers(self.layers, geometry.num_layers, "a stage of vflowopt")
        if len(self.ratios) != len(self.layers) + 1:
            raise ValueError(
                f"vflowopt: {len(self.ratios)} ratios for one stage before the LLM and "
                f"{len(self.layers)} inside it; give {len(self.layers) + 1}"
            )
        counts = self.counts(geometry.num_patches)
        if bad := [r for r, n in zip(self.ratios, counts, strict=True) if n < 1 or r > 1]:
            raise ValueError(
                f"vflowopt: ratio {bad[0]}; a ratio is at most 1 and leaves one token at least"
            )
        if self.t < 0 or self.grid < 1:
            raise ValueError(f"vflowopt: t={self.t}, grid={self.grid}; need t >= 0 and grid >= 1")
        recycling = counts if self.recycle == "all" else counts[: int(self.recycle == "encoder")]
        least = cells(geometry.grid, self.grid)[1]
        if recycling and min(recycling) < least:
            raise ValueError(
                f"vflowopt: {min(recycling)} tokens are to be left where recycling in cells of "
                f"{self.grid:g} x {self.grid:g} patches leaves {least} at least; give a larger "
                "grid, larger ratios, or recycle='none'"
            )

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Visual tokens per decoder layer."""
        enter, *later = self.counts(num_patches)
        return stepwise(self.layers, later, num_layers, enter)

    def importance(self, view: ProjectedView) -> Tensor:
        """[G, n], attention + alpha * softmax(entropy)."""
        tower = view.tower
        attention = calibrated_attention(tower.query, tower.key, tower.scale, self.t)
        attention = attention[:, int(tower.has_cls) :]
        if self.alpha == 0:
            return attention
        assert view.pixels is not None
        entropy = grey_entropy(view.pixels, view.grid, self.image_mean, self.image_std)
        return attention + self.alpha * entropy.softmax(-1).to(attention.dtype)

    def projected_stage(self, view: ProjectedView) -> Reduction:
        """Keep the most important, recycle the others."""
        importance = self.importance(view)
        left = self.counts(importance.shape[1])[0]
        recycling = cells(view.grid, self.grid) if self.recycle != "none" else None
        return prune_lowest(view.features, view.sizes, importance, left, recycling)

    def llm_layers(self) -> tuple[int, ...]:
        """The layers with a stage."""
        return self.layers

    def llm_stage(self, view: DecoderView) -> Reduction:
        """Drop the least important, by the importance that came with the tokens."""
        assert view.score is not None
        left = self.counts(view.grid[0] * view.grid[1])[1 + self.layers.index(view.layer)]
        score = view.score.to(view.hidden.device)
        recycling = None
        if self.recycle == "all":
            cell, number = cells(view.grid, self.grid)
            recycling = cell.to(view.identity.device)[view.identity], number
        return prune_lowest(view.hidden, view.sizes, score, left, recycling)
