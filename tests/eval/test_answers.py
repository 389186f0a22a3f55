"""The answers file: order, resuming after any cut, owners, locks, full disks."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava.eval.answering import make_row
from llava.eval.answers import AnswerStore
from llava.eval.errors import EvalError
from llava.eval.samples import Sample, answer_key, chunk_of_batches, read_questions, sample_key
from llava.eval.settings import RunSettings

SETTINGS = RunSettings(
    model="m", model_fingerprint="f", questions="q", method={"name": "full"}, batch_size=3
)


def make_samples(n: int) -> list[Sample]:
    """Three questions under each id, as in the real TextVQA file."""
    return [Sample(i // 3, f"question {i}?", f"{i // 3}.png", line=i + 1) for i in range(n)]


def fill(store: AnswerStore, batches: list[int] | None = None) -> None:
    for k in store.todo if batches is None else batches:
        rows = [
            make_row(store.samples[i], store.settings, f"text {i}", {"n": i})
            for i in store.batches[k]
        ]
        store.append(k, rows, 0.5)


def whole_run(folder: Path, n: int = 10, settings: RunSettings = SETTINGS) -> bytes:
    path = folder / "whole.jsonl"
    with AnswerStore(path, settings, make_samples(n)) as store:
        fill(store)
        store.finish()
    return path.read_bytes()


def test_answers_in_order_whatever_order_they_came_in(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, SETTINGS, make_samples(10)) as store:
        fill(store, [3, 0, 2, 1])
        store.finish()
    assert path.read_bytes() == whole_run(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"question {i}?" for i in range(10)]
    assert [answer_key(row) for row in rows] == [s.key for s in make_samples(10)]
    assert len({row["answer_id"] for row in rows}) == 10
    assert not list(tmp_path.glob("*.partial*"))


def test_resume_after_a_cut_anywhere(tmp_path: Path) -> None:
    """A kill can stop a write anywhere: no answer that was on the disk whole is asked again."""
    whole = whole_run(tmp_path)
    path = tmp_path / "answers.jsonl"
    partial = tmp_path / "answers.jsonl.partial"
    with AnswerStore(path, SETTINGS, make_samples(10)) as store:
        fill(store, [0, 1, 2])
    data = partial.read_bytes()
    header = data.index(b"\n") + 1
    newlines = {i + d for i, byte in enumerate(data) if byte == 10 for d in (0, 1, 2)}
    cuts = newlines | set(range(header, len(data), 211)) | {len(data)}
    for cut in sorted(c for c in cuts if header <= c <= len(data)):
        partial.write_bytes(data[:cut])
        with AnswerStore(path, SETTINGS, make_samples(10)) as store:
            kept = data[:cut].count(b"\n") - 1
            assert store.todo == list(range(kept, 4))
            fill(store)
            store.finish()
            assert store.computed == 10 - 3 * kept
        assert path.read_bytes() == whole
        path.unlink()


def test_a_finished_file_is_not_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, SETTINGS, make_samples(10)) as store:
        fill(store)
        store.finish()
    before = path.stat().st_mtime_ns
    with AnswerStore(path, SETTINGS, make_samples(10)) as store:
        assert store.todo == [] and store.seconds == 2.0
        assert len(store.finish()) == 10 and store.computed == 0
    assert path.stat().st_mtime_ns == before


def test_a_larger_limit_keeps_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, SETTINGS, make_samples(7)) as store:
        fill(store)
        store.finish()
    with AnswerStore(path, SETTINGS, make_samples(10)) as store:
        assert store.todo == [2, 3]
        fill(store, [2])
    with AnswerStore(path, SETTINGS, make_samples(10)) as store:
        assert store.todo == [3]
        fill(store)
        store.finish()
    assert path.read_bytes() == whole_run(tmp_path)
    with pytest.raises(EvalError, match="already holds 10 answers and this run asks for 7"):
        AnswerStore(path, SETTINGS, make_samples(7))


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "partial"])
def test_another_runs_file_is_refused(tmp_path: Path, finished: bool) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, SETTINGS, make_samples(10)) as store:
        fill(store, None if finished else [0])
        if finished:
            store.finish()
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = replace(SETTINGS, dtype="bfloat16", method={"name": "random", "seed": 1})
    with pytest.raises(EvalError) as caught:
        AnswerStore(path, other, make_samples(10))
    message = str(caught.value)
    assert 'dtype: "float32" there, "bfloat16" here' in message
    assert "method:" in message and "batch_size" not in message
    assert "--overwrite" in message
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == kept
    with AnswerStore(path, other, make_samples(10), overwrite=True) as store:
        assert store.todo == [0, 1, 2, 3]


def test_a_file_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question_id": 1, "prompt": "p", "text": "t"}\n')
    with pytest.raises(EvalError, match="belongs to another run: no answers.jsonl.settings.json"):
        AnswerStore(path, SETTINGS, make_samples(3))


def test_other_questions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, SETTINGS, make_samples(6)) as store:
        fill(store)
        store.finish()
    with pytest.raises(EvalError, match="answers other questions than this run asks"):
        AnswerStore(path, SETTINGS, make_samples(12)[6:])


def test_two_runs_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, SETTINGS, make_samples(3)):
        with pytest.raises(EvalError, match="another run is writing"):
            AnswerStore(path, SETTINGS, make_samples(3))
    AnswerStore(path, SETTINGS, make_samples(3)).close()


def test_an_orphaned_process_keeps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, SETTINGS, make_samples(3), part="0of2"):
        with pytest.raises(EvalError, match="still writing"):
            AnswerStore(path, SETTINGS, make_samples(3))


def test_no_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match="cannot write answers to .*choose another place"):
        AnswerStore(tmp_path / "file" / "answers.jsonl", SETTINGS, make_samples(3))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(EvalError, match="Permission denied"):
        AnswerStore(tmp_path / "new" / "answers.jsonl", SETTINGS, make_samples(3))


@pytest.mark.parametrize("written", [0, 40], ids=["nothing", "half-a-line"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, SETTINGS, make_samples(10)) as store:
        fill(store, [0, 1])

        def write(stream: Any, data: bytes) -> None:
            stream.write(data[:written])
            stream.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(AnswerStore, "_write", staticmethod(write))
            with pytest.raises(EvalError, match="disk is full.*6 of 10 answers are kept.*again"):
                fill(store, [2])
        fill(store, [2])  # space was made: the same store goes on
    with AnswerStore(path, SETTINGS, make_samples(10)) as store:
        assert store.todo == [3]
        fill(store)
        store.finish()
    assert path.read_bytes() == whole_run(tmp_path)


def test_parts_of_several_processes_come_together(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    samples = make_samples(10)
    for index in range(2):
        with AnswerStore(path, SETTINGS, samples, part=f"{index}of2") as store:
            chunk = chunk_of_batches(len(store.batches), 2, index)
            fill(store, [k for k in chunk if k != 3])  # the second is killed before its end
    with AnswerStore(path, SETTINGS, samples) as store:
        assert store.todo == [3]
        assert [p.name for p in tmp_path.glob("*.partial*")] == ["answers.jsonl.partial"]
        fill(store)
        store.finish()
        assert store.computed == 1
    assert path.read_bytes() == whole_run(tmp_path)


def test_failed_samples_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    samples = make_samples(6)
    with AnswerStore(path, SETTINGS, samples) as store:
        fill(store, [0])
        rows = [make_row(s, SETTINGS, "", {"error": "cannot read"}) for s in samples[3:]]
        store.append(1, rows, 0.1)
        store.finish()
    with AnswerStore(path, SETTINGS, samples) as store:
        assert store.todo == [1]
        fill(store)
        store.finish()
    assert path.read_bytes() == whole_run(tmp_path, 6)


def test_answer_id_depends_on_sample_and_settings() -> None:
    one, two = make_samples(2)
    ids = {
        make_row(sample, settings, "", {})["answer_id"]
        for sample in (one, two)
        for settings in (SETTINGS, replace(SETTINGS, seed=1))
    }
    assert len(ids) == 4


def test_key_tells_apart_what_ids_do_not() -> None:
    keys = {
        sample_key(*parts)
        for parts in [
            (1, None, "a.png", "p"),
            ("1", None, "a.png", "p"),
            (1, 0, "a.png", "p"),
            (1, None, "b.png", "p"),
            (1, None, "a.png", "q"),
        ]
    }
    assert len(keys) == 5


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


GOOD = json.dumps({"question_id": 1, "image": "a.png", "text": "p"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no question"),
        (["", "  "], "holds no question"),
        ([GOOD, '{"question_id": 2, "te'], "line 2: not valid JSON"),
        ([GOOD, "[1]"], "line 2: expected a JSON object"),
        ([GOOD, '{"question_id": 2}'], "line 2: no text"),
        (["", GOOD, GOOD], "lines 2 and 3 are the same sample"),
    ],
    ids=["empty", "blank", "broken", "list", "incomplete", "twice"],
)
def test_bad_question_files(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        read_questions(write_lines(tmp_path / "q.jsonl", lines))


def test_equal_lines_with_round_ids_are_two_samples(tmp_path: Path) -> None:
    lines = [json.dumps({**json.loads(GOOD), "round_id": i}) for i in range(2)]
    assert len(read_questions(write_lines(tmp_path / "q.jsonl", lines))) == 2


@pytest.mark.parametrize(("batches", "chunks"), [(7, 3), (3, 7), (1, 1), (8, 4)])
def test_chunks_cover_all_batches_once(batches: int, chunks: int) -> None:
    parts = [k for i in range(chunks) for k in chunk_of_batches(batches, chunks, i)]
    assert parts == list(range(batches))


@pytest.mark.parametrize(("chunks", "index"), [(0, 0), (2, 2), (2, -1)])
def test_impossible_chunks(chunks: int, index: int) -> None:
    with pytest.raises(EvalError, match="need 0 <= index"):
        chunk_of_batches(4, chunks, index)
