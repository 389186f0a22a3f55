"""Where the parts of an original checkpoint lie: language model, projector, vision tower, LoRA."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from llava.model.checkpoint import (
    State,
    check_state,
    is_skipped,
    original_key,
    read_weights,
    tower_state,
    weight_files,
    weight_names,
)
from llava.model.fetch import local_folder
from llava.model.layout import read_json

_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_EXTRAS = ("non_lora_trainables.bin", "mm_projector.bin")


@dataclass
class Parts:
    """Folders and files of one model.

    text_settings: the config.json that says the language model's shape; the checkpoint's own, as in
        LLaVA, not the base model's.
    tower_files: None where the tower's weights are inside the checkpoint.
    """

    folder: Path
    language_files: list[Path]
    extra_files: list[Path]
    adapter: bool
    tokenizer_folder: Path
    tower: str
    tower_settings: dict[str, Any]
    tower_files: list[Path] | None
    picture_folder: Path
    text_settings: dict[str, Any]


def find_parts(folder: Path, model_base: str | None, config: dict[str, Any]) -> Parts:
    """Finds every part and every shard before any weight is read.

    Raises FileNotFoundError naming what is missing, ValueError where `model_base` is needed.
    """
    adapter = (folder / "adapter_config.json").is_file()
    extras = [folder / name for name in _EXTRAS if (folder / name).is_file()]
    if model_base is None:
        if adapter or (extras and not _has_weights(folder)):
            kind = "a LoRA adapter" if adapter else "a projector"
            raise ValueError(
                f"{folder} holds {kind} only; give the language model it belongs to as model_base "
                f"(its config.json says {config.get('_name_or_path') or 'nothing of it'})"
            )
        language, extras = folder, []
    else:
        if not extras:
            raise FileNotFoundError(
                f"with model_base, {folder} must hold {' or '.join(_EXTRAS)}; it has neither "
                "(a complete checkpoint takes model_base=None)"
            )
        if adapter and not any((folder / name).is_file() for name in _ADAPTER):
            raise FileNotFoundError(f"{folder} has adapter_config.json but not {_ADAPTER[0]}")
        language = local_folder(model_base)
    files = weight_files(language)
    tower, tower_folder = _tower_folder(folder, config)
    inside = any(key.startswith("model.vision_tower.") for key in weight_names(files))
    return Parts(
        folder=folder,
        language_files=files,
        extra_files=extras,
        adapter=adapter,
        tokenizer_folder=language,
        tower=tower,
        tower_settings=read_json(tower_folder / "config.json"),
        tower_files=None if inside else weight_files(tower_folder),
        picture_folder=tower_folder,
        text_settings=config,
    )


def read_language_model(parts: Parts, text: Any, dtype: torch.dtype) -> State:
    """Language model and projector (and the tower, if inside) under the original names."""
    state = read_weights(parts.language_files)
    if parts.adapter:
        state = _merge_adapter(state, parts.folder, text, dtype)
    for key, value in read_weights(parts.extra_files).items():
        state[original_key(key)] = value
    return state


def read_tower(parts: Parts) -> State:
    """The vision tower's tensors under transformers' names; empty where they are inside."""
    return {} if parts.tower_files is None else tower_state(read_weights(parts.tower_files))


def _merge_adapter(state: State, folder: Path, text: Any, dtype: torch.dtype) -> State:
    if importlib.util.find_spec("peft") is None:
        raise ImportError(f"{folder} is a LoRA adapter: pip install peft")
    from peft import PeftModel

    own = {k: v for k, v in state.items() if not is_skipped(k) and not _is_picture_part(k)}
    rest = {k: v for k, v in state.items() if _is_picture_part(k)}
    kind: Any = MistralForCausalLM if isinstance(text, MistralConfig) else LlamaForCausalLM
    with torch.device("meta"):
        expected = {k: v.shape for k, v in kind(text).state_dict().items()}
    if text.tie_word_embeddings:
        own.setdefault("lm_head.weight", own["model.embed_tokens.weight"])
    check_state(own, expected, "the base model")
    model = kind.from_pretrained(None, config=text, state_dict=own, dtype=dtype)
    merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return {**merged.state_dict(), **rest}


def _is_picture_part(key: str) -> bool:
    return key.startswith(("model.mm_projector.", "model.vision_tower.", "model.image_newline"))


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except FileNotFoundError:
        # Missing shards are a broken checkpoint, and the caller will say so.
        return any(folder.glob("*.index.json"))


def _tower_folder(folder: Path, config: dict[str, Any]) -> tuple[str, Path]:
    """The tower's name and folder: beside the checkpoint first, then as it stands, then the hub."""
    name = config.get("mm_vision_tower") or config.get("vision_tower")
    if not name:
        raise ValueError(f"{folder / 'config.json'} names no mm_vision_tower")
    for place in (folder / name, folder.parent / name, folder.parent / Path(name).name):
        if (place / "config.json").is_file():
            return str(name), place.resolve()
    return str(name), local_folder(name)
