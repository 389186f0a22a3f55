"""What kind of checkpoint a folder is, and LLaVA's original configuration as transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig, MistralConfig

from llava.anyres import parse_pinpoints
from llava.model.patch_merge import PATCH_MERGES

ORIGINAL_ARCHITECTURES: dict[str, type] = {
    "LlavaLlamaForCausalLM": LlamaConfig,
    "LlavaMistralForCausalLM": MistralConfig,
}
STOCK_ARCHITECTURES = (
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "VideoLlavaForConditionalGeneration",
)

# Read by LLaVA's scripts from `model.config`; they mean nothing to transformers.
KEPT_ATTRIBUTES = (
    "image_aspect_ratio",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "max_sequence_length",
    "tokenizer_model_max_length",
)


def read_json(path: Path) -> dict[str, Any]:
    """A json file that must hold an object. Raises ValueError naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch the file again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not an object of settings")
    return data


def layout_of(config: dict[str, Any], where: Path) -> str:
    """`"original"` (LLaVA's own) or `"stock"` (transformers'), by `architectures` first.

    `model_type` says nothing: published original checkpoints have `llava` or `llava_llama`.
    Raises ValueError for any other architecture.
    """
    names = config.get("architectures") or []
    if any(name in STOCK_ARCHITECTURES for name in names):
        return "stock"
    if any(name in ORIGINAL_ARCHITECTURES for name in names):
        return "original"
    if not names and config.get("mm_vision_tower"):
        return "original"
    raise ValueError(
        f"{where} is a checkpoint of architecture {', '.join(names) or 'unknown'}; this loader "
        f"takes {', '.join([*ORIGINAL_ARCHITECTURES, *STOCK_ARCHITECTURES])}"
    )


def is_next(config: dict[str, Any]) -> bool:
    """Whether an original checkpoint cuts pictures into tiles (LLaVA-NeXT, v1.6).

    Raises ValueError for an unknown `mm_patch_merge_type`.
    """
    merge = config.get("mm_patch_merge_type") or "flat"
    if merge not in PATCH_MERGES:
        raise ValueError(
            f"mm_patch_merge_type is {merge!r}; must be one of {', '.join(PATCH_MERGES)}"
        )
    return merge != "flat" or config.get("image_aspect_ratio") == "anyres"


def text_config(config: dict[str, Any]) -> Any:
    """The language model's part of an original configuration."""
    names = config.get("architectures") or ["LlavaLlamaForCausalLM"]
    kind = next((ORIGINAL_ARCHITECTURES[n] for n in names if n in ORIGINAL_ARCHITECTURES), None)
    if kind is None:  # a bare language model's own config.json
        kind = MistralConfig if "Mistral" in names[0] else LlamaConfig
    known = set(kind().to_dict()) | {"rope_theta", "rope_scaling"}
    known -= {"architectures", "model_type", "transformers_version", "dtype", "_name_or_path"}
    return kind(**{key: value for key, value in config.items() if key in known})


def vision_config(tower: dict[str, Any], where: str) -> CLIPVisionConfig:
    """The vision tower's configuration from a CLIPModel's or CLIPVisionModel's config.json."""
    kind = tower.get("model_type")
    if kind == "clip":
        return CLIPVisionConfig(**_settings(tower.get("vision_config") or {}))
    if kind == "clip_vision_model":
        return CLIPVisionConfig(**_settings(tower))
    raise ValueError(
        f"the vision tower {where} is of type {kind!r}; this loader takes CLIP towers (clip, "
        "clip_vision_model)"
    )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    known = set(CLIPVisionConfig().to_dict())
    known -= {"architectures", "model_type", "transformers_version", "dtype", "_name_or_path"}
    return {key: value for key, value in config.items() if key in known}


def to_stock_config(
    config: dict[str, Any], text: Any, vision: CLIPVisionConfig
) -> LlavaConfig | LlavaNextConfig:
    """An original configuration as transformers' own.

    The placeholder id is one past the token table, which an original checkpoint leaves free.
    Raises ValueError for a projector or a feature selection that the stock class has not.
    """
    projector = config.get("mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        raise ValueError(
            f"mm_projector_type is {projector!r}; the stock LLaVA classes have mlp2x_gelu only "
            "(LLaVA 1.5 and later)"
        )
    select = config.get("mm_vision_select_feature", "patch")
    strategies = {"patch": "default", "cls_patch": "full"}
    if select not in strategies:
        raise ValueError(
            f"mm_vision_select_feature is {select!r}; must be one of {', '.join(strategies)}"
        )
    patches = (vision.image_size // vision.patch_size) ** 2
    settings: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": text.vocab_size,
        "image_seq_length": patches + (select == "cls_patch"),
        "vision_feature_select_strategy": strategies[select],
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    stock: LlavaConfig | LlavaNextConfig
    if is_next(config):
        # LLaVA writes (width, height), transformers (height, width); the order breaks ties.
        grid = parse_pinpoints(config.get("image_grid_pinpoints"))
        stock = LlavaNextConfig(
            **settings, image_grid_pinpoints=[[height, width] for width, height in grid]
        )
        merge = config.get("mm_patch_merge_type") or "flat"
        if merge != "spatial_unpad":
            stock.mm_patch_merge_type = merge
    else:
        stock = LlavaConfig(**settings)
    for name in KEPT_ATTRIBUTES:
        if config.get(name) is not None:
            setattr(stock, name, config[name])
    return stock
