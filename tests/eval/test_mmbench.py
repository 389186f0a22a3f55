"""MMBench: the tsv and its traps, prompts, both accuracies by hand, the upload file, bad files."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.eval import mmbench_tsv, run_benchmark, running
from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.base import Scores
from llava.eval.convert_mmbench_for_submission import main as convert
from llava.eval.errors import EvalError, run_main
from llava.eval.eval_mmbench import main as evaluate
from llava.eval.eval_mmbench import read_option
from llava.eval.mmbench_tsv import read_table
from llava.eval.model_vqa_mmbench import main as answer
from llava.eval.samples import raw_question

ROOT = Path(__file__).parents[2]
NAME = "mmbench_dev_20230712.tsv"
COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image",
           "source", "l2-category", "comment", "split")  # fmt: skip
LETTER = "Answer with the option's letter from the given choices directly."
# index, question, hint, options, answer, ability, group: 2 questions with 4 options, 1 with 2
QUESTIONS: list[tuple[int, str, str, list[str], str, str, str]] = [
    (241, "Which bus is it?", "There are four.\nLook well.", ["red", "blue", "green", "black"],
     "B", "attribute_recognition", "finegrained_perception (instance-level)"),
    (252, 'Is it "new"?', "", ["yes", "no"], "A", "attribute_recognition",
     "finegrained_perception (instance-level)"),
    (253, "What is left?", "nan", ["cat", "None", "dog", "cow"], "D", "spatial_relationship",
     "finegrained_perception (cross-instance)"),
]  # fmt: skip


def base64_of(pixels: Any, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


def plane(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((30, 40, 3), colour)


def noise(size: int = 300) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)


PICTURES = {
    241: base64_of(plane((255, 0, 0))),
    252: base64_of(plane((0, 255, 0)), "JPEG"),
    253: base64_of(plane((0, 0, 255))),
}


def rows_of_file(circular: bool = True, shared: bool = False) -> list[dict[str, Any]]:
    """As the real files: first all questions, then their circular rows, round by round."""
    rows = []
    for turn in range(4 if circular else 1):
        for index, question, hint, options, right, ability, group in QUESTIONS:
            if turn >= len(options):
                continue
            turned = options[turn:] + options[:turn]
            place = ("ABCD".index(right) - turn) % len(options)
            rows.append(
                {
                    "index": index + 1_000_000 * turn,
                    "question": question,
                    "hint": hint,
                    **dict(zip("ABCD", turned)),
                    "answer": "ABCD"[place],
                    "category": ability,
                    "image": str(index) if shared and turn else PICTURES[index],
                    "source": "made",
                    "l2-category": group,
                    "split": "dev",
                }
            )
    return rows


def write_tsv(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore",
                                delimiter="\t", lineterminator="\n")  # fmt: skip
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_tsv(tmp_path / "mmbench" / NAME, rows_of_file())
    return tmp_path / "mmbench"


def answers_of(samples: Any, said: Callable[[int], str] | dict[int, str]) -> list[dict[str, Any]]:
    get = said.__getitem__ if isinstance(said, dict) else said
    return [
        {"question_id": s.question_id, "round_id": s.round_id, "prompt": s.prompt,
         "text": get(s.question_id), "image": s.image, "metadata": {}} for s in samples
    ]  # fmt: skip


# --- reading -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("shared", [False, True], ids=["repeated", "short cells"])
def test_pictures_are_shared(tmp_path: Path, shared: bool) -> None:
    """Whether circular rows repeat the picture or name the row that has it."""
    table = read_table(write_tsv(tmp_path / NAME, rows_of_file(shared=shared)))
    samples = table.samples()
    assert {s.image for s in samples} == {"241", "252", "253"}
    assert all(s.image == str(s.question_id % 1_000_000) for s in samples)
    pictures = pickle.loads(pickle.dumps(table.pictures))  # noqa: S301  (as worker processes do)
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


# --- reading an option out of an answer ----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("[D]", "D"),
        ("B. blue", "B"),
        ("The answer is B", "B"),
        ("The answer is A", "A"),
        ("A: red", "A"),
        ("A", "A"),
        ("答案是B。", "B"),
        ("选D", "D"),
        ("A red bus in a street", "A"),  # an article, and the text of option A
        ("A blue bus in a street", "B"),
        ("Blue", "B"),
        ("it is black", "D"),
        ("A or B", None),
        ("A, B", None),
        ("red or blue", None),
        ("E", None),
        ("b", None),  # a letter is a capital letter
        ("BB", None),
        ("", None),
        ("yellow", None),
        ("the picture shows a very long street with a blue bus in it", None),
    ],
)
def test_read_option(text: str, option: str | None) -> None:
    assert read_option(text, ("red", "blue", "green", "black")) == option


def test_letters_beyond_the_options_mean_nothing() -> None:
    assert read_option("C", ("yes", "no")) is None
    assert read_option("C. yes", ("yes", "no")) == "A"


# --- scores --------------------------------------------------------------------------------------

# By hand: 241 right in all four rounds; 252 right, wrong when rotated; 253 wrong as it stands.
SAID = {
    241: "B", 1000241: "A. blue", 2000241: "(D)", 3000241: "C",
    252: "A", 1000252: "A",
    253: "?", 1000253: "C", 2000253: "B", 3000253: "A",
}  # fmt: skip


def score(data: Path, said: Any, limit: int | None = None) -> Scores:
    benchmark = get_benchmark("mmbench")
    files = benchmark.files(data)
    samples = benchmark.read(files)[:limit]
    benchmark.check(samples, files)
    return benchmark.score(answers_of(samples, said), files)


def test_scores_by_hand(data: Path) -> None:
    scores = score(data, SAID)
    assert scores.score == pytest.approx(100 / 3)
    assert scores.figures == {"plain": pytest.approx(200 / 3), "unread": pytest.approx(10)}
    assert scores.per_sample == [1, 1, 1, 1, 1, 0, 0, 1, 1, 1]
    assert scores.types == {
        "attribute_recognition": (50, 2),
        "spatial_relationship": (0, 1),
        "l2-category/finegrained_perception (cross-instance)": (0, 1),
        "l2-category/finegrained_perception (instance-level)": (50, 2),
    }
    assert scores.details["attribute_recognition"] == {"plain": 100}
    assert scores.details["spatial_relationship"] == {"plain": 0}


def test_the_score_is_made_of_its_parts(data: Path) -> None:
    """What intervals resample: sums over pictures, each question counting once."""
    scores = score(data, SAID)
    assert scores.parts is not None and scores.parts.shape == (10, 2)
    benchmark = get_benchmark("mmbench")
    assert benchmark.headline(scores.parts.sum(0)) == pytest.approx(scores.score)
    assert scores.parts.sum(0).tolist() == [1, 3]
    twice = scores.parts[:4].sum(0) * 2 + scores.parts[4:6].sum(0)
    assert benchmark.headline(twice) == pytest.approx(200 / 3)


def test_chance(data: Path) -> None:
    """Always "A" is right once a question and never in every rotation."""
    scores = score(data, lambda _: "A")
    assert scores.score == 0
    assert sum(scores.per_sample) == 3


def test_an_answer_that_could_not_be_given_is_wrong(data: Path) -> None:
    benchmark = get_benchmark("mmbench")
    files = benchmark.files(data)
    rows = answers_of(benchmark.read(files), SAID)
    rows[2]["metadata"] = {"error": "cannot read picture 241"}
    assert benchmark.score(rows, files).score == 0


def test_a_limit_leaves_out_questions_that_it_cuts(data: Path) -> None:
    """Seven rows: two whole questions, and the third as it stands."""
    scores = score(data, SAID, 7)
    assert scores.score == 50 and scores.figures["plain"] == pytest.approx(200 / 3)
    assert scores.types["attribute_recognition"] == (50, 2)
    assert "spatial_relationship" not in scores.types
    with pytest.raises(EvalError, match="limit 3 leaves no question.*index 241, has 4.*LIMIT to 4"):
        score(data, SAID, 3)


def test_a_file_without_circular_rows_has_plain_accuracy(tmp_path: Path) -> None:
    write_tsv(tmp_path / NAME, rows_of_file(circular=False))
    benchmark = get_benchmark("mmbench")
    files = benchmark.files(tmp_path)
    samples = benchmark.read(files)
    assert (benchmark.metric, benchmark.beside) == ("accuracy", ())
    scores = benchmark.score(answers_of(samples, SAID), files)
    assert scores.score == scores.figures["plain"] == pytest.approx(200 / 3)
    assert get_benchmark("mmbench").metric == "circular accuracy"


def write_answers(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scoring_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also with LLaVA's own answers: other order, no image, the prompt without its instruction."""
    rows = answers_of(read_table(data / NAME).samples(""), SAID)
    for row in rows:
        del row["image"]
    answers = write_answers(tmp_path / "answers.jsonl", rows[::-1])
    args = ["--annotation-file", str(data / NAME), "--result-file", str(answers)]
    assert evaluate(args) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["all", "33.33", "3", "66.67", "3"]
    assert lines[2] == ["attribute_recognition", "50.00", "2", "100.00", "2"]
    assert "10.00%" in lines[-1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[0].update(question_id=7), "no row of index 7"),
        (lambda rows: rows[0].update(round_id=4), "no round 4 for index 241"),
        (lambda rows: rows.append(rows[0]), "index 241 is answered twice"),
        (lambda rows: rows[0].pop("text"), "line 1: an answer is"),
    ],
)
def test_answers_of_another_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    rows = answers_of(read_table(data / NAME).samples(), SAID)
    spoil(rows)
    answers = write_answers(tmp_path / "answers.jsonl", rows)
    args = ["--annotation-file", str(data / NAME), "--result-file", str(answers)]
    assert run_main(evaluate, args) == 2
    assert message in capsys.readouterr().err


# --- all rounds ----------------------------------------------------------------------------------


def test_all_rounds_ask_what_circular_rows_ask(tmp_path: Path) -> None:
    """LLaVA's --all-rounds on a plain file, against the circular rows of the other file."""
    plain = read_table(write_tsv(tmp_path / "plain.tsv", rows_of_file(circular=False)))
    circular = read_table(write_tsv(tmp_path / "circular.tsv", rows_of_file()))
    rounds, rows = plain.samples(all_rounds=True), circular.samples()
    assert [s.prompt for s in rounds] == [s.prompt for s in rows]
    assert [s.question_id + 1_000_000 * s.round_id for s in rounds] == [s.question_id for s in rows]
    assert len({s.key for s in rounds}) == len(rounds)
    third = rounds[2]
    assert third.beside == {
        "options": ["green", "black", "red", "blue"],
        "option_char": ["C", "D", "A", "B"],
    }


def test_all_rounds_score_as_circular_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tsv(tmp_path / "plain.tsv", rows_of_file(circular=False))
    samples = read_table(path).samples(all_rounds=True)
    rows = answers_of(samples, lambda _: "")
    for row, sample in zip(rows, samples):
        row["text"] = SAID[sample.question_id + 1_000_000 * sample.round_id]
    answers = write_answers(tmp_path / "answers.jsonl", rows)
    assert evaluate(["--annotation-file", str(path), "--result-file", str(answers)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["all", "33.33", "3", "66.67", "3"]


# --- the upload file -----------------------------------------------------------------------------


def sheet_of(path: Path) -> list[tuple[Any, ...]]:
    openpyxl = pytest.importorskip("openpyxl")
    return list(openpyxl.load_workbook(path).active.iter_rows(values_only=True))


def test_upload_file(data: Path, tmp_path: Path) -> None:
    """Columns and order of LLaVA's converter; answers as they were given."""
    said = {**SAID, 241: "=1+1", 252: "A\x07", 253: "选D"}
    rows = answers_of(read_table(data / NAME).samples(), said)
    write_answers(tmp_path / "answers" / "one.jsonl", rows)
    script = ROOT / "scripts" / "convert_mmbench_for_submission.py"
    args = ["--annotation-file", str(data / NAME), "--result-dir", str(tmp_path / "answers"),
            "--upload-dir", str(tmp_path / "upload"), "--experiment", "one"]  # fmt: skip
    subprocess.run([sys.executable, str(script), *args], check=True, cwd=ROOT)
    sheet = sheet_of(tmp_path / "upload" / "one.xlsx")
    assert sheet[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert [line[0] for line in sheet[1:]] == [row["index"] for row in rows_of_file()]
    assert sheet[1] == (
        241, "Which bus is it?", "red", "blue", "green", "black", "=1+1", "B", "dev"
    )  # fmt: skip
    assert sheet[2][2:8] == ("yes", "no", None, None, "A", "A")
    assert sheet[3][6] == "选D"
    assert sheet[5][6] == SAID[1000252]


def test_upload_of_answers_that_are_not_whole(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = answers_of(read_table(data / NAME).samples()[:4], SAID)
    write_answers(tmp_path / "one.jsonl", rows)
    args = ["--annotation-file", str(data / NAME), "--result-dir", str(tmp_path),
            "--upload-dir", str(tmp_path), "--experiment", "one"]  # fmt: skip
    assert run_main(convert, args) == 3
    assert "6 of 10 rows have no answer" in capsys.readouterr().err
    predictions = [line[6] for line in sheet_of(tmp_path / "one.xlsx")[1:]]
    assert predictions[:4] == ["B", None, None, "A. blue"]


def test_openpyxl_is_asked_for_before_any_compute(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(EvalError, match="needs openpyxl.*pip install openpyxl"):
        score(data, SAID)


# --- bad files -----------------------------------------------------------------------------------


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


# --- the whole way, on a tiny model --------------------------------------------------------------


def test_benchmark_runs(
    data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that breaks off while it is decoded fails its own rows, and says so."""
    rows = rows_of_file(shared=True)
    whole = base64_of(noise(80))
    rows[1]["image"] = whole[: len(whole) // 8 * 4]
    write_tsv(data / NAME, rows)
    out = tmp_path / "out"
    args = ["mmbench", "--model-path", str(tiny_model), "--data", str(data), "--out", str(out),
            "--methods", "full,visiondrop,random", "--tokens", "9", "--batch-size", "4",
            "--max-new-tokens", "2", "--workers", "0", "--nproc", "1",
            "--dtype", "float32"]  # fmt: skip
    assert run_main(run_benchmark.main, args) == 3
    folder = out / "mmbench" / "visiondrop-9"
    result = json.loads((folder / "result.json").read_text())
    assert (result["n"], result["failed"]) == (10, 2)
    assert (result["metric"], result["split"]) == ("circular accuracy", "mmbench_dev_20230712")
    assert result["figures"].keys() == {"plain", "unread"} and result["files"] == ["upload.xlsx"]
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines if "error" in line["metadata"]] == [252, 1000252]
    sheet = sheet_of(folder / "upload.xlsx")
    texts = {
        line["question_id"]: "".join(c for c in line["text"] if c >= " " or c in "\t\n\r") or None
        for line in lines
    }
    assert {line[0]: line[6] for line in sheet[1:]} == texts
    table = (out / "mmbench" / "table.md").read_text()
    assert "| circular accuracy | plain |" in table


def test_answering_command(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    """LLaVA's flags; each answer with what LLaVA writes beside it."""
    out = tmp_path / "answers.jsonl"
    args = ["--model-path", str(tiny_model), "--question-file", str(data / NAME), "--answers-file",
            str(out), "--max_new_tokens", "2", "--workers", "0", "--limit", "5", "--lang", "cn",
            "--batch-size", "5"]  # fmt: skip
    assert answer([*args, "--all-rounds", "--single-pred-prompt"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["question_id"], line["round_id"]) for line in lines] == [
        (241, 0), (241, 1), (241, 2), (241, 3), (1000241, 0)
    ]  # fmt: skip
    assert lines[1]["options"] == ["blue", "green", "black", "red"]
    assert lines[1]["option_char"] == ["B", "C", "D", "A"]
    assert lines[1]["prompt"].endswith("D. red\n请直接回答选项字母。")
    assert answer([*args, "--overwrite"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["prompt"].endswith("D. black")


def test_bad_flags(
    data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model-path", str(tiny_model), "--question-file", str(data / NAME),
            "--answers-file", str(tmp_path / "answers.jsonl")]  # fmt: skip
    assert run_main(answer, [*args, "--lang", "de"]) == 2
    assert "unknown language 'de'; --lang is en or cn" in capsys.readouterr().err
    assert run_main(answer, [*args, "--limit", "0"]) == 2
    assert "limit must be at least 1" in capsys.readouterr().err


def test_bad_pictures_are_refused_before_the_model_is_loaded(
    data: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(running, "load_model", load)
    rows = rows_of_file(shared=True)
    rows[2]["image"] = "QUJD" * 30
    write_tsv(data / NAME, rows)
    args = ["mmbench", "--model-path", str(tiny_model), "--data", str(data), "--out",
            str(tmp_path), "--tokens", "9"]  # fmt: skip
    assert run_main(run_benchmark.main, args) == 2
    assert "line 5: the image cell of index 253 holds no picture" in capsys.readouterr().err
    assert mmbench_tsv.SHORT == 64
