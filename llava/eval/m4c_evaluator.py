"""The official TextVQA metric, as the M4C evaluator (and with it LLaVA) computes it.

An answer is first normalised as EvalAI's VQA server does it: lower case, punctuation, number
words, articles, contractions.  A prediction then scores against ten human answers: leave one human
out, count how many of the other nine gave the predicted answer, ``min(1, count / 3)``, and average
over the ten left out (Antol et al., "VQA: Visual Question Answering", ICCV 2015; Singh et al.,
"Towards VQA Models That Can Read", CVPR 2019).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NUM_ANSWERS = 10

NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4",
    "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = (
    ";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",",
    "?", "!",
)  # fmt: skip

# The metric's table of contractions has one line per way of leaving out exactly one apostrophe
# ("couldnt've" and "couldn'tve" for "couldn't've"), so the words alone define it.
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't
mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _contractions() -> dict[str, str]:
    table = {}
    for word in CONTRACTED.split():
        for match in re.finditer("'", word):
            table[word[: match.start()] + word[match.end() :]] = word
    table["somebody'd"] = "somebodyd"  # the one line of the official table that goes the other way
    return table


CONTRACTIONS = _contractions()

# As published, the first pattern reads "not followed by a digit" only: its look-behind is written
# as a look-ahead.  It is part of the metric now.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d)(,)+(?=\d)")
# The published code passes re.UNICODE where `sub` expects a count, so at most 32 periods go.
_MAX_PERIODS = int(re.UNICODE)


def strip_punctuation(text: str, comma_in_number: re.Pattern[str] = _COMMA_IN_NUMBER) -> str:
    """Delete a mark that stands beside a space (or anywhere, if digits hold a comma), else put a
    space in its place; judged on the text before any change.  Then periods go."""
    out = text
    anywhere = comma_in_number.search(text) is not None
    for mark in PUNCTUATION:
        beside_space = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside_space or anywhere else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


def standard_words(text: str) -> str:
    """Lower case, digits for number words, no articles, apostrophes in contractions."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


class EvalAIAnswerProcessor:
    """Normalises one answer string as the EvalAI VQA server does."""

    def __call__(self, answer: str) -> str:
        text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        text = text.replace("\n", " ").replace("\t", " ").strip()
        return standard_words(strip_punctuation(text))


class TextVQAAccuracyEvaluator:
    """Accuracy of predictions over ten human answers each."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def answer_scores(self, answers: Sequence[str]) -> dict[str, float]:
        """Score of every answer that a human gave: normalised answer -> 0..1.

        Raises ValueError unless there are exactly ten answers."""
        if len(answers) != NUM_ANSWERS:
            raise ValueError(
                f"the TextVQA metric needs {NUM_ANSWERS} answers a question, got {len(answers)}: "
                f"{list(answers)!r}; use the official annotation file"
            )
        humans = [self.answer_processor(answer) for answer in answers]
        scores = {}
        for answer, count in Counter(humans).items():
            # Leaving out one who gave it: count - 1 of the nine agree; another: count of them.
            agree, others = min(1.0, (count - 1) / 3), min(1.0, count / 3)
            scores[answer] = (count * agree + (NUM_ANSWERS - count) * others) / NUM_ANSWERS
        return scores

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """Accuracy (0..1) of one prediction over its ten answers."""
        return self.answer_scores(answers).get(self.answer_processor(prediction), 0.0)

    def eval_pred_list(self, pred_list: Iterable[Mapping[str, Any]]) -> float:
        """Mean accuracy over ``{"pred_answer": str, "gt_answers": [ten strings]}``; 0 if empty."""
        scores = [self.score(entry["pred_answer"], entry["gt_answers"]) for entry in pred_list]
        return sum(scores) / len(scores) if scores else 0.0
