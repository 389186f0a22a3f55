"""MM-Vet: free questions without any instruction, many of which take two skills, answered in
sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..asking import Asked, Picker, a_or_an, open_text
from ..facts import Fact, facts
from ..pool import SampleSet, rng_of, scene_of
from ..scene import Scene
from ..vocabulary import PLURALS

ANSWERS = {
    "color": "The {a} is {value}.",
    "shape": "It is {an value}.",
    "letter": "The {color} sign says {value}.",
    "number": "The {color} sign says {value}.",
    "word": "The {color} sign says {value}.",
    "count": "There are {value} {plural}.",
    "place_shape": "There is {an value}.",
    "near_color": "It is {value}.",
    "near_shape": "It is {an value}.",
    "quarter": "It is in the {value}.",
    "most": "There are most {plural}.",
}
CAPABILITIES = {
    **dict.fromkeys(("letter", "number", "word"), ("ocr",)),
    **dict.fromkeys(("near_color", "near_shape", "quarter", "place_shape"), ("rec", "spat")),
    "count": ("rec", "math"),
}


def sentence(f: Fact) -> str:
    """The answer as a sentence."""
    if f.type == "count" and f.answer == "1":
        return f"There is one {f.words['a']}."
    shape = f.words.get("a", "") if f.type == "count" else f.answer
    words = {**f.words, "value": f.answer, "an value": a_or_an(f.answer)}
    text = ANSWERS[f.type].replace("{plural}", PLURALS.get(shape, shape))
    for key, word in words.items():
        text = text.replace("{" + key + "}", word)
    return text


def capabilities(*found: Fact) -> list[str]:
    """MM-Vet's names of what the facts take."""
    return sorted({c for f in found for c in CAPABILITIES.get(f.type, ("rec",))})


def asked(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Single questions, and as many pairs in one; the type names the capabilities."""
    known = [f for f in facts(scene, rng) if f.type in ANSWERS]
    singles = [known[int(i)] for i in rng.permutation(len(known))]
    pairs = [(a, b) for a, b in zip(singles, singles[1:]) if a.type != b.type]
    return [_asked(f) for f in singles] + [_asked(*pair) for pair in pairs]


def _asked(*found: Fact) -> Asked:
    text = " ".join(open_text(f) for f in found)
    region = tuple(sorted({p for f in found for p in f.region}))
    named = tuple(sorted({p for f in found for p in f.named}))
    return Asked(
        "_".join(capabilities(*found)), text, " ".join(map(sentence, found)), region, region, text,
        named=named,
    )  # fmt: skip


def write(folder: Path, pictures: int = 50, each: int = 6) -> int:
    """LLaVA's question file, the benchmark's own ``mm-vet.json``, and the pictures."""
    out, picker = SampleSet(folder, objects=False), Picker()
    lines: list[dict[str, Any]] = []
    official: dict[str, Any] = {}
    for i in range(pictures):
        rng, image = rng_of("mmvet", i), f"v1_{i}.jpg"
        out.picture(f"images/{image}", i)
        for q in picker.take(asked(scene_of(i), rng), each, rng, once=False):
            number = len(lines)
            lines.append({"question_id": number, "image": image, "text": q.prompt})
            official[f"v1_{number}"] = {
                "imagename": image,
                "question": q.text,
                "answer": q.answer,
                "imagesource": "pocket",
                "capability": q.type.split("_"),
            }
            out.note(number, q)
    out.lines("llava-mm-vet.jsonl", lines)
    out.json("mm-vet.json", official)
    return out.finish()
