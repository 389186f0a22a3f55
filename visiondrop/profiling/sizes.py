"""Sizes of published models, for what can be counted without their weights."""

from __future__ import annotations

from visiondrop.profiling.flops import ModelSize

LLAVA_15_7B = ModelSize(
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
"""Vicuna-7B behind CLIP-L/336; LLaVA-NeXT-7B has the same parts."""
