"""Published models as the efficiency table needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visiondrop.adapters import Geometry
from visiondrop.profiling import LLAVA_15_7B, ModelSize


@dataclass(frozen=True)
class Preset:
    """A published model as the efficiency table needs it.

    Attributes:
        published_model: its name in ``published.csv``; "" where nothing is published.
        patches: visual tokens of an unpruned picture.
        text: other tokens of the sequence, as the VisionDrop paper's figures imply (LLaVA-NeXT's
            count its newline tokens).
        tiles: of one picture.
        tokens: the table's budgets.
    """

    name: str
    published_model: str
    size: ModelSize
    patches: int
    text: int
    tiles: int
    tokens: Sequence[int]

    @property
    def geometry(self) -> Geometry:
        """For budgets: a picture of several tiles counts as one of so many patches."""
        side = round(self.patches**0.5)
        grid = (side, side) if side * side == self.patches else (self.patches // 24, 24)
        return Geometry(self.size.num_layers, self.patches, True, grid)


POCKET_NEXT = ModelSize(
    vision_layers=7,
    vision_layers_read=6,
    vision_width=160,
    vision_mlp_width=480,
    num_patches=576,
    patch_values=588,
    has_cls=True,
    projector_in=160,
    num_layers=16,
    width=160,
    mlp_width=416,
    num_heads=4,
    num_kv_heads=4,
    head_dim=40,
    vocab_size=832,
)
"""The bundled any-resolution model, checkpoints/pocket-llava-next."""

PRESETS = (
    Preset("llava-1.5-7b", "llava-v1.5-7b", LLAVA_15_7B, 576, 66, 1, (192, 128, 64, 32)),
    Preset("llava-next-7b", "llava-next-7b", LLAVA_15_7B, 2880, 113, 5, (640, 320, 160)),
    # Its text: 48 newlines and the 55 tokens of a usual prompt of its TextVQA set.
    Preset("pocket-llava-next", "", POCKET_NEXT, 2880, 103, 5, (640, 320, 160)),
)
