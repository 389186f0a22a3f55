"""The tokenizer of a LLaVA checkpoint, with the ids that the original's slow tokenizer gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from llava.model.layout import read_json


def load_tokenizer(folder: Path) -> Any:
    """From `tokenizer.model` (SentencePiece) where there is one, else from `tokenizer.json`."""
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    if (folder / "tokenizer.model").is_file():
        # Where the file is silent, the original's transformers 4 took the legacy behaviour.
        return LlamaTokenizer.from_pretrained(folder, legacy=settings.get("legacy", True))
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    raise FileNotFoundError(f"{folder} holds no tokenizer: expected tokenizer.model or .json")
