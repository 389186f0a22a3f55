"""Facts put as questions: open, as something to confirm, or with lettered options.

``Asked`` is one question in a benchmark's own prompt form. Every module of `sets` makes them of a
scene, for the sample files and for training alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .facts import Fact
from .vocabulary import PLURALS

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDE"

OPEN: dict[str, str] = {
    "color": "What color is the {a}?",
    "shape": "What shape is the {color} object?",
    "letter": "What letter is on the {color} sign?",
    "number": "What number is on the {color} sign?",
    "word": "What word is on the {color} sign?",
    "place_color": "What color is the object in the {place}?",
    "place_shape": "What shape is the object in the {place}?",
    "count": "How many {plural} are there?",
    "exist": "Is there {an a}?",
    "side": "Is the {a} to the left or to the right of the {b}?",
    "height": "Is the {a} above or below the {b}?",
    "where": "Where is the {a}, seen from the {b}?",
    "quarter": "In which quarter of the picture is the {a}?",
    "most": "Which shape is there most of?",
    "warm": "Is the color of the {a} warm or cold?",
    "same": "Do the {a} and the {b} have the same color?",
    "more": "Are there more {a} or more {b}?",
    "near_color": "What color is the nearest object {where} the {b}?",
    "near_shape": "What shape is the nearest object {where} the {b}?",
    "chain_color": "What color is the nearest object {where} the nearest object {where2} the {b}?",
    "chain_shape": "What shape is the nearest object {where} the nearest object {where2} the {b}?",
}
CONFIRM: dict[str, str] = {
    "color": "Is the {a} {value}?",
    "shape": "Is the {color} object {an value}?",
    "letter": "Is the letter on the {color} sign {value}?",
    "number": "Is the number on the {color} sign {value}?",
    "word": "Is the word on the {color} sign {value}?",
    "place_color": "Is the object in the {place} {value}?",
    "place_shape": "Is the object in the {place} {an value}?",
    "count": "Is the number of {plural} {value}?",
    "side": "Is the {a} to the {value} of the {b}?",
    "height": "Is the {a} {value} the {b}?",
    "more": "Are there more {value} than {other}?",
    "near_color": "Is the nearest object {where} the {b} {value}?",
    "near_shape": "Is the nearest object {where} the {b} {an value}?",
    "chain_color": "Is the nearest object {where} the nearest object {where2} the {b} {value}?",
    "chain_shape": "Is the nearest object {where} the nearest object {where2} the {b} {an value}?",
}


@dataclass(frozen=True)
class Asked:
    """One question as a benchmark puts it.

    Attributes:
        type: the skill that it takes, or the benchmark's own task.
        prompt: the whole text behind the picture, with hints, options and instruction.
        answer: what the model should say.
        region, evidence: as of `Fact`; () where no patch shows the answer.
        text: the question alone.
        options: of a choice, in the prompt's order.
        picture: whether it comes with the picture at all (some of ScienceQA's do not).
        named: as of `Fact`; None where it is the region (and of clips, which are not told apart).
    """

    type: str
    prompt: str
    answer: str
    region: tuple[int, ...]
    evidence: tuple[int, ...]
    text: str
    options: tuple[str, ...] = ()
    picture: bool = True
    named: tuple[int, ...] | None = None


def a_or_an(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _fill(template: str, fact: Fact, **more: str) -> str:
    words = {**fact.words, **more}
    for key in ("a", "value"):
        if key in words:
            words[f"an {key}"] = a_or_an(words[key])
    if words.get("a") in PLURALS:
        words["plural"] = PLURALS[words["a"]]
    for key, word in words.items():
        template = template.replace("{" + key + "}", word)
    return template


def open_text(fact: Fact) -> str:
    return _fill(OPEN[fact.type], fact)


def confirm_text(fact: Fact, value: str) -> str:
    """ "Is the star red?"; existence and sameness are questions of this kind by themselves."""
    if fact.type not in CONFIRM:
        return open_text(fact)
    other = next((w for w in (fact.words.get("a"), fact.words.get("b")) if w != value), "")
    return _fill(CONFIRM[fact.type], fact, value=value, other=str(other))


def one_of(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def confirm(fact: Fact, rng: np.random.Generator, yes: bool) -> tuple[str, str]:
    """The question whose answer is yes, or one whose answer is no."""
    if fact.type not in CONFIRM:
        return open_text(fact), fact.answer
    return confirm_text(fact, fact.answer if yes else one_of(fact.wrong, rng)), (
        "yes" if yes else "no"
    )


def options_of(fact: Fact, rng: np.random.Generator, most: int = 4) -> tuple[tuple[str, ...], int]:
    """Options in random order, two to ``most``, and the right one's place."""
    if fact.type == "count":  # neighbours of the number, in their order
        n = int(fact.answer)
        first = max(1, n - int(rng.integers(most)))
        return tuple(str(i) for i in range(first, first + most)), n - first
    wrong = [fact.wrong[int(i)] for i in rng.permutation(len(fact.wrong))[: most - 1]]
    found = [fact.answer, *wrong]
    order = [int(i) for i in rng.permutation(len(found))]
    return tuple(found[i] for i in order), order.index(0)


def lettered(options: Sequence[str]) -> str:
    return "\n".join(f"{a}. {b}" for a, b in zip(LETTERS, options, strict=False))


def ask(
    fact: Fact, prompt: str, answer: str, text: str, kind: str | None = None,
    options: tuple[str, ...] = (),
) -> Asked:  # fmt: skip
    """The question with its fact's patches."""
    where = fact.region, fact.evidence
    return Asked(kind or fact.type, prompt, answer, *where, text, options, named=fact.named)


def short(fact: Fact, kind: str | None = None) -> Asked:
    """The open question with the instruction to be short."""
    text = open_text(fact)
    return ask(fact, f"{text}\n{SHORT}", fact.answer, text, kind)


def choice(
    fact: Fact, rng: np.random.Generator, kind: str | None = None, hint: str = "", most: int = 4
) -> Asked:
    """The open question with lettered options; the answer is a letter."""
    options, right = options_of(fact, rng, most)
    text = open_text(fact)
    prompt = "\n".join(line for line in (hint, text, lettered(options), LETTER) if line)
    return ask(fact, prompt, LETTERS[right], text, kind, options)


class Picker:
    """Takes questions so that types, and answers within them, come about equally often."""

    def __init__(self) -> None:
        self.used: Counter[str] = Counter()

    def take(
        self, found: Sequence[Asked], n: int, rng: np.random.Generator, once: bool = True
    ) -> list[Asked]:
        """At most ``n``, no two with one text and, with ``once``, no two of one type."""
        order = [found[int(i)] for i in rng.permutation(len(found))]
        order.sort(key=lambda q: (self.used[q.type], self.used[f"{q.type}={q.answer}"]))
        out: list[Asked] = []
        for q in order:
            if len(out) == n:
                break
            if all(q.text != o.text and not (once and q.type == o.type) for o in out):
                out.append(q)
        for q in out:
            self.used.update((q.type, f"{q.type}={q.answer}"))
        return out
