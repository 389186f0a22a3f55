"""VQAv2: open questions, ten people's answers, answer types; val, and test-dev without answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ..asking import SHORT, Asked, Picker, ask, confirm, short
from ..facts import facts
from ..formats import ten_answers
from ..pool import SQUARE, Pool, SampleSet
from ..scene import Scene

OPEN = (
    "color", "shape", "letter", "number", "word", "place_color", "place_shape", "count", "exist",
    "near_color", "near_shape",
)  # fmt: skip
CONFIRM = ("color", "shape", "side", "height", "place_shape")
SHARES = {"yes/no": 2, "number": 1, "other": 3}  # of six questions on a picture
QUESTION_TYPES = (
    "what color is the", "what number is", "what is the", "what", "how many", "is there a",
    "is the", "is there", "none of the above",
)  # fmt: skip
HEAD = {"info": {"description": "questions about the pocket world"}, "license": {}}


def asked(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Short answers to open questions; some ask yes or no."""
    known = facts(scene, rng)
    out = [short(f) for f in known if f.type in OPEN]
    for f in known:
        if f.type in CONFIRM:
            text, answer = confirm(f, rng, yes=bool(rng.random() < 0.5))
            out.append(ask(f, f"{text}\n{SHORT}", answer, text, f"is_{f.type}"))
    return out


def answer_type(q: Asked) -> str:
    """ "yes/no", "number" or "other", as VQAv2 sorts answers."""
    if q.answer in ("yes", "no"):
        return "yes/no"
    return "number" if q.answer.isdigit() else "other"


def question_type(text: str) -> str:
    """The first of VQAv2's question types with which the question begins."""
    found = (t for t in QUESTION_TYPES if text.lower().startswith(t + " "))
    return next(found, "none of the above")


def pick(scene: Scene, rng: np.random.Generator, picker: Picker) -> list[Asked]:
    """Six questions of one picture, by answer type."""
    found = asked(scene, rng)
    return [
        q
        for kind, n in SHARES.items()
        for q in picker.take([q for q in found if answer_type(q) == kind], n, rng)
    ]


def write(folder: Path, pictures: int = 52, test: int = 6, pool: Pool = SQUARE) -> int:
    """The val files, and test-dev's: LLaVA's lists of it and of all test questions."""
    out, picker = SampleSet(folder, pool), Picker()
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for i in range(pictures + test):
        rng, image = pool.rng("vqav2", i), 262_001 + 17 * i
        part = "val2014" if i < pictures else "test2015"
        name = f"COCO_{part}_{image:012d}.jpg"
        out.picture(f"{part}/{name}", i)
        for k, q in enumerate(pick(pool.scene(i), rng, picker)):
            number = 1000 * image + k
            if part == "test2015":
                lines.append({"question_id": number, "image": name, "text": q.prompt,
                              "category": "default"})  # fmt: skip
            else:
                questions.append({"image_id": image, "question": q.text, "question_id": number})
                annotations.append(_annotation(q, image, number, rng))
            out.note(number, q, picture=i)
    kind = {"data_type": "mscoco", "data_subtype": "val2014"}
    task = {"task_type": "Open-Ended"}
    out.json(
        "v2_OpenEnded_mscoco_val2014_questions.json",
        {**HEAD, **task, **kind, "questions": questions},
    )
    out.json("v2_mscoco_val2014_annotations.json", {**HEAD, **kind, "annotations": annotations})
    out.lines("llava_vqav2_mscoco_test2015.jsonl", lines)
    # test-dev's questions are some of test's.
    out.lines("llava_vqav2_mscoco_test-dev2015.jsonl", lines[: 2 * len(lines) // 3])
    return out.finish()


def _annotation(q: Asked, image: int, number: int, rng: np.random.Generator) -> dict[str, Any]:
    kind = "exist" if answer_type(q) == "yes/no" else q.type
    answers = ten_answers(q.answer, kind, rng)
    return {
        "question_type": question_type(q.text),
        "multiple_choice_answer": Counter(answers).most_common(1)[0][0],
        "answers": [
            {
                "answer": answer,
                "answer_confidence": "yes" if answer == q.answer.lower() else "maybe",
                "answer_id": k,
            }
            for k, answer in enumerate(answers, start=1)
        ],
        "image_id": image,
        "answer_type": answer_type(q),
        "question_id": number,
    }
