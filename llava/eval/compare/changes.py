"""What became of every answer from run A to run B, counted, and how sure the difference is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np

from llava.eval.answers import Row
from llava.eval.benchmarks import Scores
from llava.eval.compare.matching import Answers, Questions, differing_settings, match
from llava.eval.compare.runs import Run
from llava.eval.comparing import Parts, compare_pairs
from llava.eval.errors import EvalError
from llava.eval.intervals import Interval
from llava.eval.labels import failed
from llava.eval.samples import Sample, raw_question
from llava.eval.significance import McNemar, mcnemar, paired_units

Outcome = Literal["worse", "better", "text", "same"]
OUTCOMES: tuple[Outcome, ...] = ("worse", "better", "text", "same")
Seeds = tuple[int | None, int | None]
COLUMNS = (
    *("place", "question_id", "round_id", "image", "types", "question", "right", "seed_a"),
    *("seed_b", "answer_a", "answer_b", "score_a", "score_b", "failed_a", "failed_b", "outcome"),
)
"""Of `Change.to_dict`."""


@dataclass(frozen=True)
class Change:
    """One question under both runs.

    Attributes:
        place: among the questions compared, from 0.
        seeds: of A's answer and of B's; None where a run has one.
        scores: of A's answer and of B's, 0 to 1; None where nothing is scored.
        right: what would have been right, in words; "" where nobody knows.
        outcome: from A to B: "worse", "better", "text" (another text, no other score), "same".
    """

    place: int
    sample: Sample
    seeds: Seeds
    texts: tuple[str, str]
    scores: tuple[float, float] | None
    failed: tuple[bool, bool]
    kinds: tuple[str, ...]
    right: str
    outcome: Outcome

    @property
    def question(self) -> str:
        """The question without the lines that LLaVA puts around it."""
        return raw_question(self.sample.prompt)

    def to_dict(self) -> dict[str, Any]:
        """For JSON and CSV."""
        score_a, score_b = self.scores or (None, None)
        return {
            "place": self.place,
            "question_id": self.sample.question_id,
            "round_id": self.sample.round_id,
            "image": self.sample.image,
            "types": list(self.kinds),
            "question": self.question,
            "right": self.right,
            "seed_a": self.seeds[0],
            "seed_b": self.seeds[1],
            "answer_a": self.texts[0],
            "answer_b": self.texts[1],
            "score_a": score_a,
            "score_b": score_b,
            "failed_a": self.failed[0],
            "failed_b": self.failed[1],
            "outcome": self.outcome,
        }


@dataclass(frozen=True)
class Group:
    """Questions of a type, or all of them.

    Attributes:
        n: questions; with several seeds ``counts`` are over all pairs of them.
        scores: the benchmark's own of A and of B; None where it has none over these.
    """

    n: int
    counts: dict[Outcome, int]
    scores: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        score_a, score_b = self.scores or (None, None)
        counts = {str(name): count for name, count in self.counts.items()}
        return {"n": self.n, **counts, "score_a": score_a, "score_b": score_b}


@dataclass(frozen=True)
class Compared:
    """The whole comparison.

    Attributes:
        changes: every question under every pair of seeds, questions in the file's order.
        everything, types: counts and scores of all questions, and by question type.
        interval: B minus A in the benchmark's unit; None where nothing is scored, or all
            questions are about one picture.
        tests: McNemar's test for each pair of seeds; empty for graded scores.
        graded: whether some score is neither 0 nor 1.
        notes: what a reader must know first.
    """

    a: Run
    b: Run
    questions: Questions
    changes: list[Change] = field(repr=False)
    everything: Group
    types: dict[str, Group]
    interval: Interval | None
    tests: dict[Seeds, McNemar]
    graded: bool
    notes: list[str]

    @property
    def names(self) -> dict[Outcome, str]:
        """Of the outcomes, for readers."""
        worse, better = ("score fell", "score rose")
        if not self.graded:
            worse, better = ("right to wrong", "wrong to right")
        return {"worse": worse, "better": better, "text": "text only", "same": "same"}

    def of(self, *outcomes: Outcome) -> list[Change]:
        """The changes of some outcomes."""
        return [change for change in self.changes if change.outcome in outcomes]


def pairs_of_seeds(a: Sequence[int | None], b: Sequence[int | None]) -> list[Seeds]:
    """Which seed of A is set against which of B: the same one, or the only one."""
    if len(a) == 1 or len(b) == 1:
        return [(one, other) for one in a for other in b]
    if set(a) != set(b):
        raise EvalError(
            f"A has the seeds {', '.join(map(str, a))} and B {', '.join(map(str, b))}; run both "
            "with the same (SEEDS), or give the folder of one seed"
        )
    return [(seed, seed) for seed in a]


def compare_runs(a: Run, b: Run, **where: Any) -> Compared:
    """Everything that two runs' answers say; ``where`` as for `matching.match`."""
    pairs = pairs_of_seeds(list(a.seeds), list(b.seeds))
    questions, answers_a, answers_b = match(a, b, **where)
    scores_a, scores_b = _score(questions, answers_a), _score(questions, answers_b)
    changes = []
    for pair in pairs:
        one = (answers_a[pair[0]], scores_a[pair[0]])
        other = (answers_b[pair[1]], scores_b[pair[1]])
        changes += _changes(questions.samples, pair, one, other)
    changes.sort(key=lambda change: change.place)
    first = next(iter(scores_a.values()))
    known = {value for s in (*scores_a.values(), *scores_b.values()) for value in s.per_sample}
    tests = {}
    if _scored(first):
        for pair in pairs:
            test = mcnemar(*paired_units(scores_a[pair[0]], scores_b[pair[1]]))
            if test is not None:
                tests[pair] = test
    notes = [*differing_settings(a, b), *_notes(questions, a, b, scores_a, scores_b)]
    sides = list(scores_a.values()), list(scores_b.values())
    return Compared(
        a,
        b,
        questions,
        changes,
        _group(changes, len(questions.samples), _headlines(*sides)),
        _types(changes, len(pairs), *sides),
        _interval(questions, *sides),
        tests,
        not known <= {0.0, 1.0},
        notes,
    )


def _score(questions: Questions, answers: Answers) -> dict[int | None, Scores]:
    benchmark, files = questions.benchmark, questions.files
    return {seed: benchmark.score(rows, files) for seed, rows in answers.items()}


def _scored(scores: Scores) -> bool:
    """Whether the benchmark says of each answer what it is worth."""
    return bool(scores.per_sample) and (scores.score is not None or bool(scores.right))


def _changes(
    samples: Sequence[Sample],
    seeds: Seeds,
    a: tuple[Sequence[Row], Scores],
    b: tuple[Sequence[Row], Scores],
) -> list[Change]:
    found = []
    for i, (sample, row_a, row_b) in enumerate(zip(samples, a[0], b[0], strict=True)):
        scores = (a[1].per_sample[i], b[1].per_sample[i]) if _scored(a[1]) else None
        outcome: Outcome = "same" if row_a["text"] == row_b["text"] else "text"
        if scores is not None and scores[0] != scores[1]:
            outcome = "worse" if scores[1] < scores[0] else "better"
        found.append(
            Change(
                i,
                sample,
                seeds,
                (row_a["text"], row_b["text"]),
                scores,
                (failed(row_a), failed(row_b)),
                a[1].kinds[i] if a[1].kinds else (),
                a[1].right[i] if a[1].right else "",
                outcome,
            )
        )
    return found


def _headlines(a: Sequence[Scores], b: Sequence[Scores]) -> tuple[float, float] | None:
    means = [[s.score for s in side if s.score is not None] for side in (a, b)]
    return (fmean(means[0]), fmean(means[1])) if all(means) else None


def _group(changes: Sequence[Change], n: int, scores: tuple[float, float] | None) -> Group:
    counts = {name: sum(c.outcome == name for c in changes) for name in OUTCOMES}
    return Group(n, counts, scores)


def _types(
    changes: Sequence[Change], pairs: int, a: Sequence[Scores], b: Sequence[Scores]
) -> dict[str, Group]:
    """Groups by question type: those that the benchmark scores first, in its order."""
    known = [*a[0].types, *(kind for change in changes for kind in change.kinds)]
    groups = {}
    for kind in dict.fromkeys(known):
        mine = [change for change in changes if kind in change.kinds]
        scores = None
        if all(kind in s.types for s in (*a, *b)):
            scores = (fmean(s.types[kind][0] for s in a), fmean(s.types[kind][0] for s in b))
        groups[kind] = _group(mine, len(mine) // pairs, scores)
    return groups


def _interval(questions: Questions, a: Sequence[Scores], b: Sequence[Scores]) -> Interval | None:
    """B minus A; seeds' scores are averaged."""
    pictures = [sample.image or sample.key for sample in questions.samples]
    if _headlines(a, b) is None:
        return None
    sides = {"A": a, "B": b}
    parts = None
    if all(s.parts is not None for s in (*a, *b)):
        cells = {name: [np.asarray(s.parts) for s in side] for name, side in sides.items()}
        parts = Parts(cells, questions.benchmark.headline)
    scores = {name: [s.per_sample for s in side] for name, side in sides.items()}
    return compare_pairs([("B", "A")], scores, pictures, parts).get(("B", "A"))


def _notes(
    questions: Questions,
    a: Run,
    b: Run,
    scores_a: Mapping[int | None, Scores],
    scores_b: Mapping[int | None, Scores],
) -> list[str]:
    notes = []
    pairs = pairs_of_seeds(list(a.seeds), list(b.seeds))
    if len(pairs) > 1:
        notes.append(
            f"{len(pairs)} pairs of seeds: changes are counted over all of them, scores are means"
        )
    if any(questions.left_out):
        out_a, out_b = questions.left_out
        notes.append(
            f"--common: {len(questions.samples)} questions that both answer; {out_a} answers of A "
            f"and {out_b} of B are left out"
        )
    for letter, run, scores in (("A", a, scores_a), ("B", b, scores_b)):
        there = run.result.get("score")
        means = _headlines(list(scores.values()), list(scores.values()))
        whole = not any(questions.left_out)
        if whole and there is not None and means is not None and abs(there - means[0]) > 1e-6:
            notes.append(
                f"{letter}'s result.json says {there:.2f}, and its answers score {means[0]:.2f} on "
                "these annotations; have they changed since?"
            )
        broken = sum(failed(row) for one in run.seeds.values() for row in one.rows)
        if broken:
            notes.append(f"{letter}: {broken} questions could not be answered; they count as wrong")
    return notes
