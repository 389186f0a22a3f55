"""Questions as rows of tokens, with the rows whose attention is supervised.

A ``Lesson`` is one question in its prompt form. Besides tokens and labels it says, for some of its
rows, which rows they should look at:

    key      a word that names things looks at their patches, or at the prompt if there are none
    bind     the last word of a name looks at its first ("red" of "red circle")
    point    rows that predict the answer look at the key words
    answer   rows that predict the answer look at the patches that show it, or at the prompt
    option   the row that predicts a letter looks at the words of the right option
    letter   the last word of each option looks at its letter
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from playground.pocket import chinese
from playground.pocket import vocabulary as v
from playground.pocket.asking import LETTERS, Asked
from playground.pocket.facts import center, patches
from playground.pocket.questions import SUFFIX, TYPES, Question, _in_place, reference_line
from playground.pocket.scene import Scene, Thing
from playground.pocket.sets import FORMS

PROBES = ("key", "bind", "point", "answer", "option", "letter")
KINDS = (*TYPES, *FORMS)
STATEMENT = re.compile(
    r"Is the (\w+|\w+ object an?|(letter|number|word) on the \w+ sign|(object in|nearest) .*) \w+\?"
)
Row = tuple[str, int]  # "picture" patch, "prompt" (any row of it: 0), "own" row of the lesson


@dataclass
class Lesson:
    """One round of a conversation.

    Attributes:
        looks: probe -> [(row, rows it should look at)].
        places: (row, x, y) of key words that name one thing: how far right and how far down it is
            on the whole picture, in 0..1.
    """

    ids: list[int]
    labels: list[int]
    kinds: list[int]
    picture: bool = True
    looks: dict[str, list[tuple[int, list[Row]]]] = field(default_factory=dict)
    places: list[tuple[int, float, float]] = field(default_factory=list)

    def look(self, probe: str, row: int, wanted: list[Row]) -> None:
        self.looks.setdefault(probe, []).append((row, wanted))


class Teacher:
    """Turns questions into lessons."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, ignore: int) -> None:
        self.tok, self.ignore = tokenizer, ignore
        self._memo: dict[str, list[int]] = {}
        self.space = self.ids(" ")[0]
        self.names: dict[int, tuple[str, str]] = {}
        for kind, words in (("color", v.COLORS), ("shape", v.SHAPES), ("sign", ("sign",))):
            for w in words:
                self.names[self.ids(" " + w)[0]] = (kind, w)
                local = chinese.COLORS.get(w) or chinese.SHAPES[w]
                self.names[self.ids(local)[0]] = (kind, w)
        for s, plural in v.PLURALS.items():
            self.names[self.ids(" " + plural)[0]] = ("plural", s)
        for place in v.PLACES:
            self.names[self.ids(chinese.WORDS[place])[0]] = ("place", place)
        self.corner = self.ids(" corner")[0]
        self.of = self.ids("的")[0]
        self.characters = {self.ids(c)[0] for c in v.CHARS}
        self.piece = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}

    def ids(self, text: str) -> list[int]:
        if text not in self._memo:
            if len(self._memo) > 50_000:
                self._memo.clear()
            self._memo[text] = self.tok(text, add_special_tokens=False).input_ids
        return self._memo[text]

    def textvqa(
        self, q: Question, scene: Scene, first: bool, reference: bool, rng: np.random.Generator
    ) -> Lesson:
        lines = [q.text, *([reference_line(rng)] if reference else []), SUFFIX]
        no = not q.evidence
        return self._lesson(
            TYPES.index(q.type), lines, 0, q.answer, scene, first, True, q.evidence, no, ()
        )

    def of_form(self, form: str, q: Asked, scene: Scene, first: bool) -> Lesson:
        lines = q.prompt.split("\n")
        denied = q.answer == "no" and (
            not q.evidence or STATEMENT.fullmatch(q.text) is not None or "Is there" in q.text
        )
        return self._lesson(
            KINDS.index(form), lines, lines.index(q.text), q.answer, scene, first, q.picture,
            q.evidence, denied or not q.evidence, q.options,
        )  # fmt: skip

    def _lesson(
        self, kind: int, lines: list[str], asks: int, answer: str, scene: Scene, first: bool,
        picture: bool, evidence: tuple[int, ...], denied: bool, options: tuple[str, ...],
    ) -> Lesson:  # fmt: skip
        ids: list[int] = []
        starts, ends = [], []
        for i, line in enumerate(lines):
            # Without a picture the prompt's last space belongs to the first word.
            lead = "\n" if i or (first and picture) else " " if first else "USER: "
            starts.append(len(ids) + (lead == "\n"))
            ids = ids + self.ids(lead + line)
            ends.append(len(ids))
        ids = ids + self.ids(" ASSISTANT:")
        said = [*self.ids(" " + answer), self.tok.eos_token_id]
        content = [t != self.space for t in said[:-1]]
        if len(said) > 6:  # of a sentence, the words that the picture tells
            content = [t in self.names or t in self.characters for t in said[:-1]]
        kinds = [-1] * len(ids) + [kind if c else -1 for c in content] + [-1]
        if len(said) > 6:  # its other words count, too
            kinds = [-1] * len(ids) + [kind] * len(said)
        lesson = Lesson(ids + said, [self.ignore] * len(ids) + said, kinds, picture)
        rows = [len(ids) + j - 1 for j, c in enumerate(content) if c]
        if not picture:
            return self._options(lesson, rows, lines, starts, ends, options, answer)
        shown: list[Row] = [("prompt", 0)] if denied else [("picture", p) for p in evidence]
        text = lines[asks]
        keys = self._keys(lesson, starts[asks], ends[asks], text, scene)
        if STATEMENT.fullmatch(text) and answer in ("yes", "no"):
            at = ends[asks] - 2  # the word before the question mark
            lesson.looks["key"] = [x for x in lesson.looks.get("key", []) if x[0] != at]
            keys = [k for k in keys if k != at]
            lesson.look("key", at, shown)
            if keys:
                lesson.look("bind", at, [("own", keys[-1])])
            keys.append(at)
        for row in rows:
            lesson.look("answer", row, shown)
            if keys:
                lesson.look("point", row, [("own", k) for k in keys])
        return self._options(lesson, rows, lines, starts, ends, options, answer)

    def _keys(self, lesson: Lesson, start: int, end: int, text: str, scene: Scene) -> list[int]:
        """Marks the words of a question that name things; returns their rows."""
        ids = lesson.ids
        keys: list[int] = []

        def key(at: int, things: list[Thing], first: int | None = None) -> None:
            where: list[Row] = [("picture", p) for p in patches(scene, things)]
            lesson.look("key", at, where or [("prompt", 0)])
            if first is not None:
                lesson.look("bind", at, [("own", first)])
            if len(things) == 1:
                x, y = center(things[0])
                (left, top), (wide, high) = scene.origin, scene.world
                lesson.places.append((at, (x + left) / wide, (y + top) / high))
            keys.append(at)

        for at in range(start, end):
            kind, name = self.names.get(ids[at], ("", ""))
            before = at - 2 if at - 2 >= start and ids[at - 1] == self.of else at - 1
            shade = self.names.get(ids[before], ("", "")) if before >= start else ("", "")
            color = shade[1] if shade[0] == "color" else None
            if kind == "shape":
                found = [t for t in scene.shapes() if t.shape == name and color in (None, t.color)]
                key(at, found, before if color else None)
            elif kind == "plural":
                key(at, [t for t in scene.shapes() if t.shape == name])
            elif kind == "sign" and color:
                key(at, [t for t in scene.signs() if t.color == color], before)
            elif kind == "color" and at + 1 < end:
                after = self.piece[ids[at + 1]]
                if after == " object" or after.startswith("的物体"):
                    key(at, [t for t in scene.shapes() if t.color == name])
                elif (after == " sign" and "there" not in text) or after.startswith("的牌子"):
                    key(at, [t for t in scene.signs() if t.color == name])
            elif kind == "place" or ids[at] == self.corner:
                place = name or next((p for p in v.PLACES if p in text), "")
                box = scene.places().get(place)
                one = _in_place(scene, box) if box is not None else None
                key(at, [one] if one is not None else [])
        return keys

    def _options(
        self, lesson: Lesson, rows: list[int], lines: list[str], starts: list[int],
        ends: list[int], options: tuple[str, ...], answer: str,
    ) -> Lesson:  # fmt: skip
        """Marks of lettered options."""
        if not options:
            return lesson
        first = next(i for i, line in enumerate(lines) if line == f"A. {options[0]}")
        for k in range(len(options)):
            start, end = starts[first + k], ends[first + k]
            lesson.look("letter", end - 1, [("own", start)])
            if LETTERS[k] == answer:
                for row in rows:
                    lesson.look("option", row, [("own", j) for j in range(start + 2, end)])
        return lesson


HARD = ("chain", "near", "commonsense", "landmark", "Visual Reasoning", "Instance Interaction")
OFTEN = {"colored object": 3.0} | dict.fromkeys(
    ("absent", "object", "existence", "exist", "place_color", "place_shape", "posters", "position"),
    2.0,
)
"""How often types are taken, against 1 for others; ``HARD`` ones 0.4."""


def choose(found: list[Asked], n: int, rng: np.random.Generator) -> list[Asked]:
    """At most ``n``: a type first, then an answer, so that both come about equally often."""
    groups: dict[str, dict[str, list[Asked]]] = {}
    for q in found:
        groups.setdefault(q.type, {}).setdefault(q.answer, []).append(q)
    out: list[Asked] = []
    for _ in range(n):
        kinds = list(groups)
        if not kinds:
            break
        weight = np.array([0.4 if k.startswith(HARD) else OFTEN.get(k, 1.0) for k in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=weight / weight.sum()))]
        answers = list(groups[kind])
        answer = answers[int(rng.integers(len(answers)))]
        some = groups[kind][answer]
        out.append(some.pop(int(rng.integers(len(some)))))
        if not some:
            del groups[kind][answer]
        if not groups[kind]:
            del groups[kind]
    return out
