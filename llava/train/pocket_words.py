"""Tokens for the words of all benchmarks' question forms, behind those of TextVQA's.

The vocabulary is trained on TextVQA's form. Here it grows: every token keeps its id, English words
become merges of the byte-level BPE, and fixed lines (instructions, hints) and Chinese words and
pieces of questions become added tokens, one each, so that a question is short.
"""

from __future__ import annotations

import json
import re

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

ENGLISH = (
    " nearest below above unanswerable have same both either more than come before alphabet picture"
    " shows shapes most which quarter warm cold colors others seen from count things look at each"
    " them once holds hold some often map has four quarters other says these comes first one small"
    " letters letter numbers number words word signs sign not come before alphabet image in it is"
)
BEGINNINGS = "Are Does Which In Red Where Context Warm All Signs To A The There It What How Is Do"
MIDDLES = "Warm All To What How In It There The Which Is Are"  # sentences behind a sentence


def english_words() -> list[str]:
    spaced = [" " + w for w in (*ENGLISH.split(), *MIDDLES.split())]
    return list(dict.fromkeys([*spaced, *BEGINNINGS.split()]))


def fixed_lines() -> list[str]:
    """Lines that no question changes."""
    from playground.pocket.asking import LETTER, SHORT
    from playground.pocket.sets import mmbench, vizwiz

    hints = [*mmbench.CHINESE.hints.values()]
    return [SHORT, LETTER, mmbench.LETTER_CN, vizwiz.HINT, *hints]


def chinese_pieces() -> list[str]:
    """Words, and what stands between the slots of questions."""
    from playground.pocket import chinese as c

    pieces = [p for text in c.OPEN.values() for p in re.split(r"\{\w+\}", text) if p]
    return list(dict.fromkeys([*c.WORDS.values(), "的", *pieces]))


def _add_word(tokenizer: Tokenizer, word: str) -> Tokenizer:
    """The tokenizer with merges, and tokens for them, that make one token of a word."""
    pieces = tokenizer.encode(word, add_special_tokens=False).tokens
    spec = json.loads(tokenizer.to_str())
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    while len(pieces) > 1:
        merges.append([pieces[0], pieces[1]])
        pieces = [pieces[0] + pieces[1], *pieces[2:]]
        vocab.setdefault(pieces[0], len(vocab))
    return Tokenizer.from_str(json.dumps(spec))


def extend(tokenizer: Tokenizer) -> Tokenizer:
    """``tokenizer`` with the words of all forms; ids that it has already stay the same."""
    for word in english_words():
        tokenizer = _add_word(tokenizer, word)
    whole = [*fixed_lines(), *chinese_pieces()]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole])
    return tokenizer


def introduce(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Begins the embeddings of new tokens where the model knows something: a Chinese word at its
    English one, a fixed line at the mean of its words, a piece of a question at its English one's.
    """
    from playground.pocket import asking
    from playground.pocket import chinese as c
    from playground.pocket import vocabulary as v
    from playground.pocket.sets.mmbench import LETTER_CN

    table = model.model.language_model.embed_tokens.weight

    def ids(text: str) -> list[int]:
        words = re.sub(r"\{\w+( \w+)?\}", "", text).split()
        return [i for w in words for i in tokenizer(" " + w, add_special_tokens=False).input_ids]

    begin = {line: ids(line) for line in fixed_lines() if line.isascii()}
    begin[LETTER_CN] = ids(asking.LETTER)
    for kind, text in c.OPEN.items():
        begin |= {p: ids(asking.OPEN[kind]) for p in re.split(r"\{\w+\}", text) if p}
    begin |= {c.WORDS[e]: ids(e) for e in c.WORDS if e not in v.PLURALS.values()}
    with torch.no_grad():
        for text, known in begin.items():
            (new,) = tokenizer(text, add_special_tokens=False).input_ids
            table[new] = table[known].mean(dim=0)
