"""The tokenizer of a LLaVA checkpoint, with the ids that the original's slow tokenizer gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
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
        return leave_to_sentencepiece(like_sentencepiece(tokenizer), settings)
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    raise FileNotFoundError(f"{folder} holds no tokenizer: expected tokenizer.model or .json")


def load_stock_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder in Hugging Face layout; a Llama tokenizer as the original's."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    file = folder / "tokenizer.json"
    saved = read_json(file) if file.is_file() else {}
    if saved.get("normalizer") and saved["model"].get("ignore_merges"):
        # As `leave_to_sentencepiece` saved it; transformers would add all marks again.
        tokenizer._tokenizer = Tokenizer.from_file(str(file))
        return tokenizer
    return like_sentencepiece(tokenizer) if isinstance(tokenizer, LlamaTokenizer) else tokenizer


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


def leave_to_sentencepiece(tokenizer: LlamaTokenizer, settings: dict[str, Any]) -> LlamaTokenizer:
    """Treats marks of the SentencePiece model that no setting names as SentencePiece does.

    Yi's model (LLaVA-1.6-34B) holds `<|im_start|>` and others. transformers 5 makes all of them
    tokens of its own, with a space put after each; the original's slow tokenizer did so for those
    alone that `tokenizer_config.json` names. SentencePiece finds the others (user-defined symbols)
    inside the text, without a space of their own, and never finds control symbols.
    """
    named = {str(entry["content"]) for entry in settings.get("added_tokens_decoder", {}).values()}
    kinds = ("bos_token", "eos_token", "unk_token", "pad_token")
    named |= {str(getattr(tokenizer, kind)) for kind in kinds}
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    others = [entry for entry in backend["added_tokens"] if entry["content"] not in named]
    if not others:
        return tokenizer
    backend["added_tokens"] = [e for e in backend["added_tokens"] if e["content"] in named]
    backend["model"]["ignore_merges"] = True  # a mark, cut out below, is a token as it is
    rebuilt = Tokenizer.from_str(json.dumps(backend))
    marks = "|".join(re.escape(e["content"]) for e in others if not e["special"])
    if marks:
        cut = pre_tokenizers.Split(Regex(marks), "isolated")
        before = [cut, rebuilt.pre_tokenizer] if rebuilt.pre_tokenizer is not None else [cut]
        rebuilt.pre_tokenizer = pre_tokenizers.Sequence(before)
    tokenizer._tokenizer = rebuilt
    return tokenizer
