"""MME: fourteen tasks of yes/no questions, two a picture, the first to be confirmed and the second
not.

Task names are MME's; each asks for one skill of the pocket world (see ``SKILLS``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import vocabulary as v
from ..asking import SHORT, Asked, ask, confirm, open_text
from ..facts import Fact, facts
from ..pool import POOL, SampleSet, rng_of, scene_of
from ..scene import Scene

SKILLS = {
    "existence": ("exist",),
    "count": ("count",),
    "position": ("side", "height"),
    "color": ("color",),
    "posters": ("place_color",),
    "celebrity": ("letter",),
    "scene": ("more",),
    "landmark": ("near_color", "near_shape"),
    "artwork": ("shape",),
    "OCR": ("word", "number"),
    "commonsense_reasoning": ("chain_color", "chain_shape"),
    "numerical_calculation": ("number",),
    "text_translation": ("word",),
    "code_reasoning": ("letter",),
}
"""Which facts a task asks about; the last three in a form of their own."""
APART = ("posters", "celebrity", "scene", "landmark", "artwork")  # pictures and texts in folders
ROOT = "MME_Benchmark_release_version"


def _pair(task: str, f: Fact, rng: np.random.Generator) -> list[Asked]:
    """The question whose answer is yes, and the one whose answer is no."""
    if task == "numerical_calculation":
        n = int(f.answer)
        low = max(9, n - int(rng.integers(3, 30)))
        high = min(100, n + int(rng.integers(3, 30)))
        texts = [
            f"Is the number on the {f.words['color']} sign more than {m}?" for m in (low, high)
        ]
    elif task == "text_translation":
        words = [f.answer, f.wrong[int(rng.integers(len(f.wrong)))]]
        texts = [
            f'Is "{w.lower()}" the word on the {f.words["color"]} sign in small letters?'
            for w in words
        ]
    elif task == "code_reasoning":
        at = v.LETTERS.index(f.answer)
        after = v.LETTERS[int(rng.integers(at + 1, len(v.LETTERS)))] if f.answer != "Y" else ""
        before = v.LETTERS[int(rng.integers(0, at))] if at else ""
        if not after or not before:
            return []
        start = f"Does the letter on the {f.words['color']} sign come before"
        texts = [f"{start} {c} in the alphabet?" for c in (after, before)]
    else:
        texts = [confirm(f, rng, yes)[0] for yes in (True, False)]
    answers = ("yes", "no")
    return [ask(f, f"{t}\n{SHORT}", a, t, task) for t, a in zip(texts, answers, strict=True)]


def _pairs(scene: Scene, rng: np.random.Generator, tasks: tuple[str, ...]) -> list[list[Asked]]:
    known = facts(scene, rng)
    out = []
    for task in tasks:
        fit = [f for f in known if f.type in SKILLS[task]]
        if task == "existence":
            sides = [[f for f in fit if f.answer == answer] for answer in ("yes", "no")]
            out += [
                [ask(f, f"{open_text(f)}\n{SHORT}", f.answer, open_text(f), task) for f in both]
                for both in zip(*sides, strict=True)
            ]
        else:
            out += [pair for f in fit if (pair := _pair(task, f, rng))]
    return out


def asked(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Both questions of each pair, of all tasks."""
    return [q for pair in _pairs(scene, rng, tuple(SKILLS)) for q in pair]


def write(folder: Path, each: int = 11) -> int:
    """Task folders with ``each`` pictures and text files, and LLaVA's question file.

    Tasks alternate in the latter, so that the first questions are of all fourteen."""
    out = SampleSet(folder)
    lines: list[dict[str, Any]] = []
    i = 0
    for _ in range(each):
        for task in SKILLS:
            pairs: list[list[Asked]] = []
            while not pairs:
                pairs = _pairs(scene_of(i % POOL), rng_of(f"mme {task}", i), (task,))
                i += 1
            pair = pairs[int(rng_of("mme pick", i).integers(len(pairs)))]
            _write_pair(out, lines, task, (i - 1) % POOL, pair)
    out.lines("llava_mme.jsonl", lines)
    return out.finish()


def _write_pair(
    out: SampleSet, lines: list[dict[str, Any]], task: str, i: int, pair: list[Asked]
) -> None:
    images, texts = ("images/", "questions_answers_YN/") if task in APART else ("", "")
    name = f"{i:04d}"
    image = f"{task}/{images}{name}.jpg"
    out.picture(f"{ROOT}/{image}", i, image)
    text = "".join(f"{q.text} Please answer yes or no.\t{q.answer.capitalize()}\n" for q in pair)
    out.path(f"{ROOT}/{task}/{texts}{name}.txt").write_text(text)
    for q in pair:
        lines.append({"question_id": image, "image": image, "text": q.prompt, "category": task})
        out.note(image, q)
