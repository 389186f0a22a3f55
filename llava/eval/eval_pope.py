"""Score POPE answers: accuracy, precision, recall, F1 and the share of "yes", by category.

    python -m llava.eval.eval_pope --annotation-dir coco --question-file llava_pope_test.jsonl \\
        --result-file answers.jsonl

Labels belong to questions by position: the k-th label of ``coco_pope_<category>.json`` is that of
the question file's k-th question of the category.  The random file has 2,910 lines in one version
(which LLaVA's questions follow) and 3,000 in another, so lengths, pictures and objects must agree.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.errors import EvalError, run_main
from llava.eval.labels import by_question, read_answers, require_known
from llava.eval.samples import Sample, read_jsonl, read_questions

PREFIX, ENDING = "coco_pope_", ".json"
NEGATIVE = {"No", "not", "no"}


def says_yes(text: str) -> bool:
    """What an answer says, as POPE's own script reads it: "yes" unless the first sentence has the
    word No, no or not (in these spellings) between spaces, commas aside."""
    first = text.split(".")[0].replace(",", "")
    return not NEGATIVE & set(first.split(" "))


@dataclass(frozen=True)
class Counts:
    """Answers by what they say and what is right; "yes" is the positive class."""

    true_positive: int = 0
    false_positive: int = 0
    true_negative: int = 0
    false_negative: int = 0

    @property
    def n(self) -> int:
        return self.true_positive + self.false_positive + self.true_negative + self.false_negative

    @property
    def accuracy(self) -> float:
        return share(self.true_positive + self.true_negative, self.n)

    @property
    def precision(self) -> float:
        return share(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        return share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        wrong = self.false_positive + self.false_negative
        return share(2 * self.true_positive, 2 * self.true_positive + wrong)

    @property
    def yes_ratio(self) -> float:
        return share(self.true_positive + self.false_positive, self.n)


def share(part: float, whole: float) -> float:
    """``part / whole``, 0 where there is nothing to share."""
    return part / whole if whole else 0.0


def count(said_yes: Iterable[bool], is_yes: Iterable[bool]) -> Counts:
    """Counts of answers against labels, pair by pair."""
    pairs = list(zip(said_yes, is_yes, strict=True))
    return Counts(
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, False)),
        pairs.count((False, True)),
    )


@dataclass(frozen=True)
class Label:
    """One line of a label file."""

    is_yes: bool
    image: str | None
    text: str | None
    line: int


def label_file(folder: str | Path, category: str) -> Path:
    return Path(folder) / f"{PREFIX}{category}{ENDING}"


def read_labels(path: str | Path) -> list[Label]:
    """The lines of a ``coco_pope_*.json`` file; EvalError for one without a label."""
    labels = []
    for number, row in read_jsonl(path):
        if row.get("label") not in ("yes", "no"):
            raise EvalError(
                f'{path}, line {number}: "label" is {row.get("label")!r}; it must be "yes" or "no"'
            )
        labels.append(Label(row["label"] == "yes", row.get("image"), row.get("text"), number))
    return labels


def match_labels(
    samples: Sequence[Sample], folder: str | Path, questions: str | Path
) -> dict[str, bool]:
    """Sample key -> whether "yes" is right, for the whole question file.

    Args:
        samples: all questions of the file, with their categories.
        folder: holds a label file for each category.
        questions: the question file, for messages.

    Raises EvalError where label files and questions do not belong together.
    """
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if not isinstance(sample.category, str):
            raise EvalError(
                f'{questions}, line {sample.line}: "category" is {sample.category!r}; it must say '
                "which label file the question belongs to: random, popular or adversarial"
            )
        groups[sample.category].append(sample)
    truth: dict[str, bool] = {}
    for category, members in groups.items():
        path = label_file(folder, category)
        if not path.is_file():
            raise EvalError(
                f"{questions}, line {members[0].line}: category {category!r} has no label file "
                f"{path}; --annotation-dir must hold {PREFIX}<category>{ENDING} for each category"
            )
        labels = read_labels(path)
        if len(labels) != len(members):
            raise EvalError(
                f"{path} has {len(labels)} labels and {questions} {len(members)} questions of "
                f"category {category!r}; labels are matched by position, so both must be of one "
                "version (the random file has 2,910 lines in one and 3,000 in another)"
            )
        for sample, label in zip(members, labels):
            _check_pair(sample, label, path, questions)
            truth[sample.key] = label.is_yes
    return truth


def _check_pair(sample: Sample, label: Label, path: Path, questions: str | Path) -> None:
    places = f"{path}, line {label.line}, and {questions}, line {sample.line},"
    remedy = "labels are matched by position; bring files of one version"
    if label.image is not None and label.image != sample.image:
        raise EvalError(f"{places} are about {label.image!r} and {sample.image!r}; {remedy}")
    if label.text is not None and object_of(label.text) != object_of(sample.prompt):
        asked = sample.prompt.split("\n")[0]
        raise EvalError(f"{places} ask {label.text!r} and {asked!r}; {remedy}")


def object_of(question: str) -> str:
    """What a POPE question asks for, in words that all versions share: articles differ, and some
    have the typing error "imange"."""
    first = question.strip().split("\n")[0].lower().replace("imange", "image")
    return " ".join(re.sub(r"\b(an?|the)\b|[^\w ]", " ", first).split())


def figures_of(counts: Counts) -> dict[str, float]:
    """The five figures in percent, by name."""
    return {
        "F1": 100 * counts.f1,
        "accuracy": 100 * counts.accuracy,
        "precision": 100 * counts.precision,
        "recall": 100 * counts.recall,
        "yes ratio": 100 * counts.yes_ratio,
    }


def report(counts: Counts) -> str:
    """The figures as POPE's own script prints them."""
    c = counts
    return (
        f"TP\tFP\tTN\tFN\t\n"
        f"{c.true_positive}\t{c.false_positive}\t{c.true_negative}\t{c.false_negative}\n"
        f"Accuracy: {c.accuracy}\nPrecision: {c.precision}\nRecall: {c.recall}\n"
        f"F1 score: {c.f1}\nYes ratio: {c.yes_ratio}\n"
        f"{c.f1:.3f}, {c.accuracy:.3f}, {c.precision:.3f}, {c.recall:.3f}, {c.yes_ratio:.3f}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score POPE answers, category by category.")
    parser.add_argument("--annotation-dir", required=True, help="holds coco_pope_<category>.json")
    parser.add_argument("--question-file", required=True, help="llava_pope_test.jsonl")
    parser.add_argument("--result-file", required=True, help="the answers file")
    args = parser.parse_args(argv)
    samples = read_questions(args.question_file)
    truth = match_labels(samples, args.annotation_dir, args.question_file)
    answers = by_question(read_answers(args.result_file), args.result_file)
    asked = {str(sample.question_id): sample for sample in samples}
    require_known(list(answers), asked, "question", args.question_file)
    f1 = []
    for category in dict.fromkeys(str(sample.category) for sample in samples):
        members = [s for s in samples if s.category == category]
        answered = [s for s in members if str(s.question_id) in answers]
        some = "" if len(answered) == len(members) else f" of {len(members)}"
        print(f"Category: {category}, # samples: {len(answered)}{some}")
        if answered:
            said = [says_yes(answers[str(s.question_id)]) for s in answered]
            counts = count(said, [truth[s.key] for s in answered])
            f1.append(counts.f1)
            print(report(counts))
        print("=" * 36)
    print(f"Mean F1: {100 * sum(f1) / len(f1):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
