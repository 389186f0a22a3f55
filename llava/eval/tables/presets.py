"""Sizes of published models, for what can be counted without their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visiondrop.adapters import Geometry
from visiondrop.profiling.flops import ModelSize


@dataclass(frozen=True)
class Preset:
    """A published model as the efficiency table needs it.

    Attributes:
        published_model: its name in ``published.csv``.
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


VICUNA_7B = ModelSize(
    vision_layers=24,
    vision_layers_read=23,
    vision_width=1024,
    vision_mlp_width=4096,
    num_patches=576,
    patch_values=588,
    has_cls=True,
    projector_in=1024,
    num_layers=32,
    width=4096,
    mlp_width=11008,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    vocab_size=32000,
)

PRESETS = (
    Preset("llava-1.5-7b", "llava-v1.5-7b", VICUNA_7B, 576, 66, 1, (192, 128, 64, 32)),
    Preset("llava-next-7b", "llava-next-7b", VICUNA_7B, 2880, 113, 5, (640, 320, 160)),
)
