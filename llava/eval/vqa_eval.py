"""The official VQA metric, and VizWiz's, which is its own.

Both score a prediction against ten human answers: leave one human out, count who of the others gave
the predicted answer, ``min(1, count / 3)``, and average over the humans left out (Antol et al.,
"VQA: Visual Question Answering", ICCV 2015; Gurari et al., "VizWiz Grand Challenge", CVPR 2018).
They differ from TextVQA's (`llava.eval.m4c_evaluator`) in how answers are normalised first:

- no comma, question mark or possessive ``'s`` is taken out beforehand: "red,white" becomes "red
  white", "1,000" becomes "1000", and "men's" stays;
- VQA: line breaks, then punctuation, lower case, number words, articles, contractions, for
  prediction and humans alike.  The script does so only where the humans differ; where all ten gave
  the same string, it compares strings as they are written, so that "Yes" is wrong for ten "yes":
  it is meant for files that are normalised already, and the server normalises every prediction.
  Here both sides are normalised there, too; ``as_written=True`` is the script to the letter.
- VizWiz: the prediction is normalised in the same way, always; the humans' answers stay as they
  are written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from llava.eval.m4c_evaluator import standard_words, strip_punctuation

# One comma between two digits; TextVQA's pattern takes several.
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def one_line(answer: str) -> str:
    """Without line breaks, tabs and space at the ends."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**16)  # two million answers of VQAv2, few of them different
def normalise(answer: str) -> str:
    """An answer as the official VQA script compares it."""
    return standard_words(strip_punctuation(one_line(answer), _COMMA_IN_NUMBER))


def leave_one_out(agree: int, total: int) -> float:
    """Mean over the humans left out of ``min(1, others who agree / 3)``, as 0..1.

    Args:
        agree: humans who gave the predicted answer.
        total: all humans; ten in the published files.
    """
    with_one, without = min(1.0, max(agree - 1, 0) / 3), min(1.0, agree / 3)
    return (agree * with_one + (total - agree) * without) / total


def vqa_accuracy(prediction: str, humans: Sequence[str], as_written: bool = False) -> float:
    """Accuracy (0..1) of one prediction by the official VQA script.

    Args:
        humans: the answers that people gave, at least one.
        as_written: leave a question alone on which the humans agree, as the script does."""
    prediction, humans = one_line(prediction), [one_line(human) for human in humans]
    if not (as_written and len(set(humans)) == 1):
        prediction, humans = normalise(prediction), [normalise(human) for human in humans]
    return leave_one_out(humans.count(prediction), len(humans))


def vizwiz_accuracy(prediction: str, humans: Sequence[str]) -> float:
    """Accuracy (0..1) of one prediction by VizWiz's script: only the prediction is normalised."""
    return leave_one_out(list(humans).count(normalise(prediction)), len(humans))
