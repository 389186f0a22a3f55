"""MMBench's tsv: questions, options and base64 pictures of one benchmark in one file.

Columns: ``index question hint A B C D answer category image source l2-category comment split``;
test files have no ``answer``.  A row whose index is that of another plus a multiple of 1,000,000
asks the same question with its options rotated (circular evaluation).  An ``image`` cell of at most
64 characters is the index of the row whose picture it shares.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from llava.eval.errors import EvalError
from llava.eval.samples import Sample

LETTERS = "ABCD"
ROUND = 1_000_000
SHORT = 64  # an image cell of at most so many characters names a row
ENGLISH = "Answer with the option's letter from the given choices directly."
CHINESE = "请直接回答选项字母。"
NEEDED = ("index", "question", "A", "B", "image")
# What pandas, through which the official tools read the file, takes for an empty cell.
_EMPTY = {
    *("", "NULL", "null", "None", "NaN", "-NaN", "nan", "-nan", "NA", "N/A", "n/a", "<NA>"),
    *("#N/A", "#N/A N/A", "#NA", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
}


def is_empty(cell: str) -> bool:
    """Whether pandas or LLaVA (which adds "none" and "nan" in any case) finds nothing there."""
    return cell in _EMPTY or cell.lower() in ("nan", "none")


@dataclass(frozen=True)
class Question:
    """A row of the file.

    Attributes:
        index: of the row; circular rows carry that of their question plus a multiple of 1,000,000.
        options: 2 to 4, in the order of this row.
        answer: the right option's letter; None where the file does not tell.
        picture: name of the picture: the index of the first row that holds it.
        category: its ability (20 of them), "" without one; ``group``: the six above them.
        line: where the row begins, from 1.
        cells: the file's cells without the picture.
    """

    index: int
    text: str
    hint: str | None
    options: tuple[str, ...]
    answer: str | None
    picture: str
    category: str
    group: str
    line: int
    cells: Mapping[str, str] = field(repr=False, default_factory=dict)

    @property
    def question(self) -> int:
        """Index of the question that the row asks, rotated or not."""
        return self.index % ROUND

    @property
    def kinds(self) -> tuple[str, ...]:
        """The abilities that it counts for."""
        group = f"l2-category/{self.group}" if self.group else ""
        return tuple(filter(None, (self.category, group)))

    def rotated(self, rounds: int) -> tuple[str, ...]:
        """The options in round ``rounds`` of LLaVA's --all-rounds."""
        return self.options[rounds:] + self.options[:rounds]

    def prompt(self, instruction: str = ENGLISH, rounds: int = 0) -> str:
        """Hint, question, lettered options and instruction ("" for none), line by line."""
        lines = [self.hint] if self.hint is not None else []
        lines.append(self.text)
        lines += [f"{a}. {b}" for a, b in zip(LETTERS, self.rotated(rounds))]
        return "\n".join([*lines, instruction] if instruction else lines)

    def sample(self, instruction: str, rounds: int = 0) -> Sample:
        """The sample, with what LLaVA writes beside an answer."""
        n = len(self.options)
        return Sample(
            self.index,
            self.prompt(instruction, rounds),
            self.picture,
            rounds,
            self.line,
            self.category or None,
            {
                "options": list(self.rotated(rounds)),
                "option_char": [LETTERS[(i + rounds) % n] for i in range(n)],
            },
        )


@dataclass(frozen=True)
class Table:
    """A whole file: each question followed by its circular rows, questions in the file's order."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Question, ...]
    pictures: TsvPictures

    @property
    def circular(self) -> bool:
        """Whether some question is asked with rotated options as well."""
        return any(row.index >= ROUND for row in self.rows)

    @property
    def labelled(self) -> bool:
        return self.rows[0].answer is not None

    @property
    def by_index(self) -> dict[int, Question]:
        return {row.index: row for row in self.rows}

    def samples(self, instruction: str = ENGLISH, all_rounds: bool = False) -> list[Sample]:
        """All questions; with ``all_rounds`` each row once a rotation of its options."""
        return [
            row.sample(instruction, rounds)
            for row in self.rows
            for rounds in range(len(row.options) if all_rounds else 1)
        ]


class TsvPictures:
    """Pictures out of a tsv's base64 cells, by the index of the first row that holds them."""

    def __init__(self, path: Path, cells: Mapping[str, str], lines: Mapping[str, int]) -> None:
        self.path, self._cells, self._lines = path, cells, lines

    def check(self, samples: Sequence[Sample]) -> None:
        """Raise EvalError for a cell that is no picture, naming its line."""
        for name in dict.fromkeys(str(sample.image) for sample in samples):
            try:
                with Image.open(self.find(name)):
                    pass
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise EvalError(
                    f"{self.path}, line {self._lines[name]}: the image cell of index {name} holds "
                    f"no picture ({_short(error)}); fetch the file again, or remove that row"
                ) from None

    def find(self, name: str) -> io.BytesIO:
        try:
            return io.BytesIO(base64.b64decode("".join(self._cells[name].split()), validate=True))
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from None


def read_table(path: str | Path) -> Table:
    """The file, checked as a whole: EvalError names file, line, value and remedy."""
    path = Path(path)
    if not path.is_file():
        raise EvalError(f"file not found: {path}")
    stat = path.stat()
    return _read_table(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)  # every run of a command needs it, and it is large
def _read_table(path: Path, _size: int, _changed: int) -> Table:
    lines = _records(path)
    _, head = next(lines, (1, []))
    missing = [name for name in NEEDED if name not in head]
    if missing:
        raise EvalError(
            f"{path}, line 1: no column {', '.join(missing)}; an MMBench file begins with "
            f"tab-separated column names, these among them, and this one with {str(head)[:80]!r}"
        )
    rows: dict[int, dict[str, str]] = {}
    begins: dict[int, int] = {}
    for line, record in lines:
        if len(record) != len(head):
            raise EvalError(
                f"{path}, line {line}: {len(record)} cells, and the first line names {len(head)} "
                "columns; is the file cut short, or a quote not closed? Fetch it again"
            )
        row = dict(zip(head, record))
        index = _index(row["index"], f"{path}, line {line}")
        if index in rows:
            raise EvalError(
                f"{path}: lines {begins[index]} and {line} have the same index {index}; remove one"
            )
        rows[index], begins[index] = row, line
    if not rows:
        raise EvalError(f"{path} holds no question; fetch it again")
    pictures, names = _pictures(path, rows, begins)
    # "None" is an empty cell where every rotation ends with it, else an option like others (LLaVA
    # would lose it, and those after it).
    counts: dict[int, int] = {}
    for index, row in rows.items():
        counts[index % ROUND] = max(counts.get(index % ROUND, 0), _last_option(row))
    questions = []
    for index, row in rows.items():
        line = begins[index]
        options = _options(row, counts[index % ROUND], f"{path}, line {line}")
        base = rows.get(index % ROUND)
        questions.append(_question(row, base, options, names[index], path, line))
    labelled = {q.answer is not None for q in questions}
    if len(labelled) > 1:
        first = next(q for q in questions if q.answer is None)
        raise EvalError(
            f"{path}, line {first.line}: no answer, and other rows have one; fill it in, or remove "
            "the row"
        )
    groups: dict[int, list[Question]] = {}
    for q in questions:
        groups.setdefault(q.question, []).append(q)
    ordered = [q for group in groups.values() for q in sorted(group, key=lambda q: q.index)]
    return Table(path, tuple(head), tuple(ordered), pictures)


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, cells) of every record, the header first."""
    end = "\0end of file"  # a quote that is not closed would swallow it
    before = csv.field_size_limit(sys.maxsize)  # pictures are long
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(_with_end(stream, end), delimiter="\t")
            begins, opened = 1, 0
            for record in reader:
                if record == [end]:
                    return
                if record:
                    opened = begins
                    if record[-1].endswith(end):
                        break
                    yield begins, record
                begins = reader.line_num + 1
            raise EvalError(
                f"{path}, line {opened}: a quote is not closed; is the file cut short? Fetch it "
                "again"
            )
    except (UnicodeDecodeError, csv.Error) as error:
        raise EvalError(f"{path} is no tab-separated text ({error}); fetch it again") from None
    finally:
        csv.field_size_limit(before)


def _with_end(lines: Iterable[str], end: str) -> Iterator[str]:
    last = "\n"
    for last in lines:
        yield last
    yield end if last.endswith(("\n", "\r")) else f"\n{end}"


def _index(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise EvalError(f"{where}: the index must be a whole number from 0, got {text[:40]!r}")
    return int(text)


def _question(
    row: Mapping[str, str],
    base: Mapping[str, str] | None,
    options: tuple[str, ...],
    picture: str,
    path: Path,
    line: int,
) -> Question:
    index, where = int(row["index"]), f"{path}, line {line}"
    if base is None:
        raise EvalError(
            f"{where}: index {index} is a circular row of {index % ROUND}, which is not in the "
            "file; fetch it again, or remove the row"
        )
    if is_empty(row["question"]):
        raise EvalError(f"{where}: the question is empty")
    answer = row.get("answer", "")
    if not is_empty(answer) and answer not in LETTERS[: len(options)]:
        raise EvalError(
            f"{where}: the answer {answer[:40]!r} is none of the options "
            f"{', '.join(LETTERS[: len(options)])}; mend the answer or the options"
        )
    return Question(
        index,
        row["question"],
        None if is_empty(row.get("hint", "")) else row["hint"],
        options,
        None if is_empty(answer) else answer,
        picture,
        base.get("category", ""),
        base.get("l2-category", ""),
        line,
        {name: cell for name, cell in row.items() if name != "image"},
    )


def _last_option(row: Mapping[str, str]) -> int:
    """The number of options up to the last one that is there."""
    there = [not is_empty(row.get(letter, "")) for letter in LETTERS]
    return max((i for i, yes in enumerate(there, start=1) if yes), default=0)


def _options(row: Mapping[str, str], count: int, where: str) -> tuple[str, ...]:
    cells = [row.get(letter, "") for letter in LETTERS[: max(count, 2)]]
    if "" in cells:
        raise EvalError(
            f"{where}: option {LETTERS[cells.index('')]} is missing; a question has the options A "
            "and B at least, none after an empty one, and as many in all its circular rows"
        )
    return tuple(cells)


def _pictures(
    path: Path, rows: Mapping[int, Mapping[str, str]], begins: Mapping[int, int]
) -> tuple[TsvPictures, dict[int, str]]:
    """The pictures, and each row's picture's name; equal cells are one picture."""
    first: dict[str, str] = {}
    for index, row in rows.items():
        if len(row["image"]) > SHORT:
            first.setdefault(row["image"], str(index))
    names = {}
    for index, row in rows.items():
        cell = row["image"]
        if len(cell) <= SHORT:
            other = rows.get(int(cell)) if cell.isascii() and cell.isdigit() else None
            if other is None or len(other["image"]) <= SHORT:
                raise EvalError(
                    f"{path}, line {begins[index]}: the image cell {cell!r} is neither a picture "
                    "in base64 nor the index of a row that holds one; fetch the file again"
                )
            cell = other["image"]
        names[index] = first[cell]
    cells = {name: cell for cell, name in first.items()}
    lines = {name: begins[int(name)] for name in cells}
    return TsvPictures(path, cells, lines), names


def _short(error: Exception) -> str:
    return str(error).split(" <")[0] or type(error).__name__
