"""`load_pretrained_model`: any LLaVA checkpoint as a stock transformers model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BitsAndBytesConfig, GenerationConfig

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
)
from llava.model import base
from llava.model.checkpoint import check_state, is_skipped, to_stock_state, weight_files
from llava.model.fetch import local_folder
from llava.model.layout import (
    is_next,
    layout_of,
    read_json,
    text_config,
    to_stock_config,
    vision_config,
)
from llava.model.llava_model import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)
from llava.model.pictures import load_image_processor
from llava.model.tokenizer import load_stock_tokenizer, load_tokenizer
from llava.model.video_model import VideoLlavaForConditionalGeneration

KINDS: tuple[Any, ...] = (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    VideoLlavaForConditionalGeneration,
)
ASPECT_RATIOS = {"llava_next": "anyres", "video_llava": "square"}  # of the others "pad"


def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: Any = None,
    use_flash_attn: bool = False,
    torch_dtype: torch.dtype | None = None,
    attn_implementation: str = "sdpa",
    distributed_config: Any = None,
) -> tuple[Any, Any, Any, int]:
    """A checkpoint in LLaVA's original layout or Hugging Face's, from a folder or the hub.

    model_path: a folder or a hub id. With `model_base`, it holds a LoRA adapter or a projector
        (`mm_projector.bin`) for that language model.
    model_name: kept for LLaVA's scripts; files and configuration decide, not the name.
    device_map: as in transformers; "auto" is the CPU where there is no GPU.
    device: everything on this one device, in place of `device_map`.
    torch_dtype: None is float16 on a GPU and float32 on a CPU.
    use_flash_attn: the same as `attn_implementation="flash_attention_2"`.
    distributed_config: transformers' own, for a model spread over processes in place of a
        `device_map`; see `llava.model.tensor_parallel`.

    Returns (tokenizer, model, image_processor, context_len). The model is a stock
    `LlavaForConditionalGeneration` (or LlavaNext...) whose `generate` also takes LLaVA's `images`.
    Raises FileNotFoundError for missing folders and shards, ValueError for another architecture
    for missing or unexpected weights and for widths that 4-bit products on a CPU do not take,
    ImportError where bitsandbytes or peft is needed.
    """
    quantization = _quantization(load_8bit, load_4bit)
    folder = local_folder(model_path)
    config = read_json(folder / "config.json")
    layout = layout_of(config, folder)
    dtype, device_map = _placement(torch_dtype, device, device_map)
    options: dict[str, Any] = {
        "dtype": dtype,
        "device_map": device_map,
        "attn_implementation": "flash_attention_2" if use_flash_attn else attn_implementation,
        "output_loading_info": True,
    }
    if quantization is not None:
        options["quantization_config"] = quantization
    if distributed_config is not None:
        del options["device_map"]
        options["distributed_config"] = distributed_config
    if layout == "stock":
        if model_base is not None:
            raise ValueError(
                f"{folder} is a complete checkpoint in Hugging Face layout; model_base "
                f"({model_base}) must be None"
            )
        tokenizer, model = _load_stock(folder, config, options)
        picture_folder = folder
    else:
        tokenizer, model, picture_folder = _load_original(folder, model_base, config, options)
    if load_4bit:
        _refuse_uneven_blocks(model)
    image_processor = load_image_processor(picture_folder, model.config)
    _with_aspect_ratio(model.config)
    return tokenizer, model, image_processor, _context_length(config, model)


def _context_length(config: dict[str, Any], model: Any) -> int:
    """LLaVA's 2048 unless the checkpoint says otherwise; a clip alone has more tokens."""
    if model.config.model_type == "video_llava":
        return int(model.config.get_text_config().max_position_embeddings)
    return int(config.get("max_sequence_length") or 2048)


def load_config(model_path: str, model_base: str | None = None) -> Any:
    """The configuration that `load_pretrained_model`'s model has, without reading any weight.

    `image_aspect_ratio` says how pictures are prepared. Raises what the loader raises for missing
    files and another architecture.
    """
    folder = local_folder(model_path)
    config = read_json(folder / "config.json")
    if layout_of(config, folder) == "stock":
        weight_files(folder)
        return _with_aspect_ratio(AutoConfig.from_pretrained(folder))
    parts = base.find_parts(folder, model_base, config)
    return _with_aspect_ratio(_stock_config(parts))


def _stock_config(parts: base.Parts) -> Any:
    settings = parts.text_settings
    tower = vision_config(parts.tower_settings, parts.tower)
    return to_stock_config(settings, text_config(settings), tower)


def _with_aspect_ratio(config: Any) -> Any:
    """Hugging Face's layout does not say how pictures are prepared: as the models were tuned."""
    if getattr(config, "image_aspect_ratio", None) is None:
        config.image_aspect_ratio = ASPECT_RATIOS.get(config.model_type, "pad")
    return config


def _quantization(load_8bit: bool, load_4bit: bool) -> BitsAndBytesConfig | None:
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit exclude each other")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"load_{8 if load_8bit else 4}bit needs the package bitsandbytes, which is not "
            "installed: pip install bitsandbytes"
        )
    # The projector and the tower are small and their outputs are compared: only the LM shrinks.
    skip = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.float16,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=skip,
    )


def _refuse_uneven_blocks(model: Any) -> None:
    """On a CPU bitsandbytes' 4-bit product cuts each row of weights into blocks of 64."""
    for name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit" or module.weight.device.type != "cpu":
            continue
        if module.in_features % 64:
            raise ValueError(
                f"load_4bit on a CPU needs widths that are multiples of 64, and {name} reads "
                f"{module.in_features}; use load_8bit, or a GPU"
            )


def _placement(dtype: torch.dtype | None, device: Any, device_map: Any) -> tuple[torch.dtype, Any]:
    if device is not None:
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {str(device)!r}, but torch sees no GPU; use device='cpu'")
        device_map = {"": device}
    elif device_map in ("auto", "balanced", "sequential") and not torch.cuda.is_available():
        device_map = {"": torch.device("cpu")}
    if dtype is None:
        places = device_map.values() if isinstance(device_map, dict) else [device_map]
        on_cpu = all(str(place) in ("cpu", "None") for place in places)
        dtype = torch.float32 if on_cpu else torch.float16
    return dtype, device_map


def _load_stock(folder: Path, config: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    weight_files(folder)
    kind = next(k for k in KINDS if k.__name__ in config["architectures"])
    tokenizer = load_stock_tokenizer(folder)
    model, info = kind.from_pretrained(folder, **options)
    problems = {
        name: sorted(str(key) for key in info.get(f"{name}_keys", ()) if not is_skipped(str(key)))
        for name in ("missing", "unexpected", "mismatched")
    }
    said = [f"{name}: {', '.join(keys[:8])}" for name, keys in problems.items() if keys]
    if said:
        raise ValueError(f"the weights of {folder} do not fit its configuration; {'; '.join(said)}")
    return tokenizer, model


def _load_original(
    folder: Path, model_base: str | None, config: dict[str, Any], options: dict[str, Any]
) -> tuple[Any, Any, Path]:
    parts = base.find_parts(folder, model_base, config)
    tokenizer = load_tokenizer(parts.tokenizer_folder)
    stock_config = _stock_config(parts)
    text = stock_config.text_config
    kind: Any = LlavaForConditionalGeneration
    if is_next(config):
        kind = LlavaNextForConditionalGeneration
    with torch.device("meta"):
        skeleton = kind(stock_config)
    expected = {key: value.shape for key, value in skeleton.state_dict().items()}
    del skeleton
    state = to_stock_state(base.read_language_model(parts, text, options["dtype"]))
    for key, value in base.read_tower(parts).items():
        state.setdefault(key, value)
    if "model.image_newline" in expected and "unpad" not in config.get("mm_patch_merge_type", ""):
        # Such a checkpoint has none, and the stock class's own is not read.
        state.setdefault("model.image_newline", torch.zeros(expected["model.image_newline"]))
    if stock_config.tie_word_embeddings:
        state.setdefault("lm_head.weight", state["model.language_model.embed_tokens.weight"])
    check_state(state, expected, str(folder))
    model, _ = kind.from_pretrained(None, config=stock_config, state_dict=state, **options)
    model.config.name_or_path = str(folder)
    model.generation_config = _generation_config(parts.tokenizer_folder, text, tokenizer)
    _add_picture_tokens(tokenizer, model, config)
    return tokenizer, model, parts.picture_folder


def _generation_config(folder: Path, text: Any, tokenizer: Any) -> GenerationConfig:
    """Ids only: the published sampling settings of a base model are no part of LLaVA.

    The tokenizer's end token ends a text, too: with chatml templates it is the turn's own end.
    """
    file = folder / "generation_config.json"
    settings = read_json(file) if file.is_file() else {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: settings.get(name, getattr(text, name, None)) for name in names}
    ends = ids["eos_token_id"]
    ends = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends.append(tokenizer.eos_token_id)
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    return GenerationConfig(**ids)


def _add_picture_tokens(tokenizer: Any, model: Any, config: dict[str, Any]) -> None:
    new: list[str] = []
    if config.get("mm_use_im_patch_token", True):
        new += [DEFAULT_IMAGE_PATCH_TOKEN]
    if config.get("mm_use_im_start_end", False):
        new += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
    rows = model.get_input_embeddings().weight.shape[0]
    if new and len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.config.image_token_id = len(tokenizer)
        model.guard_embeddings()
