"""Average pooling, before the LLM or at one of its layers: LLaVolta's step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from visiondrop.adapters.base import Geometry
from visiondrop.budgets import check_average, refuse_options, scaled_layers, single_drop
from visiondrop.functional.pooling import average_windows, pooled_length
from visiondrop.merging import Reduction
from visiondrop.reducer import Positions, Reducer
from visiondrop.views import DecoderView, ProjectedView


@dataclass
class Pool(Reducer):
    """LLaVolta's visual context compressor (Chen et al., NeurIPS 2024, arXiv 2406.20092), as a
    training-free step.

    The picture's n hidden states [n, D] become AvgPool1d(stride) of them before decoder layer
    `layer`, and so do their position ids (averaged, then floored); text keeps its positions. A
    remainder is dropped, as `AvgPool1d` does. A stride that is not whole pools adaptively into
    round(n / stride) windows, so that any count can be met.

    Written from the paper and from what its released code does; checked against a loop of our own,
    not against figures of that code.

    Args:
        stride: tokens averaged into one (along each side of the grid for "2d").
        layer: decoder layer before which is pooled; 0 pools the projector's output. There the
            released code gives the LLM a shorter input, numbered anew: positions="renumbered".
        dims: "1d" in raster order (released) or "2d" windows of the patch grid.
        positions: "original" or "renumbered" from 0.
    """

    name = "pool"
    title = "Average pooling"
    paper = "arXiv 2406.20092"
    where = "before the LLM, or LLM layer K"
    signal = "none: the mean of neighbours"
    before = "projected"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "llavolta": {"stride": 8, "layer": 2},
        "before": {"stride": 8, "layer": 0, "positions": "renumbered"},
    }

    stride: float = 8
    layer: int = 2
    dims: Literal["1d", "2d"] = "1d"
    positions: Positions = "original"

    @property
    def before_llm(self) -> bool:  # type: ignore[override]
        """Whether the projector's output is pooled."""
        return self.layer == 0

    @property
    def inside_llm(self) -> bool:  # type: ignore[override]
        """Whether hidden states are pooled."""
        return self.layer > 0

    def tokens_left(self, num_patches: int, grid: tuple[int, int] | None = None) -> int:
        """Tokens of a picture after pooling; a square grid is taken where none is given."""
        if self.dims == "1d":
            return pooled_length(num_patches, self.stride)
        rows, columns = grid or (round(num_patches**0.5),) * 2
        return pooled_length(rows, self.stride) * pooled_length(columns, self.stride)

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
        """The stride that comes nearest to the average; what it reaches is in the ledger.

        Along the sequence every whole count is met, over the grid those of whole rows and columns.
        The layer is 2 of 32, or less where the mean needs it (see `budgets.single_drop`).
        """
        refuse_options(options, ("stride",), cls.name)
        given = options.pop("layer", None)
        layer, wanted = 0, float(tokens)
        check_average(tokens, num_patches)
        if given != 0:
            official = scaled_layers((cls.layer,), num_layers)[0]
            layer, wanted = single_drop(
                tokens, official, num_layers, num_patches, given=given, name=cls.name
            )
        power, side = 1, num_patches
        if options.get("dims", cls.dims) == "2d":
            power, side = 2, round(num_patches**0.5)
        count = min(range(1, side + 1), key=lambda c: abs(c**power - wanted))
        stride = side // count if side % count == 0 else side / count
        return cls(stride=stride, layer=layer, **options)

    @classmethod
    def from_nominal(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """`tokens` are left after the pooling, the full layers before it not counted."""
        layer = options.pop("layer", scaled_layers((cls.layer,), num_layers)[0])
        method = cls.from_average(
            tokens, num_layers=num_layers, num_patches=num_patches, layer=0, **options
        )
        return dataclasses.replace(method, layer=layer)

    def check(self, geometry: Geometry) -> None:
        """Refuse strides beyond the picture and layers that the decoder has not."""
        super().check(geometry)
        most = geometry.num_patches if self.dims == "1d" else min(geometry.grid)
        if not 1 <= self.stride <= most:
            raise ValueError(f"pool: stride={self.stride:g}; give 1 to {most} ({self.dims})")
        if not 0 <= self.layer < geometry.num_layers:
            raise ValueError(
                f"pool: layer={self.layer}; give 0 (before the LLM) or a decoder layer up to "
                f"{geometry.num_layers - 1}"
            )

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Full up to `layer`, pooled from there."""
        left = self.tokens_left(num_patches)
        return [num_patches] * self.layer + [left] * (num_layers - self.layer)

    def projected_stage(self, view: ProjectedView) -> Reduction:
        """Pool the projector's output."""
        grid = view.grid if self.dims == "2d" else None
        return average_windows(view.features, view.sizes, self.stride, grid)

    def llm_layers(self) -> tuple[int, ...]:
        """The one layer, if inside the LLM."""
        return (self.layer,) if self.inside_llm else ()

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Pool hidden states, unless there are fewer than a window holds."""
        count = view.hidden.shape[1]
        grid = view.grid if self.dims == "2d" else None
        if grid is not None and count != grid[0] * grid[1]:
            raise ValueError(
                f"pool: dims='2d' needs the whole grid of {grid[0]} x {grid[1]} tokens at layer "
                f"{view.layer}, {count} arrive; use dims='1d' after another method"
            )
        if grid is None and count < self.stride:
            return None
        return average_windows(view.hidden, view.sizes, self.stride, grid)
