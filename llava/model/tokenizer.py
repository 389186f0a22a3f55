"""The tokenizer of a LLaVA checkpoint, with the ids that the original's slow tokenizer gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from llava.model.layout import read_json

_SPACE = "\u2581"  # SentencePiece writes a space so


def load_tokenizer(folder: Path) -> Any:
    """From `tokenizer.model` (SentencePiece) where there is one, else from `tokenizer.json`.

    Raises FileNotFoundError where the folder holds neither.
    """
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    if (folder / "tokenizer.model").is_file():
        # Where the file is silent, the original's transformers 4 took the legacy behaviour, and BOS
        # (which transformers 5 leaves out when it reads tokenizer.model alone).
        legacy = settings.get("legacy")
        tokenizer = LlamaTokenizer.from_pretrained(
            folder,
            legacy=True if legacy is None else legacy,
            add_bos_token=settings.get("add_bos_token", True),
            padding_side=settings.get("padding_side", "right"),
        )
        return like_sentencepiece(tokenizer)
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    raise FileNotFoundError(f"{folder} holds no tokenizer: expected tokenizer.model or .json")


def load_stock_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder in Hugging Face layout; a Llama tokenizer as the original's."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if isinstance(tokenizer, LlamaTokenizer):
        return like_sentencepiece(tokenizer)
    return tokenizer


def like_sentencepiece(tokenizer: LlamaTokenizer) -> LlamaTokenizer:
    """Makes transformers 5's Llama tokenizer give SentencePiece's own ids.

    It leaves out the space that SentencePiece puts before a text that itself begins with a space,
    as what follows `<image>` may (` ASSISTANT:`). Legacy behaviour puts that space also after each
    special token, the newer one at the very start only.
    """
    backend = tokenizer.backend_tokenizer
    if tokenizer.legacy:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
        )
        backend.pre_tokenizer = None
    else:
        # The first step meets no space any more, so it always finds one to put at the start.
        backend.normalizer = normalizers.Replace(" ", _SPACE)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False),
            ]
        )
    return tokenizer
