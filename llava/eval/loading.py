"""The model of a run: its configuration first, to check budgets, and its weights last."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from llava.eval.answering import LoadedModel
from llava.eval.errors import EvalError
from llava.mm_utils import get_model_name_from_path
from llava.model.base import find_parts
from llava.model.builder import ASPECT_RATIOS, load_pretrained_model
from llava.model.fetch import local_folder
from llava.model.layout import layout_of, read_json, text_config, to_stock_config, vision_config
from llava.model.tensor_parallel import Engine, load_tensor_parallel

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DTYPE_ALIASES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
# What the loader raises for a checkpoint that cannot be used.
LOAD_ERRORS = (FileNotFoundError, ValueError, ImportError, KeyError)


@dataclass(frozen=True)
class ModelChoice:
    """Which checkpoint, and how it is to be loaded; see ``load_pretrained_model``.

    ``sharded_by`` names who spreads it over the processes of this launch
    (``llava.model.tensor_parallel``); None where every process holds it whole."""

    path: str
    base: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    attn_implementation: str = "sdpa"
    load_8bit: bool = False
    load_4bit: bool = False
    sharded_by: Engine | None = None

    @property
    def name(self) -> str:
        return get_model_name_from_path(str(self.path))

    @property
    def device_name(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def dtype_name(self) -> str:
        """float16 on a GPU and float32 on a CPU unless asked otherwise, as in the loader."""
        if self.dtype == "auto":
            return "float16" if self.device_name.startswith("cuda") else "float32"
        name = DTYPE_ALIASES.get(self.dtype, self.dtype)
        if name not in DTYPES:
            known = ", ".join(["auto", *DTYPES, *DTYPE_ALIASES])
            raise EvalError(f"unknown dtype {self.dtype!r}; choose one of {known}")
        return name

    @property
    def quantisation(self) -> str | None:
        return "8bit" if self.load_8bit else "4bit" if self.load_4bit else None


def read_config(choice: ModelChoice) -> Any:
    """The checkpoint's configuration as transformers' own, without reading its weights."""
    try:
        folder = local_folder(choice.path)
        config = read_json(folder / "config.json")
        if layout_of(config, folder) == "stock":
            stock = AutoConfig.from_pretrained(folder)
        else:
            parts = find_parts(folder, choice.base, config)
            tower = vision_config(parts.tower_settings, parts.tower)
            stock = to_stock_config(config, text_config(parts.text_settings), tower)
    except LOAD_ERRORS as error:
        raise EvalError(_model_error(choice, error)) from None
    return stock


def load_model(choice: ModelChoice) -> LoadedModel:
    """Load the checkpoint; EvalError says what is wrong with it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # worker processes are forked
    options: dict[str, Any] = {
        "device": choice.device_name,
        "torch_dtype": DTYPES[choice.dtype_name],
        "attn_implementation": choice.attn_implementation,
    }
    load: Callable[..., tuple[Any, Any, Any, int]] = load_pretrained_model
    if choice.sharded_by is None:
        options.update(load_8bit=choice.load_8bit, load_4bit=choice.load_4bit)
    else:
        load, options["engine"] = load_tensor_parallel, choice.sharded_by
    try:
        tokenizer, model, image_processor, context_len = load(
            choice.path, choice.base, choice.name, **options
        )
    except LOAD_ERRORS as error:
        raise EvalError(_model_error(choice, error)) from error
    model.eval()
    return LoadedModel(tokenizer, model, image_processor, context_len, choice.name)


def _model_error(choice: ModelChoice, error: Exception) -> str:
    text = str(error) or type(error).__name__
    shown = text if str(choice.path) in text else f"{choice.path}: {text}"
    return f"cannot use the model {shown}"


def refuse_clips(model: Any) -> None:
    """Raise `ValueError` for a model of clips, where single pictures are asked about."""
    if getattr(model.config, "model_type", "") == "video_llava":
        raise ValueError(
            "a video model answers about clips, here are pictures: ask it with "
            "scripts/eval/msvd.sh and its neighbours (docs/video.md), or from Python"
        )


def default_aspect_ratio(config: Any) -> str:
    """How the checkpoint's pictures are prepared: as the config says, else as its kind was."""
    kind = ASPECT_RATIOS.get(getattr(config, "model_type", ""), "pad")
    return str(getattr(config, "image_aspect_ratio", None) or kind)


def model_fingerprint_path(choice: ModelChoice) -> Path | None:
    path = Path(choice.path)
    return path if path.is_dir() else None
