"""What is measured: one picture of noise within a prompt of a given number of tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from visiondrop.functional.anyres_layout import TileGrid

__all__ = ["QUESTION", "Setting", "setting_of"]

QUESTION = "What is the brand of this camera?"
"""For methods that read the question with a text encoder of their own."""


class Setting:
    """A batch of equal prompts, and the sizes of one.

    Args:
        model: LLaVA-1.5 or LLaVA-NeXT, of transformers.
        text_tokens: all tokens of the prompt that are not visual, newlines of the picture among
            them; half of the words stand before the picture.
        size: (height, width) in pixels of an any-resolution picture.

    Attributes:
        patches: visual tokens of the picture; newlines: its newlines; tiles: its tiles.
    """

    def __init__(self, config: Any, text_tokens: int, size: tuple[int, int] | None = None):
        self.config, self.text_tokens = config, text_tokens
        vision = config.vision_config
        self.side = vision.image_size
        self.grid: TileGrid | None = None
        if config.model_type == "llava":
            self.patches, self.newlines, self.tiles = (self.side // vision.patch_size) ** 2, 0, 1
        elif config.model_type == "llava_next":
            self.grid = _grid(config, size or (2 * self.side, 2 * self.side))
            self.patches, self.tiles = self.grid.patches, self.grid.tiles
            self.newlines = self.grid.unpruned - self.grid.patches
        else:
            raise ValueError(
                f"a {config.model_type!r} model cannot be profiled: LLaVA-1.5 ('llava') and "
                "LLaVA-NeXT ('llava_next') can"
            )
        if text_tokens <= self.newlines:
            raise ValueError(
                f"{text_tokens} text tokens: the picture's newlines alone are {self.newlines}; at "
                f"least {self.newlines + 1} are needed"
            )

    def inputs(self, model: Any, batch: int = 1) -> dict[str, Any]:
        """For the model's forward or `generate`, on its device."""
        generator = torch.Generator().manual_seed(0)
        image, words = self.config.image_token_id, self.text_tokens - self.newlines
        visual = torch.full((self.patches + self.newlines,), image)
        vocabulary = self.config.text_config.vocab_size
        text = torch.randint(vocabulary - 1, (words,), generator=generator)
        text = text + (text >= image)  # any token but the placeholder
        row = torch.cat([text[: words // 2], visual, text[words // 2 :]])
        ids = row.repeat(batch, 1).to(model.device)
        shape = (batch, 3, self.side, self.side)
        if self.grid is not None:
            shape = (batch, self.tiles, 3, self.side, self.side)  # type: ignore[assignment]
        pixels = torch.randn(shape, generator=generator).to(model.device, model.dtype)
        out = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
        if self.grid is not None:
            width, height = self.grid.original
            out["image_sizes"] = torch.tensor([[height, width]] * batch)
        return out

    def options(self, batch: int = 1) -> dict[str, Any]:
        """Of `method(model, ...)`: names of the pictures, so that none is hashed, and questions."""
        return {"keys": [f"picture {i}" for i in range(batch)], "questions": [QUESTION] * batch}


def setting_of(
    config: Any, text_tokens: int | None = None, size: tuple[int, int] | None = None
) -> Setting:
    """With 66 text tokens by default, 113 with any-resolution pictures (48 of them newlines)."""
    usual = 113 if config.model_type == "llava_next" else 66
    return Setting(config, usual if text_tokens is None else text_tokens, size)


def _grid(config: Any, size: tuple[int, int]) -> TileGrid:
    vision = config.vision_config
    tile, (height, width) = vision.image_size, size
    rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, tile)
    return TileGrid(rows, columns, (width, height), tile // vision.patch_size)
