"""MMBench and MMBench-CN: one tsv each with pictures, hints and lettered options; every option
comes at every letter (circular rows), and rows share pictures by a short ``image`` cell."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..asking import LETTER, LETTERS, Asked, Picker, ask, lettered, open_text, options_of
from ..chinese import chinese
from ..chinese import open_text as chinese_text
from ..facts import Fact, facts
from ..pool import SampleSet, jpeg_of, rng_of, scene_of
from ..scene import Scene

LETTER_CN = "请直接回答选项字母。"
ROUND = 1_000_000
INSTANCE = "finegrained_perception (instance-level)"
CROSS = "finegrained_perception (cross-instance)"
ABILITIES = {
    "color": ("attribute_recognition", INSTANCE),
    "shape": ("attribute_recognition", INSTANCE),
    "letter": ("ocr", INSTANCE),
    "number": ("ocr", INSTANCE),
    "word": ("ocr", INSTANCE),
    "place_color": ("object_localization", INSTANCE),
    "place_shape": ("object_localization", INSTANCE),
    "count": ("object_localization", INSTANCE),
    "quarter": ("object_localization", INSTANCE),
    "where": ("spatial_relationship", CROSS),
    "same": ("attribute_comparison", CROSS),
    "more": ("attribute_comparison", CROSS),
    "most": ("image_scene", "coarse_perception"),
    "warm": ("physical_property_reasoning", "attribute_reasoning"),
    "near_color": ("physical_relation", "relation_reasoning"),
    "near_shape": ("physical_relation", "relation_reasoning"),
    "chain_color": ("physical_relation", "relation_reasoning"),
    "chain_shape": ("physical_relation", "relation_reasoning"),
}
"""Skill -> ability and the group above it, by MMBench's names."""
COLUMNS = (
    "index", "question", "hint", *"ABCD", "answer", "category", "image", "source", "l2-category",
    "comment", "split",
)  # fmt: skip


@dataclass(frozen=True)
class Language:
    """How a fact is put in one language."""

    text: Callable[[Fact], str]
    word: Callable[[str], str]
    instruction: str
    hints: dict[str, str]


ENGLISH = Language(
    open_text,
    str,
    LETTER,
    {
        "warm": "Red, orange, yellow and pink are warm colors. The others are cold.",
        "most": "The picture shows shapes and signs.",
    },
)
CHINESE = Language(
    chinese_text,
    chinese,
    LETTER_CN,
    {
        "warm": "红色、橙色、黄色和粉色是暖色，其他颜色是冷色。",
        "most": "图片中有各种形状和牌子。",
    },
)


@dataclass(frozen=True)
class Item:
    """A question with its options, in the language asked for."""

    fact: Fact
    text: str
    hint: str
    options: tuple[str, ...]
    right: int

    def turned(self, by: int) -> Item:
        """Its options moved up by so many letters, the first ones to the end."""
        options = self.options[by:] + self.options[:by]
        return replace(self, options=options, right=(self.right - by) % len(options))

    def asked(self, instruction: str) -> Asked:
        lines = (self.hint, self.text, lettered(self.options), instruction)
        prompt = "\n".join(line for line in lines if line)
        return ask(self.fact, prompt, LETTERS[self.right], self.text, None, self.options)


def items(scene: Scene, rng: np.random.Generator, language: Language) -> list[Item]:
    """All its questions, the same and with the same options in every language."""
    out = []
    for f in facts(scene, rng):
        if f.type in ABILITIES:
            options, right = options_of(f, rng)
            words = tuple(language.word(o) for o in options)
            hint = language.hints.get(f.type, "")
            out.append(Item(f, language.text(f), hint, words, right))
    return out


def _asked(language: Language, scene: Scene, rng: np.random.Generator) -> list[Asked]:
    return [item.asked(language.instruction) for item in items(scene, rng, language)]


asked = partial(_asked, ENGLISH)
asked_cn = partial(_asked, CHINESE)


def write(folder: Path, pictures: int = 50, each: int = 6) -> int:
    return _write(folder, pictures, each, ENGLISH, "mmbench_dev_20230712.tsv")


def write_cn(folder: Path, pictures: int = 50, each: int = 6) -> int:
    return _write(folder, pictures, each, CHINESE, "mmbench_dev_cn_20231003.tsv")


def _write(folder: Path, pictures: int, each: int, language: Language, name: str) -> int:
    """All questions first, then their circular rows, round by round, as the official files."""
    out, picker = SampleSet(folder, objects=language is ENGLISH), Picker()
    chosen: list[tuple[int, int, int, Item]] = []  # index, its picture's row, picture, question
    for i in range(pictures):
        rng, first = rng_of("mmbench", i), 241 + len(chosen)
        # Chosen in English, whatever is written, so that both files ask the same.
        english = items(scene_of(i), rng_of("mmbench options", i), ENGLISH)
        spoken = items(scene_of(i), rng_of("mmbench options", i), language)
        found = [item.asked(LETTER) for item in english]
        place = {id(q): k for k, q in enumerate(found)}
        for q in picker.take(found, each, rng):
            out.show(str(first), i)
            chosen.append((241 + len(chosen), first, i, spoken[place[id(q)]]))
    rows: list[dict[str, Any]] = []
    for turn in range(4):
        for index, first, i, item in chosen:
            if turn >= len(item.options):
                continue
            shown = item.turned(turn)
            q, row = shown.asked(language.instruction), ROUND * turn + index
            cell = base64.b64encode(jpeg_of(i)).decode() if row == first else str(first)
            rows.append(_row(row, shown, cell))
            out.note(row, q)
    out.table(name, COLUMNS, rows)
    return out.finish()


def _row(index: int, item: Item, image: str) -> dict[str, Any]:
    ability, group = ABILITIES[item.fact.type]
    return {
        "index": index,
        "question": item.text,
        "hint": item.hint,
        **dict(zip("ABCD", item.options, strict=False)),
        "answer": LETTERS[item.right],
        "category": ability,
        "image": image,
        "source": "pocket",
        "l2-category": group,
        "split": "dev",
    }
