"""Qwen2-VL and Qwen2.5-VL: native resolution, 2 x 2 patches to a token, M-RoPE, video.

A picture of h x w tokens, or a video of t x h x w of them (two frames to each of the t), is one run
of placeholders. The tower's patches come in one row; attention runs within a picture or one of the
t, in most blocks of Qwen2.5-VL within windows, for which the row is reordered.

What is judged: the merger makes one token of 2 x 2 patches, and that is what is kept, dropped and
merged, as the embedding that the LLM would read. Score: in the last block with full attention,
after RoPE, the attention of all patches of the picture (or of one of the t) to a patch, softmax
over the same, mean over heads and queries; then the mean over the token's four patches. Merge
metric: the keys of that block after RoPE, averaged over the four patches and the heads.
"""

from __future__ import annotations

import sys
from functools import partial
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from visiondrop.adapters.base import Adapter, Geometry, VisualInput, capture_projection

if TYPE_CHECKING:
    from visiondrop.encoder import Encoded, Encoding
    from visiondrop.native_encoder import PackedTower


class QwenVLAdapter(Adapter):
    """`Qwen2VLForConditionalGeneration`, `Qwen2_5_VLForConditionalGeneration`, subclasses."""

    families = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")

    def geometry(self, config: Any) -> Geometry:
        """Sizes; a picture has as many tokens as it comes with, the decoder's longest prompt at
        most.

        Raises `ValueError` for decoders with sliding-window layers.
        """
        text = config.text_config
        if "sliding_attention" in text.layer_types:
            raise ValueError(
                "sliding-window layers forget tokens by their distance, which reduction changes; "
                "load the model with text_config.use_sliding_window=False"
            )
        most = text.max_position_embeddings
        return Geometry(
            num_layers=text.num_hidden_layers,
            num_patches=most,
            has_cls=False,
            grid=(isqrt(most), isqrt(most)),
            merged=True,
            native=True,
            mrope=True,
        )

    def visual_inputs(self, config: Any) -> tuple[VisualInput, ...]:
        """Pictures and videos."""
        return (
            VisualInput("image", config.image_token_id),
            VisualInput("video", config.video_token_id, "pixel_values_videos"),
        )

    def base(self, model: nn.Module) -> Any:
        """`Qwen2VLModel` or `Qwen2_5_VLModel`."""
        return model.model

    def decoder(self, model: nn.Module) -> Any:
        """The language model without its head."""
        return self.base(model).language_model

    def tower(self, model: nn.Module, **kwargs: Any) -> tuple[Any, int]:
        """The vision transformer, all of whose blocks are run."""
        visual = self.base(model).visual
        return visual, len(visual.blocks)

    def project(self, model: nn.Module, features: Tensor) -> Tensor:
        """The merger, [S, D] to [S / 4, D']."""
        return self.base(model).visual.merger(features)

    def encode(  # type: ignore[override]
        self, model: nn.Module, pixel_values: Tensor, grid_thw: Tensor, modality: str, **kwargs: Any
    ) -> PackedTower:
        """Run the stock encoder, and keep the queries and keys of the block that judges."""
        from visiondrop.native_encoder import PackedTower

        base, visual = self.base(model), self.base(model).visual
        windowed = getattr(visual, "fullatt_block_indexes", None)
        attention = visual.blocks[-1 if windowed is None else max(windowed)].attn
        store: dict[str, Any] = {}

        def keep_rope(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
            store["rope"] = given["position_embeddings"]

        hooks = [
            attention.register_forward_pre_hook(keep_rope, with_kwargs=True),
            capture_projection(attention.qkv, store, "qkv"),
        ]
        try:
            stock = partial(getattr(type(base), f"get_{modality}_features"), base)
            tokens = stock(pixel_values, grid_thw, **{**kwargs, "return_dict": True}).pooler_output
        finally:
            for hook in hooks:
                hook.remove()
        qkv = store["qkv"].unflatten(-1, (3, attention.num_heads, -1))
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
        query, key = rotate(qkv[:, 0], qkv[:, 1], *store["rope"])
        merge = visual.spatial_merge_size
        order = torch.arange(sum(map(len, tokens)))
        if windowed is not None:
            sizes = visual.window_size, visual.patch_size
            order = get_vision_window_index(grid_thw, merge, *sizes)[0].cpu().argsort()
        shapes = [(t, h // merge, w // merge) for t, h, w in grid_thw.tolist()]
        return PackedTower(
            torch.cat(tokens), query, key, attention.scaling, merge**2, order, shapes
        )

    def features(
        self, modality: str, model: nn.Module, encoding: Encoding, *args: Any, **kwargs: Any
    ) -> Encoded:
        """Pictures or videos packed into one row of patches [S, ...] with their grids (t, h, w)."""
        from visiondrop.native_encoder import encode_native

        pixels = "pixel_values" if modality == "image" else "pixel_values_videos"
        given = dict(zip((pixels, f"{modality}_grid_thw"), args, strict=False)) | kwargs
        values, grid = given.pop(pixels), given.pop(f"{modality}_grid_thw")
        tower = self.encode(model, values, grid, modality, **given)
        return encode_native(encoding, tower, list(values.split(grid.prod(-1).tolist())))
