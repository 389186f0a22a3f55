"""The model to be trained: read, put together from its parts, and frozen where it is not tuned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model

from .arguments import ModelArguments

PROJECTOR = "mm_projector.safetensors"
_ORIGINAL = {"0.": "linear_1.", "2.": "linear_2."}


def load(args: ModelArguments, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """(tokenizer, model, image processor) of a LLaVA checkpoint, or of a language model and tower.

    The model has ``<image>`` as a token of its own, of which a picture takes 576.
    """
    path = args.model_name_or_path
    config = AutoConfig.from_pretrained(path)
    if hasattr(config, "vision_config") or hasattr(config, "mm_vision_tower"):
        tokenizer, model, processor, _ = load_pretrained_model(
            path, None, get_model_name_from_path(path), device="cpu", torch_dtype=dtype
        )
    else:
        if args.vision_tower is None:
            raise ValueError(
                f"--model_name_or_path {path} is a language model alone: give its --vision_tower, "
                "as in openai/clip-vit-large-patch14-336"
            )
        tokenizer, model, processor = _join(path, args.vision_tower, args, dtype)
    model.config.vision_feature_layer = args.mm_vision_select_layer
    image = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    if image is None or image == tokenizer.unk_token_id:
        tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
        image = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    if image >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(image + 1, pad_to_multiple_of=64)
    model.config.image_token_id = image
    if args.pretrain_mm_mlp_adapter:
        load_projector(model, Path(args.pretrain_mm_mlp_adapter))
    return tokenizer, model, processor


def _join(
    language: str, tower: str, args: ModelArguments, dtype: torch.dtype
) -> tuple[Any, Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(language)
    lm = AutoModelForCausalLM.from_pretrained(language, dtype=dtype)
    vision = CLIPVisionModel.from_pretrained(tower, dtype=dtype)
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=lm.config,
        vision_feature_layer=args.mm_vision_select_layer,
        image_seq_length=(vision.config.image_size // vision.config.patch_size) ** 2,
        tie_word_embeddings=lm.config.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config).to(dtype)
    model.model.language_model.load_state_dict(lm.model.state_dict())
    model.lm_head.load_state_dict(lm.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.generation_config = lm.generation_config
    return tokenizer, model, CLIPImageProcessorPil.from_pretrained(tower)


def projector_state(model: Any) -> dict[str, torch.Tensor]:
    """The projector's weights under the names of LLaVA's ``mm_projector`` files."""
    back = {new: old for old, new in _ORIGINAL.items()}
    return {
        "model.mm_projector." + back[k[: k.index(".") + 1]] + k[k.index(".") + 1 :]: v
        for k, v in model.model.multi_modal_projector.state_dict().items()
    }


def load_projector(model: Any, path: Path) -> None:
    """Reads ``mm_projector.safetensors`` or ``mm_projector.bin`` (a file, or its folder)."""
    if path.is_dir():
        found = [path / n for n in (PROJECTOR, "mm_projector.bin") if (path / n).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} holds no {PROJECTOR} and no mm_projector.bin")
        path = found[0]
    state = (
        load_file(path)
        if path.suffix == ".safetensors"
        else torch.load(path, map_location="cpu", weights_only=True)
    )
    new = {}
    for key, value in state.items():
        name = key.split("mm_projector.")[-1]
        new[_ORIGINAL.get(name[:2], name[:2]) + name[2:]] = value
    model.model.multi_modal_projector.load_state_dict(new)


def save_projector(state: dict[str, torch.Tensor], folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    tmp = os.path.join(folder, PROJECTOR + ".tmp")
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, tmp)
    os.replace(tmp, os.path.join(folder, PROJECTOR))


def freeze(model: Any, args: ModelArguments) -> None:
    """LLaVA's recipe: the tower stays; alignment tunes the projector alone, tuning also the LM."""
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if not (args.tune_mm_mlp_adapter or args.freeze_backbone):
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    if args.tune_vision_tower:
        model.model.vision_tower.requires_grad_(True)


def with_lora(model: Any, training: Any) -> nn.Module:
    """LoRA on the language model's linear layers; the projector is tuned whole, as in LLaVA."""
    from peft import LoraConfig, get_peft_model

    targets = [
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and "language_model" in n and "lm_head" not in n
    ]
    config = LoraConfig(
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        bias=training.lora_bias,
        target_modules=targets,
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
