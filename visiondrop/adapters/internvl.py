"""InternVL (HF port): InternViT, pixel shuffle, projector, Qwen2 or any Llama-like decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from visiondrop.adapters.base import Geometry, TowerOutput, layers_to_run
from visiondrop.adapters.internvit import run_internvit
from visiondrop.adapters.llava import LlavaAdapter

if TYPE_CHECKING:
    from visiondrop.encoder import Encoded, Encoding, Picture

MOST_TILES = 13
"""Of the largest picture: 12 crops, the processor's default, and the thumbnail."""


class InternVLAdapter(LlavaAdapter):
    """`transformers.InternVLForConditionalGeneration` and its subclasses.

    The pixel shuffle makes one token of 2 x 2 patches, so that CLS, whose attention judges, can be
    no token itself.
    """

    families = ("InternVLForConditionalGeneration",)

    def geometry(self, config: Any) -> Geometry:
        """Sizes from an `InternVLConfig`; `num_patches` and `grid` are tokens, of the largest
        picture and of a tile.
        """
        check_strategy(config.vision_feature_select_strategy)
        vision, index = config.vision_config, config.vision_feature_layer
        sides = zip(vision.image_size, vision.patch_size, strict=True)
        rows, columns = (int(size // patch * config.downsample_ratio) for size, patch in sides)
        return Geometry(
            num_layers=config.text_config.num_hidden_layers,
            num_patches=MOST_TILES * rows * columns,
            has_cls=False,
            grid=(rows, columns),
            crops=True,
            tower_layers=(
                layers_to_run(index, vision.num_hidden_layers) if isinstance(index, int) else 0
            ),
            tower_width=vision.hidden_size,
            cls_attention=True,
            merged=True,
            single=True,
        )

    def encode(self, model: nn.Module, pixel_values: Tensor, **kwargs: Any) -> TowerOutput:
        """Run InternViT up to the layer that is read; hidden state -1 is the one with its norm."""
        tower, num_layers = self.tower(model, **kwargs)
        config: Any = model.config
        index = kwargs.get("vision_feature_layer") or config.vision_feature_layer
        pixels = pixel_values.to(self.base(model).dtype)
        return run_internvit(tower, pixels, num_layers, index == -1, self.engine)

    def project(self, model: nn.Module, features: Tensor) -> Tensor:
        """CLS and patches [T, 1 + P, D] to tokens [T, n, D']."""
        return self.base(model).multi_modal_projector(self.shuffle(model, features[:, 1:]))

    def shuffle(self, model: nn.Module, patches: Tensor) -> Tensor:
        """[T, n, k D] of patches [T, P, D], as the model folds k of them into one token."""
        config: Any = model.config
        side = int(patches.shape[1] ** 0.5)
        square = patches.unflatten(1, (side, side))
        return self.base(model).pixel_shuffle(square, config.downsample_ratio).flatten(1, 2)

    def groups(self, model: nn.Module) -> Tensor:
        """[n, k], the patches that each token is made of, by the model's own shuffle."""
        count = self.base(model).vision_tower.embeddings.patch_embeddings.num_patches
        return self.shuffle(model, torch.arange(count)[None, :, None])[0]

    def features(
        self, modality: str, model: nn.Module, encoding: Encoding, *args: Any, **kwargs: Any
    ) -> Encoded:
        """Nothing yet of the tiles [T, 3, h, w]: they wait for `with_prompt`."""
        from visiondrop.tile_runs import await_prompt

        names = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")
        given = dict(zip(names, args, strict=False)) | kwargs
        check_strategy(given.get(names[2]) or "default")
        options = {names[1]: given[names[1]]} if given.get(names[1]) is not None else {}
        self.tower(model, **options)  # a layer that there is not is refused here
        rows = encoding.geometry.grid[0] * encoding.geometry.grid[1]
        embeddings = self.decoder(model).embed_tokens.weight
        return await_prompt(given["pixel_values"], rows, embeddings, options)

    def with_prompt(
        self, model: nn.Module, encoding: Encoding, kinds: np.ndarray, rows: list[list[Picture]]
    ) -> list[list[Picture]]:
        """The picture of each run of placeholders from its tiles, encoded and reduced."""
        from visiondrop.tile_runs import encode_runs

        return encode_runs(model, self, encoding, kinds, rows)


def check_strategy(strategy: str) -> None:
    """Raise `ValueError` where CLS would be among the patches."""
    if strategy != "default":
        raise ValueError(
            f"vision_feature_select_strategy={strategy!r}: CLS has no place in the pixel shuffle, "
            "use 'default'"
        )
