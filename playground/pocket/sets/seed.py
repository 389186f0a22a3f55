"""SEED-Bench: four lettered options, nine dimensions of questions about pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..asking import Asked, Picker, choice
from ..facts import facts
from ..pool import SampleSet, rng_of, scene_of
from ..scene import Scene

DIMENSIONS = {
    "Scene Understanding": ("most",),
    "Instance Identity": ("shape", "place_shape"),
    "Instance Attributes": ("color", "place_color"),
    "Instance Location": ("quarter",),
    "Instances Counting": ("count",),
    "Spatial Relation": ("where",),
    "Instance Interaction": ("near_color", "near_shape"),
    "Visual Reasoning": ("chain_color", "chain_shape"),
    "Text Understanding": ("letter", "number", "word"),
}
VIDEO = ("Action Recognition", "Action Prediction", "Procedure Understanding")
"""The benchmark's other dimensions, which ask about videos; none here."""


def asked(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Choices among four; the type is the dimension's name."""
    name_of = {skill: name for name, skills in DIMENSIONS.items() for skill in skills}
    found = [choice(f, rng, name_of[f.type]) for f in facts(scene, rng) if f.type in name_of]
    return [q for q in found if len(q.options) == 4]


def write(folder: Path, pictures: int = 40, each: int = 8) -> int:
    """LLaVA's question file, ``SEED-Bench.json``, and pictures, whose names have no ending."""
    out, picker = SampleSet(folder), Picker()
    numbers = {name: k for k, name in enumerate((*DIMENSIONS, *VIDEO), start=1)}
    lines: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    for i in range(pictures):
        image = f"{1_454_426 + 13 * i}_{2_591_111_986 + 101 * i}"
        path = f"SEED-Bench-image/{image}"
        out.picture(path, i, path)
        rng = rng_of("seed", i)
        for q in picker.take(asked(scene_of(i), rng), each, rng):
            name = str(101_669 + len(lines))
            lines.append({"question_id": name, "image": path, "text": q.prompt,
                          "category": "image"})  # fmt: skip
            questions.append(
                {
                    "answer": q.answer,
                    **{f"choice_{c}": o for c, o in zip("abcd", q.options, strict=True)},
                    "data_id": image,
                    "data_type": "image",
                    "question": q.text,
                    "question_id": name,
                    "question_type_id": numbers[q.type],
                }
            )
            out.note(name, q)
    out.lines("llava-seed-bench.jsonl", lines)
    out.json("SEED-Bench.json", {"questions": questions, "question_type": numbers})
    return out.finish()
