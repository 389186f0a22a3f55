"""ScienceQA: lectures, hints, two to five choices; about half of the questions have a picture, the
others are about words or about what their hint tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import vocabulary as v
from ..asking import LETTER, LETTERS, Asked, Picker, lettered, open_text, options_of
from ..facts import WARM, Fact, facts
from ..pool import SampleSet, rng_of, scene_of
from ..scene import Scene

WARM_HINT = "Warm colors are red, orange, yellow and pink. All other colors are cold."
COUNT_HINT = "To count things, look at each of them once."
SPLITS = {"train": 20, "val": 10}  # problems without pictures, so that a split leaves some out


@dataclass(frozen=True)
class Problem:
    """One problem, in the benchmark's words.

    Attributes:
        fact: of the picture; None without one.
    """

    kind: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    subject: str
    topic: str
    lecture: str
    grade: int
    fact: Fact | None = None

    def asked(self) -> Asked:
        """Hint first, then question and choices."""
        context = f"Context: {self.hint}" if self.hint else ""
        lines = (context, self.question, lettered(self.choices), LETTER)
        where = (self.fact.region, self.fact.evidence) if self.fact else ((), ())
        return Asked(
            self.kind, "\n".join(line for line in lines if line), LETTERS[self.answer], *where,
            self.question, self.choices, self.fact is not None,
            self.fact.named if self.fact else None,
        )  # fmt: skip


# Skill -> hint, topic, lecture and grade of the problems with a picture.
SHOWN = {
    "warm": (WARM_HINT, "physics", "Colors of long waves are called warm.", 7),
    "count": (COUNT_HINT, "units-and-measurement", "Counting tells how many there are.", 2),
    "color": ("", "physics", "An object has the color of the light that it sends back.", 3),
    "shape": ("", "physics", "An object's shape is told by its outline.", 1),
    "most": ("A picture holds some shapes more often than others.", "biology", "", 5),
    "where": ("", "geography", "A place is told by another place and a direction.", 4),
    "quarter": ("A map has four quarters.", "geography", "Maps are cut into parts.", 8),
    "near_color": ("", "geography", "Neighbors are what is nearest.", 9),
    "near_shape": ("", "geography", "Neighbors are what is nearest.", 9),
    "number": ("Signs hold letters, numbers or words.", "economics", "", 6),
    "word": ("Signs hold letters, numbers or words.", "civics", "", 6),
}
SOCIAL = ("geography", "economics", "civics")


def with_picture(scene: Scene, rng: np.random.Generator) -> list[Problem]:
    """Problems about a scene."""
    out = []
    for f in facts(scene, rng):
        if f.type in SHOWN:
            hint, topic, lecture, grade = SHOWN[f.type]
            options, right = options_of(f, rng, most=int(rng.integers(3, 6)))
            subject = "social science" if topic in SOCIAL else "natural science"
            out.append(
                Problem(
                    f.type, open_text(f), options, right, hint, subject, topic, lecture, grade, f
                )  # fmt: skip
            )
    return out


def without_picture(rng: np.random.Generator) -> list[Problem]:
    """One problem of each kind that needs no picture."""

    def draw(pool: tuple[str, ...] | list[str], n: int) -> list[str]:
        return [pool[int(i)] for i in rng.permutation(len(pool))[:n]]

    def make(kind: str, question: str, right: str, wrong: list[str], hint: str = "",
             lecture: str = "", grade: int = 2) -> Problem:  # fmt: skip
        found = [right, *wrong]
        order = [int(i) for i in rng.permutation(len(found))]
        subject = "natural science" if kind == "warm word" else "language science"
        topic = "physics" if kind == "warm word" else "vocabulary"
        choices = tuple(found[i] for i in order)
        return Problem(
            kind, question, choices, order.index(0), hint, subject, topic, lecture, grade
        )

    colors, words = draw(tuple(v.COLORS), 4), draw(v.WORDS, 4)
    told = " ".join(f"The {c} sign says {w}." for c, w in zip(colors[:3], words, strict=False))
    k = int(rng.integers(3))
    cold = [c for c in v.COLORS if c not in WARM]
    first = min(words[:3])
    return [
        make("told", f"What does the {colors[k]} sign say?", words[k],
             [w for w in words[:3] if w != words[k]], told, "", 3),
        make("category", "Which of these is a color?", colors[0],
             [draw(v.SHAPES, 1)[0], *words[:2]], "", "A color is seen, a word is read.", 1),
        make("category", "Which of these is a shape?", draw(v.SHAPES, 1)[0],
             [colors[1], *words[:2]], "", "A shape is told by its outline.", 1),
        make("order", "Which word comes first in the alphabet?", first,
             [w for w in words[:3] if w != first], "", "Words are ordered by their letters.", 4),
        make("warm word", "Which color is warm?", draw(WARM, 1)[0], draw(cold, 2), WARM_HINT, "",
             7),
    ]  # fmt: skip


def asked(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Problems about the scene, and some that go without its picture."""
    return [p.asked() for p in (*with_picture(scene, rng), *without_picture(rng))]


def write(folder: Path, problems: int = 300) -> int:
    """LLaVA's question list, ``problems.json``, ``pid_splits.json``, test's pictures."""
    out, picker = SampleSet(folder, objects=False), Picker()
    official: dict[str, Any] = {}
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    entries: list[dict[str, Any]] = []
    number, scenes = 3, 0
    for split, n in {**SPLITS, "test": problems}.items():
        for k in range(n):
            rng = rng_of(f"sqa {split}", k)
            shown = split == "test" and rng.random() < 0.45
            found = with_picture(scene_of(scenes), rng) if shown else without_picture(rng)
            questions = [p.asked() for p in found]
            (q,) = picker.take(questions, 1, rng)
            p = found[next(i for i, other in enumerate(questions) if other is q)]
            number += 1 + int(rng.integers(3))
            name = str(number)
            official[name] = _official(p, split)
            splits[split].append(name)
            if split == "test":
                entry = _entry(p, q, name)
                entries.append(entry)
                if shown:
                    out.picture(f"images/test/{entry['image']}", scenes)
                    scenes += 1
                out.note(name, q)
    splits["trainval"] = splits["train"] + splits["val"]
    for split in ("train", "val", "test"):
        splits[f"mini{split}"] = splits[split][: max(1, len(splits[split]) // 5)]
    out.json("problems.json", official)
    out.json("pid_splits.json", splits)
    out.json("llava_test_CQM-A.json", entries)
    return out.finish()


def _official(p: Problem, split: str) -> dict[str, Any]:
    return {
        "question": p.question,
        "choices": list(p.choices),
        "answer": p.answer,
        "hint": p.hint,
        "image": "image.jpg" if p.fact else None,
        "task": "closed choice",
        "grade": f"grade{p.grade}",
        "subject": p.subject,
        "topic": p.topic,
        "category": p.kind,
        "skill": p.kind,
        "lecture": p.lecture,
        "solution": f"The answer is {p.choices[p.answer]}.",
        "split": split,
    }


def _entry(p: Problem, q: Asked, name: str) -> dict[str, Any]:
    """As LLaVA's list has it: without the instruction, which its command line adds."""
    text = q.prompt.removesuffix(f"\n{LETTER}")
    entry: dict[str, Any] = {"id": name}
    if p.fact:
        text, entry["image"] = f"<image>\n{text}", f"{name}/image.jpg"
    entry["conversations"] = [
        {"from": "human", "value": text},
        {"from": "gpt", "value": f"The answer is {q.answer}."},
    ]
    return entry
