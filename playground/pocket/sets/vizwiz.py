"""VizWiz: one question a picture, a third of which cannot be answered: what is asked for is not
there, or the picture is blurred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from .. import vocabulary as v
from ..asking import OPEN as TEXTS
from ..asking import SHORT, Asked, Picker, confirm, open_text
from ..facts import by_shape, facts
from ..formats import ten_answers
from ..pool import POOL, SampleSet, jpeg, pixels_of, rng_of, scene_of
from ..scene import Scene

HINT = "When the provided information is insufficient, respond with 'Unanswerable'."
NO_ANSWER = "unanswerable"
BLUR = 9  # radius in pixels: about half of a shape's side
OPEN = ("color", "shape", "letter", "number", "word", "place_color", "place_shape", "count")
TYPE_SHARES = {"other": 0.56, "number": 0.06, "yes/no": 0.06, "absent": 0.17, "blurred": 0.15}


def spoil(pixels: np.ndarray) -> np.ndarray:
    """The picture out of focus: nothing in it can be told."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(BLUR)))


def _prompt(text: str) -> str:
    return f"{text}\n{HINT}\n{SHORT}"


def asked(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Questions with their answers, and questions about what is not there."""
    out = []
    for f in facts(scene, rng):
        if f.type in OPEN:
            text, answer, kind = open_text(f), f.answer, f.type
        elif f.type == "exist":
            (text, answer), kind = confirm(f, rng, yes=True), "exist"
        else:
            continue
        out.append(Asked(kind, _prompt(text), answer, f.region, f.evidence, text, named=f.named))
    return out + absent(scene, rng)


def absent(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Of each kind one question that the scene has no answer to; no patch shows it."""
    lacking = {
        "color": [s for s, found in by_shape(scene).items() if not found],
        "word": sorted(set(v.COLORS) - {t.color for t in scene.signs()}),
        "place_shape": [
            place
            for place, (x0, y0, x1, y1) in scene.places().items()
            if not any(
                t.box[0] < x1 and t.box[2] > x0 and t.box[1] < y1 and t.box[3] > y0
                for t in scene.things
            )
        ],
    }
    slots = {"color": "{a}", "word": "{color}", "place_shape": "{place}"}
    out = []
    for kind, names in lacking.items():
        if names:
            # What a sign says is asked in all three ways, so that no wording gives it away.
            like = ("letter", "number", "word") if kind == "word" else (kind,)
            template = TEXTS[like[int(rng.integers(len(like)))]]
            text = template.replace(slots[kind], names[int(rng.integers(len(names)))])
            out.append(Asked("absent", _prompt(text), NO_ANSWER, (), (), text))
    return out


def blurred(q: Asked) -> Asked:
    """The same question about the spoilt picture."""
    return Asked("blurred", q.prompt, NO_ANSWER, (), (), q.text)


def _kind(q: Asked) -> str:
    if q.type == "absent":
        return "absent"
    if q.answer in ("yes", "no"):
        return "yes/no"
    return "number" if q.type in ("count", "number") else "other"


def write(folder: Path, pictures: int = POOL - 6, test: int = 6) -> int:
    """``val.json`` and ``test.json`` with their pictures, and LLaVA's list for test."""
    out, picker = SampleSet(folder), Picker()
    val: list[dict[str, Any]] = []
    hidden: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for i in range(pictures + test):
        part, number = ("val", i) if i < pictures else ("test", i - pictures)
        scene, rng = scene_of(i), rng_of("vizwiz", i)
        kind = list(TYPE_SHARES)[int(rng.choice(len(TYPE_SHARES), p=list(TYPE_SHARES.values())))]
        found = asked(scene, rng)
        wanted = [q for q in found if _kind(q) == (kind if kind != "blurred" else "other")]
        (q,) = picker.take(wanted or found, 1, rng)
        pixels = pixels_of(i)
        if kind == "blurred":
            q, pixels = blurred(q), spoil(pixels)
        name = f"VizWiz_{part}_{number:08d}.jpg"
        out.path(f"{part}/{name}").write_bytes(jpeg(pixels))
        if kind != "blurred":  # a blurred picture shows no thing that can be told
            out.show(name, i)
        if part == "val":
            val.append({"image": name, "question": q.text, **_labels(q, rng)})
        else:
            hidden.append({"image": name, "question": q.text})
            lines.append({"question_id": name, "image": name, "text": q.prompt,
                          "category": "default"})  # fmt: skip
        out.note(name, q)
    out.json("val.json", val)
    out.json("test.json", hidden)
    out.lines("llava_test.jsonl", lines)
    return out.finish()


def _labels(q: Asked, rng: np.random.Generator) -> dict[str, Any]:
    answers = ten_answers(q.answer, "exist" if q.answer in ("yes", "no") else q.type, rng)
    if q.answer == NO_ANSWER:  # some people guess, or complain of the picture
        answers = [a if rng.random() < 0.85 else "unsuitable image" for a in answers]
    kind = NO_ANSWER if q.answer == NO_ANSWER else _kind(q)
    return {
        "answers": [
            {"answer": a, "answer_confidence": "yes" if a == q.answer.lower() else "maybe"}
            for a in answers
        ],
        "answer_type": kind,
        "answerable": int(q.answer != NO_ANSWER),
    }
