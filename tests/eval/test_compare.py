"""Two runs against each other: hand-made ones with known changes, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.eval.benchmarks import get_benchmark
from llava.eval.compare.changes import COLUMNS, Compared, compare_runs
from llava.eval.compare.redrawing import choose
from llava.eval.compare.report import head_of, plain, verdict, write_report, write_tables
from llava.eval.compare.runs import read_run
from llava.eval.errors import EvalError
from llava.eval.settings import file_digest
from tests.eval.conftest import TinyData, answer_rows

COLOURS = ["red", "green", "blue", "yellow", "black"]
RIGHT = [COLOURS[q % 3] for _ in range(5) for q in range(4)]  # of the tiny data's 20 questions


def write_run(
    folder: Path, data: Path, texts: Sequence[str], name: str = "textvqa", **more: Any
) -> Path:
    """A finished run's folder, with these answers to the first questions."""
    benchmark = get_benchmark(name)
    files = benchmark.files(data)
    rows = answer_rows(name, data, list(texts))
    for row, sample in zip(rows, benchmark.read(files)):
        if sample.round_id is not None:
            row["round_id"] = sample.round_id
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "answers.jsonl").write_text(lines)
    result = {
        "benchmark": name,
        "split": files.split,
        "n": len(rows),
        "score": benchmark.score(rows, files).score,
        "questions_sha256": file_digest(files.questions),
        "method_config": {"name": "full"},
        "model": "tiny",
        "model_fingerprint": "1234",
        "batch_size": 4,
        "dtype": "float32",
        "cell": folder.name,
        "mean_tokens": 36.0,
        **more,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def changed(texts: Sequence[str], **places: str) -> list[str]:
    """The texts with some replaced: ``at5="white"``."""
    out = list(texts)
    for place, text in places.items():
        out[int(place.removeprefix("at"))] = text
    return out


def compare(a: Path, b: Path, data: Path, **more: Any) -> Compared:
    plain = "name" in more
    return compare_runs(read_run(a, plain), read_run(b, plain), data=data, **more)


@pytest.fixture
def known(tmp_path: Path, tiny_data: TinyData) -> tuple[Path, Path]:
    """B loses 0 and 5, gains 3 and says 7 in another way that is right as well."""
    a = write_run(tmp_path / "full-36", tiny_data.folder, changed(RIGHT, at3="no"))
    lost = changed(RIGHT, at0="no", at5="none", at7="white")
    return a, write_run(tmp_path / "fastv-9", tiny_data.folder, lost)


def test_known_changes_are_found(known: tuple[Path, Path], tiny_data: TinyData) -> None:
    found = compare(*known, tiny_data.folder)
    places = {name: [c.place for c in found.of(name)] for name in ("worse", "better", "text")}
    assert places == {"worse": [0, 5], "better": [3], "text": [7]}
    assert found.everything.n == 20
    assert found.everything.counts == {"worse": 2, "better": 1, "text": 1, "same": 16}
    assert found.everything.scores == (95, 90)
    t0, t1 = found.types["t0"], found.types["t1"]
    assert t0.counts == {"worse": 1, "better": 0, "text": 0, "same": 9}
    assert t1.counts == {"worse": 1, "better": 1, "text": 1, "same": 7}
    assert (t0.n, t0.scores, t1.n, t1.scores) == (10, (100, 90), 10, (90, 90))
    change = found.of("better")[0]
    assert change.texts == ("no", "red") and change.scores == (0, 1)
    assert change.question == "What is thing number 3 there there there?"
    assert change.right == "red (6), white (4)" and change.kinds == ("t1",)
    assert found.interval is not None and found.interval.difference == pytest.approx(-5)
    assert found.interval.low < 0 < found.interval.high or found.interval.high == 0
    (test,) = found.tests.values()
    assert (test.lost, test.gained, test.n, test.p) == (2, 1, 20, 1)
    assert found.names["worse"] == "right to wrong" and found.notes == []


def test_the_other_way_round_is_the_opposite(known: tuple[Path, Path], tiny_data: TinyData) -> None:
    there = compare(*known, tiny_data.folder)
    back = compare(*reversed(known), tiny_data.folder)
    assert there.interval is not None and back.interval is not None
    assert back.interval.difference == -there.interval.difference
    assert [c.place for c in back.of("better")] == [c.place for c in there.of("worse")]


def test_identical_runs(known: tuple[Path, Path], tiny_data: TinyData) -> None:
    found = compare(known[0], known[0], tiny_data.folder)
    assert found.of("worse", "better", "text") == [] and len(found.of("same")) == 20
    (test,) = found.tests.values()
    assert test.p == 1
    assert found.interval is not None
    assert (found.interval.difference, found.interval.low, found.interval.high) == (0, 0, 0)


def test_clear_loss_is_certain(tmp_path: Path, tiny_data: TinyData) -> None:
    a = write_run(tmp_path / "a", tiny_data.folder, RIGHT)
    b = write_run(tmp_path / "b", tiny_data.folder, ["no"] * 16 + RIGHT[16:])
    found = compare(a, b, tiny_data.folder)
    (test,) = found.tests.values()
    assert found.interval is not None and found.interval.high < 0
    assert test.p == pytest.approx(2 * 0.5**16)


def test_graded_scores_have_no_mcnemar_test(tmp_path: Path, tiny_data: TinyData) -> None:
    content = json.loads(tiny_data.annotations.read_text())
    content["data"][0]["answers"] = ["pink"] * 2 + ["red"] * 8
    tiny_data.annotations.write_text(json.dumps(content))
    a = write_run(tmp_path / "a", tiny_data.folder, RIGHT)
    b = write_run(tmp_path / "b", tiny_data.folder, changed(RIGHT, at0="pink"))
    found = compare(a, b, tiny_data.folder)
    assert found.tests == {} and found.names["worse"] == "score fell"
    assert "no McNemar test" in " ".join(verdict(found))
    (change,) = found.of("worse")
    assert change.scores == (1, pytest.approx(0.6))


def test_f1_is_compared_as_f1(tmp_path: Path) -> None:
    """POPE's headline is no mean of right answers; per category it is that category's F1."""
    benchmark = get_benchmark("pope")
    data = Path(benchmark.default_data)
    files = benchmark.files(data)
    count = 90
    truth = benchmark.score(answer_rows("pope", data, ["yes"] * count), files).right
    spoilt = ["no" if i % 4 == 0 else text for i, text in enumerate(truth)]
    a = write_run(tmp_path / "a", data, truth, "pope")
    b = write_run(tmp_path / "b", data, spoilt, "pope")
    found = compare(a, b, data)
    score = benchmark.score(answer_rows("pope", data, spoilt), files)
    assert score.score is not None and found.interval is not None
    assert found.interval.difference == pytest.approx(score.score - 100)
    flips = sum(t != s for t, s in zip(truth, spoilt))
    assert found.everything.counts["worse"] == flips and found.interval.high < 0
    assert {k: g.scores for k, g in found.types.items()} == {
        kind: (100, pytest.approx(f1)) for kind, (f1, _) in score.types.items()
    }


def test_mcnemar_takes_whole_circular_questions(tmp_path: Path) -> None:
    data = Path(get_benchmark("mmbench").default_data)
    benchmark = get_benchmark("mmbench")
    files = benchmark.files(data)
    count = 24
    right = benchmark.score(answer_rows("mmbench", data, ["?"] * count), files).right
    a = write_run(tmp_path / "a", data, right, "mmbench")
    b = write_run(tmp_path / "b", data, ["?", "?", *right[2:]], "mmbench")
    found = compare(a, b, data)
    (test,) = found.tests.values()
    parts = benchmark.score(answer_rows("mmbench", data, right), files).parts
    assert parts is not None and test.n == parts[:, 1].sum() < count
    assert test.lost == 1 and found.everything.counts["worse"] == 2


def test_seeds_are_set_against_their_like(tmp_path: Path, tiny_data: TinyData) -> None:
    cell = tmp_path / "random-9"
    for seed, at in ((0, "at1"), (1, "at2")):
        write_run(cell / f"seed-{seed}", tiny_data.folder, changed(RIGHT, **{at: "no"}))
    both = json.loads((cell / "seed-0" / "result.json").read_text())
    (cell / "result.json").write_text(json.dumps({**both, "seeds": [0, 1], "cell": "random-9"}))
    full = write_run(tmp_path / "full-36", tiny_data.folder, RIGHT)
    found = compare(full, cell, tiny_data.folder)
    assert [(c.place, c.seeds) for c in found.of("worse")] == [(1, (None, 0)), (2, (None, 1))]
    assert len(found.changes) == 40 and found.everything.n == 20 and len(found.tests) == 2
    assert found.interval is not None and found.interval.difference == pytest.approx(-5)
    same = compare(cell, cell, tiny_data.folder)
    assert same.of("worse", "better", "text") == [] and set(same.tests) == {(0, 0), (1, 1)}
    one = compare(cell / "seed-1", cell, tiny_data.folder)
    assert {c.seeds for c in one.changes} == {(None, 0), (None, 1)}
    (cell / "seed-1" / "result.json").unlink()
    with pytest.raises(EvalError, match="no result.json; run the same command again"):
        read_run(cell)


def test_other_settings_are_told_in_the_head(tmp_path: Path, tiny_data: TinyData) -> None:
    a = write_run(tmp_path / "a", tiny_data.folder, RIGHT)
    more = {"batch_size": 1, "dtype": "bfloat16", "model": "other", "score": 12.5}
    b = write_run(tmp_path / "b", tiny_data.folder, RIGHT, **more)
    head = " | ".join(head_of(compare(a, b, tiny_data.folder)))
    assert "the models differ: A is of tiny (files 1234...), B of other" in head
    assert "batch_size 4 in A, 1 in B; dtype float32 in A, bfloat16 in B" in head
    assert "B's result.json says 12.50, and its answers score 100.00" in head


def test_what_cannot_be_compared(
    tmp_path: Path, known: tuple[Path, Path], tiny_data: TinyData
) -> None:
    a, _ = known
    data = tiny_data.folder

    def refused(b: Path, message: str, **more: Any) -> None:
        with pytest.raises(EvalError, match=message):
            compare(a, b, data, **more)

    refused(tmp_path / "nowhere", "is not there")
    refused(tmp_path, r"holds 2 runs \(fastv-9, full-36\); give the folder of one")
    pope = Path(get_benchmark("pope").default_data)
    other = write_run(tmp_path / "x" / "pope", pope, ["yes"] * 3, "pope")
    refused(other, "not the same benchmark: .* answers textvqa; .* answers pope")
    split = write_run(tmp_path / "x" / "split", data, RIGHT, split="test")
    refused(split, "not the same split: full-36 answers 'val', split 'test'")
    asked = write_run(tmp_path / "x" / "asked", data, RIGHT, questions_sha256="0" * 64)
    refused(asked, "different question files .* --common")
    short = write_run(tmp_path / "x" / "short", data, RIGHT[:8])
    refused(short, "answers 20 questions and short 8, 8 of them the same; .* --common")
    cut = write_run(tmp_path / "x" / "cut", data, RIGHT, n=19)
    refused(cut, "holds 20 answers and result.json beside it is over 19")
    going = write_run(tmp_path / "x" / "going", data, RIGHT)
    head, batch = {"version": 1}, {"batch": 0, "rows": [{}, {}]}
    lines = [json.dumps(head), json.dumps(batch), '{"batch": 1, "ro']
    (going / "answers.jsonl.partial").write_text("\n".join(lines))
    refused(going, r"not finished \(2 answers in answers.jsonl.partial\); run the same command")
    (short / "result.json").unlink()
    refused(short, "has answers and no result.json; .* --benchmark NAME and --data DIR")
    refused(short / "answers.jsonl", "no result.json beside it .* --benchmark NAME")
    refused(a, "--benchmark says gqa", name="gqa")
    with pytest.raises(EvalError, match="not the question file that was answered.*--data"):
        line = tiny_data.questions.read_text().splitlines()[0]
        tiny_data.questions.write_text(line + "\n")
        compare(a, a, data)


def test_common_questions(tmp_path: Path, known: tuple[Path, Path], tiny_data: TinyData) -> None:
    short = write_run(tmp_path / "x" / "short", tiny_data.folder, changed(RIGHT, at1="no")[:8])
    found = compare(known[0], short, tiny_data.folder, common=True)
    assert found.everything.n == 8 and found.questions.left_out == (12, 0)
    assert [c.place for c in found.of("worse")] == [1]
    assert "12 answers of A and 0 of B are left out" in found.notes[0]


def test_plain_answers_files(tmp_path: Path, known: tuple[Path, Path], tiny_data: TinyData) -> None:
    """LLaVA's own answers name no picture; the changes are those of the runs."""
    files = []
    for run in known:
        rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
        for row in rows:
            del row["image"]
        files.append(tmp_path / f"{run.name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    whole = compare(*known, tiny_data.folder)
    found = compare(*files, tiny_data.folder, name="textvqa")
    assert [c.to_dict() for c in found.changes] == [c.to_dict() for c in whole.changes]
    assert "nothing is known of how it was made" in found.notes[0]
    mixed = compare(known[0], files[1], tiny_data.folder, name="textvqa")
    assert mixed.everything == whole.everything


def test_unscored_benchmarks_compare_texts(tmp_path: Path) -> None:
    data = Path(get_benchmark("mmvet").default_data)
    a = write_run(tmp_path / "a", data, ["a cat", "a dog", "x"], "mmvet")
    b = write_run(tmp_path / "b", data, ["a cat", "a cow", "x"], "mmvet")
    found = compare(a, b, data)
    assert found.everything.counts == {"worse": 0, "better": 0, "text": 1, "same": 2}
    assert found.interval is None and found.tests == {} and found.everything.scores is None
    assert verdict(found) == ["nothing is scored here: texts only"]


def test_files_of_the_report(tmp_path: Path, known: tuple[Path, Path], tiny_data: TinyData) -> None:
    found = compare(*known, tiny_data.folder)
    out = tmp_path / "report"
    table, content = write_tables(found, out)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(COLUMNS) == list(found.changes[0].to_dict())
    assert [(r["place"], r["outcome"]) for r in rows] == [
        ("0", "worse"), ("3", "better"), ("5", "worse"), ("7", "text"),
    ]  # fmt: skip
    data = json.loads(content.read_text())
    assert data["all"] == {
        "n": 20, "worse": 2, "better": 1, "text": 1, "same": 16, "score_a": 95, "score_b": 90,
    }  # fmt: skip
    assert data["mcnemar"][0]["p"] == 1 and data["difference"]["difference"] == pytest.approx(-5)
    text = write_report(found, out, notes=["no drawing"]).read_text()
    assert "| t1 | 10 | 1 | 1 | 1 | 7 | 90.00 | 90.00 | +0.00 |" in text
    assert "## All that changed: 4" in text and "- no drawing" in text
    assert [c.place for c in choose(found, 3)] == [0, 3, 5]  # falls and rises in turn


def test_texts_cannot_break_the_report() -> None:
    assert plain("a | b\n<img src=x> `c` *d* $e$") == (r"a \| b \<img src=x\> \`c\` \*d\* \$e\$")
    assert len(plain("x" * 999)) == 200
