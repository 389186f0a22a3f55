"""LLaVA-1.5: CLIP (or SigLIP) tower, two-layer projector, any Llama-like decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from visiondrop.adapters.base import Adapter, Geometry, TowerOutput, layers_to_run
from visiondrop.adapters.vit import run_vit

if TYPE_CHECKING:
    from visiondrop.encoder import Encoded, Encoding


class LlavaAdapter(Adapter):
    """`transformers.LlavaForConditionalGeneration` and its subclasses."""

    families = ("LlavaForConditionalGeneration",)

    def geometry(self, config: Any) -> Geometry:
        """Sizes from a `LlavaConfig`."""
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        has_cls = "clip" in vision.model_type
        index = config.vision_feature_layer
        return Geometry(
            num_layers=config.text_config.num_hidden_layers,
            num_patches=side * side,
            has_cls=has_cls,
            grid=(side, side),
            cls_in_prompt=has_cls and config.vision_feature_select_strategy == "full",
            tower_layers=(
                layers_to_run(index, vision.num_hidden_layers) if isinstance(index, int) else 0
            ),
            tower_width=vision.hidden_size,
        )

    def base(self, model: nn.Module) -> Any:
        """`LlavaModel`."""
        return model.model

    def decoder(self, model: nn.Module) -> Any:
        """The language model without its head."""
        return self.base(model).language_model

    def tower(
        self, model: nn.Module, vision_feature_layer: int | list[int] | None = None, **kwargs: Any
    ) -> tuple[Any, int]:
        """CLIP or SigLIP, up to `vision_feature_layer` (default: the configuration's)."""
        config: Any = model.config
        index = (
            config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        )
        if not isinstance(index, int):
            raise ValueError(
                f"vision_feature_layer={index!r}: features put together from several tower layers "
                "have no single attention to be judged by; use one layer, such as -2"
            )
        depth = config.vision_config.num_hidden_layers
        return self.vit(model, **kwargs), layers_to_run(index, depth)

    def vit(self, model: nn.Module, **kwargs: Any) -> Any:
        """The vision tower."""
        return self.base(model).vision_tower

    def encode(self, model: nn.Module, pixel_values: Tensor, **kwargs: Any) -> TowerOutput:
        """Run the tower up to the layer that is read."""
        tower, num_layers = self.tower(model, **kwargs)
        return run_vit(tower, pixel_values, num_layers, self.engine)

    def features(
        self, modality: str, model: nn.Module, encoding: Encoding, *args: Any, **kwargs: Any
    ) -> Encoded:
        """Pictures [B, 3, h, w], one tile each."""
        from visiondrop.encoder import encode_pictures

        given = dict(zip(("pixel_values",), args, strict=False)) | kwargs
        names = ("pixel_values", "vision_feature_layer")
        return encode_pictures(model, self, encoding, **{n: given[n] for n in names if n in given})

    def extents(
        self, modality: str, model: nn.Module, *args: Any, **kwargs: Any
    ) -> list[tuple[int, int]]:
        """As many for every picture; families built on this one have to say it themselves."""
        if type(self) is not LlavaAdapter:
            return super().extents(modality, model, *args, **kwargs)
        given = dict(zip(("pixel_values",), args, strict=False)) | kwargs
        geometry = self.geometry(model.config)
        rows = geometry.num_patches + int(geometry.cls_in_prompt)
        return [(rows, rows)] * len(given["pixel_values"])

    def project(self, model: nn.Module, features: Tensor) -> Tensor:
        """The multi-modal projector."""
        return self.base(model).multi_modal_projector(features)
