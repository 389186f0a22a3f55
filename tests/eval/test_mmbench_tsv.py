"""MMBench's tsv: prompts, order, shared pictures, splits; bad files named with line and value."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.eval.benchmarks import get_benchmark
from llava.eval.errors import EvalError
from llava.eval.mmbench_tsv import read_table
from llava.eval.samples import raw_question
from tests.eval.mmbench_files import (
    COLUMNS,
    LETTER,
    NAME,
    answers_of,
    base64_of,
    noise,
    rows_of_file,
    write_dev,
    write_tsv,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dev(tmp_path)


def test_prompts_are_llavas(data: Path) -> None:
    benchmark = get_benchmark("mmbench")
    samples = benchmark.read(benchmark.files(data))
    first = samples[0].prompt
    assert first == (
        "There are four.\nLook well.\nWhich bus is it?\nA. red\nB. blue\nC. green\nD. black\n"
        + LETTER
    )
    assert raw_question(first).endswith("D. black")
    second = next(s for s in samples if s.question_id == 1_000_252)
    assert second.prompt == f'Is it "new"?\nA. no\nB. yes\n{LETTER}', "empty cells leave no line"
    last = next(s for s in samples if s.question_id == 253)
    assert last.prompt.startswith("What is left?\nA. cat\nB. None\nC. dog\n"), "hint 'nan' is none"
    assert all(s.round_id == 0 for s in samples)
    assert benchmark.max_new_tokens == 1024


def test_chinese_prompt(tmp_path: Path) -> None:
    rows = rows_of_file()
    rows[0]["question"], rows[0]["hint"] = "这是什么？", ""
    write_tsv(tmp_path / "mmbench_dev_cn_20231003.tsv", rows)
    benchmark = get_benchmark("mmbench_cn")
    files = benchmark.files(tmp_path)
    prompt = benchmark.read(files)[0].prompt
    assert prompt == "这是什么？\nA. red\nB. blue\nC. green\nD. black\n请直接回答选项字母。"
    assert "请直接" not in raw_question(prompt)
    assert files.split == "mmbench_dev_cn_20231003"


def test_questions_are_followed_by_their_circular_rows(data: Path) -> None:
    """So that a limit cuts off the circular rows of one question at most, and pictures meet."""
    table = read_table(data / NAME)
    assert [row.index for row in table.rows] == [
        241, 1000241, 2000241, 3000241, 252, 1000252, 253, 1000253, 2000253, 3000253
    ]  # fmt: skip
    assert [row.index for row in sorted(table.rows, key=lambda row: row.line)][:4] == [
        241, 252, 253, 1000241
    ]  # fmt: skip
    # Two line ends stand inside the first row's hint; line numbers are the file's own.
    lines = (data / NAME).read_text().split("\n")
    for row in table.rows:
        assert lines[row.line - 1].startswith(f"{row.index}\t")


def test_cells_are_what_pandas_reads(data: Path) -> None:
    """The official tools read the file with pandas: quotes, line ends inside cells, empty cells."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_table(data / NAME)
    ours = sorted(read_table(data / NAME).rows, key=lambda row: row.line)
    assert len(frame) == len(ours)
    for (_, theirs), row in zip(frame.iterrows(), ours):
        assert theirs["index"] == row.index and theirs["question"] == row.text
        assert theirs["answer"] == row.answer and theirs["category"] == row.category
        assert row.hint == (None if pandas.isna(theirs["hint"]) else theirs["hint"])
        for letter, option in zip("ABCD", row.options):
            assert option == ("None" if pandas.isna(theirs[letter]) else theirs[letter])
        assert all(pandas.isna(theirs[letter]) for letter in "ABCD"[len(row.options) :])


@pytest.mark.parametrize("shared", [False, True], ids=["repeated", "short cells"])
def test_pictures_are_shared(tmp_path: Path, shared: bool) -> None:
    """Whether circular rows repeat the picture or name the row that has it."""
    table = read_table(write_tsv(tmp_path / NAME, rows_of_file(shared=shared)))
    samples = table.samples()
    assert {s.image for s in samples} == {"241", "252", "253"}
    assert all(s.image == str(s.question_id % 1_000_000) for s in samples)
    pictures = copy.deepcopy(table.pictures)  # as worker processes have them
    pictures.check(samples)
    for name, colour in {"241": (255, 0, 0), "253": (0, 0, 255)}.items():
        with Image.open(pictures.find(name)) as image:
            assert image.convert("RGB").getpixel((3, 3)) == colour


def test_a_large_picture_is_read(tmp_path: Path) -> None:
    """Cells are longer than the csv module allows by default, which stays as it was."""
    rows = rows_of_file(circular=False)
    rows[1]["image"] = base64_of(noise())
    assert len(rows[1]["image"]) > csv.field_size_limit()
    before = csv.field_size_limit()
    table = read_table(write_tsv(tmp_path / NAME, rows))
    assert csv.field_size_limit() == before
    with Image.open(table.pictures.find("252")) as image:
        assert np.array_equal(np.asarray(image), noise())


def test_splits_by_name(data: Path) -> None:
    """The dev file comes first; a test file is asked for by its name."""
    write_tsv(data / "MMBench_TEST_EN_legacy.tsv", rows_of_file(), COLUMNS[:7] + COLUMNS[8:])
    assert get_benchmark("mmbench").files(data).split == "mmbench_dev_20230712"
    test = get_benchmark("mmbench", "MMBench_TEST_EN_legacy")
    files = test.files(data)
    assert files.questions.name == "MMBench_TEST_EN_legacy.tsv"
    samples = test.read(files)
    test.check(samples, files)
    scores = test.score(answers_of(samples, lambda _: "A"), files)
    assert scores.score is None and len(scores.per_sample) == 10
    with pytest.raises(EvalError, match="mmbench has no split 'dev'"):
        get_benchmark("mmbench", "dev")


def spoil_cell(row: int, column: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[row].update({column: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_cell(1, "index", "2.5"), "line 4: the index must be a whole number.*'2.5'"),
        (spoil_cell(1, "index", 241), "lines 2 and 4 have the same index 241"),
        (spoil_cell(3, "index", 1000999), "line 6: index 1000999 is a circular row of 999"),
        (spoil_cell(1, "question", ""), "line 4: the question is empty"),
        (spoil_cell(1, "B", ""), "line 4: option B is missing"),
        (spoil_cell(2, "C", ""), "line 5: option C is missing"),
        (spoil_cell(1, "answer", "C"), "line 4: the answer 'C' is none of the options A, B"),
        (spoil_cell(1, "answer", "yes"), "line 4: the answer 'yes' is none"),
        (spoil_cell(1, "answer", ""), "line 4: no answer, and other rows have one"),
        (spoil_cell(1, "image", "../../etc/passwd"), "line 4: the image cell '../../etc/passwd'"),
        (spoil_cell(1, "image", "999"), "line 4: the image cell '999' is neither"),
        (spoil_cell(1, "image", "252"), "line 4: the image cell '252' is neither"),
        (spoil_cell(1, "image", ""), "line 4: the image cell '' is neither"),
        (spoil_cell(1, "image", "!" * 100), "line 4: the image cell of index 252.*not base64"),
        (spoil_cell(1, "image", "QUJD" * 30), "line 4: the image cell of index 252 holds no pict"),
    ],
)
def test_bad_cells(tmp_path: Path, spoil: Any, message: str) -> None:
    """Named with file and line, before the model; the first row takes lines 2 and 3."""
    rows = rows_of_file()
    spoil(rows)
    path = write_tsv(tmp_path / NAME, rows)
    benchmark = get_benchmark("mmbench")
    files = benchmark.files(tmp_path)
    with pytest.raises(EvalError, match=f"{NAME}.*{message}"):
        benchmark.pictures(files).check(benchmark.read(files))
    assert path.exists()


def cut(text: str) -> str:
    return text[: text.index("1000253") + 16]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"line 9: 2 cells, and the first line names 14 columns; is the file cut short"),
        (lambda text: text.replace('"There', '""There'), "line 2: "),
        (lambda text: text.replace("What is", "What\tis", 1), "line 5: 15 cells"),
        (lambda text: text[:-4] + '"dev\n', "line 15: a quote is not closed"),
        (lambda text: text.replace("question\t", "Question\t", 1), "line 1: no column question"),
        (lambda text: "", "line 1: no column index, question"),
        (lambda text: text.split("\n")[0] + "\n", "holds no question"),
        (lambda text: "<html>not found</html>\n", "line 1: no column"),
    ],
)
def test_bad_files(data: Path, spoil: Callable[[str], str], message: str) -> None:
    text = (data / NAME).read_text()
    assert spoil(text) != text
    (data / NAME).write_text(spoil(text))
    with pytest.raises(EvalError, match=f"{NAME}.*{message}"):
        read_table(data / NAME)


def test_no_text_at_all(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(EvalError, match="no tab-separated text"):
        read_table(tmp_path / NAME)
    with pytest.raises(EvalError, match="MMBench data not found.*mmbench_dev_20230712.tsv"):
        get_benchmark("mmbench").files(tmp_path / "nowhere")


def test_a_changed_file_is_read_again(data: Path) -> None:
    before = read_table(data / NAME)
    assert read_table(data / NAME) is before
    write_tsv(data / NAME, rows_of_file(circular=False))
    assert len(read_table(data / NAME).rows) == 3
