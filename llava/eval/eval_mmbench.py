"""Score MMBench answers: circular and plain accuracy, in all and by ability.

    python -m llava.eval.eval_mmbench --annotation-file mmbench_dev_20230712.tsv \\
        --result-file answers.jsonl

Plain: the share of questions answered correctly as they stand.  Circular: the share of questions
answered correctly in every rotation of their options, which is MMBench's own score (Liu et al.,
arXiv 2307.06281).  The official server reads an option out of an answer by rules, and has ChatGPT
read what the rules cannot; here there are rules only, and an answer that they cannot read is wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.eval.errors import EvalError, run_main
from llava.eval.labels import failed, read_answers
from llava.eval.mmbench_tsv import LETTERS, ROUND, Question, Table, read_table

_LETTER = re.compile(r"(?<![A-Za-z0-9_])([A-D])(?![A-Za-z0-9_'’-])")


def read_option(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer means; None where it means none, or several.

    As MMBench's tools do it: the one option's letter that stands alone in it ("B", "(B)", "B. bus",
    "选B。"); else the one option whose text it contains, in any case, unless it is twice as long as
    all options.  A lone "A" in more than three words is an article, unless a mark follows it or the
    answer ends with it.
    """
    known = LETTERS[: len(options)]
    found = [m for m in _LETTER.finditer(text) if m[1] in known]
    if len(text.split()) > 3:
        found = [m for m in found if m[1] != "A" or not re.match(r" +\S", text[m.end() :])]
    letters = {m[1] for m in found}
    if len(letters) == 1:
        return letters.pop()
    if letters or len(text) > 2 * sum(map(len, options)):
        return None
    inside = [a for a, option in zip(known, options) if option.lower() in text.lower()]
    return inside[0] if len(inside) == 1 else None


@dataclass(frozen=True)
class Judged:
    """An answer of a row of the file.

    Attributes:
        rounds: by how many places LLaVA's --all-rounds had rotated the row's options.
        option: the letter read out of it, None where none could be.
    """

    row: Question
    rounds: int
    option: str | None

    @property
    def right(self) -> bool:
        """Whether it is the row's answer, at the place where the rotation puts it."""
        return self.option == LETTERS[self._place]

    @property
    def expected(self) -> str:
        """The right option as the question had it: letter and text."""
        return f"{LETTERS[self._place]}. {self.row.rotated(self.rounds)[self._place]}"

    @property
    def _place(self) -> int:
        assert self.row.answer is not None, "rows without an answer are not scored"
        return (LETTERS.index(self.row.answer) - self.rounds) % len(self.row.options)

    @property
    def plain(self) -> bool:
        """Whether it answers the question as it stands."""
        return self.row.index < ROUND and self.rounds == 0


def judge(rows: Sequence[Mapping[str, Any]], table: Table) -> list[Judged]:
    """What each answer chose; EvalError for answers to questions that the file does not have."""
    questions = table.by_index
    judged: list[Judged] = []
    seen = set()
    for row in rows:
        question = questions.get(row["question_id"])
        rounds = row.get("round_id") or 0
        if question is None or not 0 <= rounds < len(question.options):
            what = "no row of index" if question is None else f"no round {rounds} for index"
            raise EvalError(
                f"{table.path} has {what} {row['question_id']!r}, which is answered; do the two "
                "files belong together?"
            )
        if (question.index, rounds) in seen:
            raise EvalError(f"index {question.index} is answered twice; remove one of the answers")
        seen.add((question.index, rounds))
        option = None if failed(row) else read_option(row["text"], question.rotated(rounds))
        judged.append(Judged(question, rounds, option))
    return judged


def whole_questions(judged: Sequence[Judged], table: Table) -> dict[int, list[int]]:
    """Question -> places of its answers, for questions of which every row is answered, in as many
    rounds as the others."""
    rounds = {answer.rounds for answer in judged} != {0}
    places: dict[int, list[int]] = defaultdict(list)
    for i, answer in enumerate(judged):
        places[answer.row.question].append(i)
    sizes: dict[int, int] = defaultdict(int)
    for row in table.rows:
        sizes[row.question] += len(row.options) if rounds else 1
    return {q: found for q, found in places.items() if len(found) == sizes[q]}


@dataclass(frozen=True)
class Accuracy:
    """Percentages over questions; None where there is nothing to take them over."""

    circular: float | None
    plain: float | None
    whole: int
    asked: int


def accuracy(judged: Sequence[Judged], whole: Mapping[int, Sequence[int]]) -> Accuracy:
    """Circular accuracy over the ``whole`` questions, plain accuracy over all as they stand."""
    solved = [all(judged[i].right for i in places) for places in whole.values()]
    plain = [answer.right for answer in judged if answer.plain]
    return Accuracy(_percent(solved), _percent(plain), len(solved), len(plain))


def by_ability(judged: Sequence[Judged], whole: Mapping[int, Sequence[int]]) -> dict[str, Accuracy]:
    """Accuracies of each ability (``category``) and group of them (``l2-category/...``)."""
    members: dict[str, set[int]] = defaultdict(set)
    for answer in judged:
        for kind in answer.row.kinds:
            members[kind].add(answer.row.question)
    found = {}
    for name in sorted(members, key=lambda name: ("/" in name, name)):
        mine = [i for i, answer in enumerate(judged) if answer.row.question in members[name]]
        new = {old: i for i, old in enumerate(mine)}
        own = {q: [new[i] for i in places] for q, places in whole.items() if q in members[name]}
        found[name] = accuracy([judged[i] for i in mine], own)
    return found


def unread(judged: Sequence[Judged]) -> float:
    """Percentage of answers out of which no option could be read."""
    return _percent([answer.option is None for answer in judged]) or 0.0


def _percent(values: Sequence[bool]) -> float | None:
    return 100 * sum(values) / len(values) if values else None


def require_answers(table: Table) -> None:
    if not table.labelled:
        raise EvalError(
            f"{table.path} tells no answers, as MMBench's test files: make the upload file with "
            "convert_mmbench_for_submission.py, or score a dev file"
        )


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description="Score MMBench answers on a dev file.")
    p.add_argument("--annotation-file", required=True, help="the tsv that was answered")
    p.add_argument("--result-file", required=True, help="answers jsonl")
    args = p.parse_args(argv)
    table = read_table(args.annotation_file)
    require_answers(table)
    judged = judge(read_answers(args.result_file), table)
    whole = whole_questions(judged, table)
    lines = {"all": accuracy(judged, whole), **by_ability(judged, whole)}
    width = max(map(len, lines))
    print(f"{'':<{width}}  circular      n   plain      n")
    for name, found in lines.items():
        circular, plain = ("-" if v is None else f"{v:.2f}" for v in (found.circular, found.plain))
        print(f"{name:<{width}}  {circular:>8} {found.whole:>6} {plain:>7} {found.asked:>6}")
    print(f"No option could be read out of {unread(judged):.2f}% of the answers.")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
