"""Tokens of given boxes dropped, kept alone, or masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from visiondrop.adapters.base import Geometry
from visiondrop.functional.patches import box_patches
from visiondrop.merging import Reduction, keep_only
from visiondrop.reducer import Positions, Reducer
from visiondrop.scoring import wide
from visiondrop.views import ProjectedView

Boxes = Sequence[Sequence[float]]


@dataclass
class Region(Reducer):
    """Drop, keep or mask the visual tokens of boxes, as in masking of protected health information
    (arXiv 2511.18272: masking of vision tokens whose boxes are known beforehand).

    A patch belongs to a box that touches it. "drop" takes its tokens out of the sequence, "keep"
    all others; "mask" leaves every token in place and replaces those of the boxes by zeros or by
    the mean of the picture's other tokens, so that the length of the sequence tells nothing.

    What this cannot do: the vision tower has let patches attend to one another before, so tokens
    outside a box may still know of it, and the LLM may guess from context; that paper measures
    42.9 % of the identifiers hidden at best. To hide pixels from the model, paint over them.

    Written from that idea; there is no released code of it that it was compared with. How many
    tokens stay depends on the boxes; the ledger is the upper bound.

    Args:
        boxes: (x0, y0, x1, y1) each, fractions 0 .. 1 of the picture as the model sees it (after
            padding; see `pad_boxes`), one list for all pictures or one by sample key. An empty list
            leaves a picture alone ("keep" refuses it).
        mode: "drop", "keep" or "mask".
        fill: of "mask": "zero" (the embedding becomes 0) or "mean".
        radius: widen the boxes by so many patches to all sides.
        positions: "original" or "renumbered" from 0.
    """

    name = "region"
    title = "Region masking"
    paper = "arXiv 2511.18272"
    where = "before the LLM"
    signal = "boxes that are given"
    reads_keys = True
    before_llm = True
    before = "projected"

    boxes: Boxes | Mapping[str, Boxes] = field(default_factory=list)
    mode: Literal["drop", "keep", "mask"] = "drop"
    fill: Literal["zero", "mean"] = "zero"
    radius: int = 0
    positions: Positions = "original"

    def __post_init__(self) -> None:
        if isinstance(self.boxes, Mapping):
            self.boxes = {key: _tuples(boxes) for key, boxes in self.boxes.items()}
        else:
            self.boxes = _tuples(self.boxes)

    def check(self, geometry: Geometry) -> None:
        """Refuse boxes that are none."""
        super().check(geometry)
        lists = self.boxes.values() if isinstance(self.boxes, Mapping) else [self.boxes]
        for box in (box for boxes in lists for box in boxes):
            if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
                raise ValueError(
                    f"region: box {list(box)}; a box is (x0, y0, x1, y1) in fractions of the "
                    "picture, 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
                )
        if self.radius < 0:
            raise ValueError(f"region: radius={self.radius}; give 0 or more patches")

    def boxes_of(self, key: str) -> Boxes:
        """Those of a sample. Raises `ValueError` where a mapping has none for it."""
        if not isinstance(self.boxes, Mapping):
            return self.boxes
        if key not in self.boxes:
            raise ValueError(
                f"region: no boxes for sample key {key!r}; name the samples (trace.set_keys) and "
                "give [] for a picture that has none"
            )
        return self.boxes[key]

    def projected_stage(self, view: ProjectedView) -> list[Reduction | None]:
        """Picture by picture."""
        return [self.reduce(view, g, self.boxes_of(key)) for g, key in enumerate(view.keys)]

    def reduce(self, view: ProjectedView, g: int, boxes: Boxes) -> Reduction | None:
        """Of picture `g`. The boxes are on the host, and so is everything about places."""
        features, sizes = view.features[g : g + 1], view.sizes[g : g + 1]
        inside = box_patches(boxes, view.grid, radius=self.radius)
        everything = torch.arange(len(inside), device=features.device)[None]
        if self.mode == "mask":
            chosen = inside.to(features.device)[None, :, None]
            others = wide(features).masked_fill(chosen, 0).sum(1, keepdim=True)
            mean = others / max(1, int((~inside).sum()))
            blank = torch.zeros_like(mean) if self.fill == "zero" else mean
            masked = torch.where(chosen, blank.to(features.dtype), features)
            plain = torch.zeros_like(everything, dtype=torch.bool)
            return Reduction(masked, everything, everything, sizes, plain)
        stays = inside if self.mode == "keep" else ~inside
        if not bool(stays.any()):
            raise ValueError(
                f"region: mode={self.mode!r} leaves nothing of the picture of sample "
                f"{view.keys[g]!r}; its boxes cover {int(inside.sum())} of {len(inside)} patches"
            )
        return keep_only(features, sizes, stays.nonzero().T.to(features.device))


def _tuples(boxes: Boxes) -> list[tuple[float, ...]]:
    return [tuple(box) for box in boxes]


def pad_boxes(boxes: Boxes, width: int, height: int) -> list[tuple[float, float, float, float]]:
    """Boxes in fractions of a `width` x `height` picture to fractions of the square that LLaVA pads
    it to (the picture stands in the middle, in whole pixels).
    """
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return [
        (
            (left + x0 * width) / side,
            (top + y0 * height) / side,
            (left + x1 * width) / side,
            (top + y1 * height) / side,
        )
        for x0, y0, x1, y1 in boxes
    ]
