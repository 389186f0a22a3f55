"""The answering command on a tiny model: format, batches, chunks, resuming after a kill."""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from llava.eval.answers import AnswerStore
from llava.eval.model_vqa_loader import main
from tests.eval.conftest import TinyData


def flags(model: Path, data: TinyData, out: Path, *more: str) -> list[str]:
    return [
        *("--model-path", str(model), "--question-file", str(data.questions)),
        *("--image-folder", str(data.images), "--answers-file", str(out)),
        *("--max_new_tokens", "4", "--workers", "0", "--batch-size", "3", *more),
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path: Path) -> list[str]:
    return [row["text"] for row in read(path)]


VISIONDROP = ("--method", "visiondrop", "--tokens", "9")


def test_writes_llavas_answer_lines(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    assert main(flags(tiny_model, shared_data, out, *VISIONDROP)) == 0
    questions = [json.loads(line) for line in shared_data.questions.read_text().splitlines()]
    rows = read(out)
    assert len(rows) == len(questions) == 20
    for row, question in zip(rows, questions):
        assert row["question_id"] == question["question_id"]
        assert row["prompt"] == question["text"]
        assert row["image"] == question["image"]
        assert row["model_id"] == "tiny-llava"
        assert isinstance(row["text"], str) and isinstance(row["metadata"], dict)
        runs = row["metadata"]["visual_tokens"]
        assert sum(layers for _, layers in runs) == 8
        assert abs(sum(t * n for t, n in runs) / 8 - 9) <= 0.25
        assert row["metadata"]["kv_bytes"] > 0
        assert row["metadata"]["new_tokens"] <= 4
    assert len({row["answer_id"] for row in rows}) == 20
    assert len({row["text"] for row in rows}) > 5, "the tiny model should not answer all alike"


def test_batch_size_does_not_change_answers(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    out = {}
    for method in (VISIONDROP, ("--method", "random", "--tokens", "9"), ()):
        for batch in ("1", "7"):
            path = tmp_path / f"{len(out)}.jsonl"
            args = [*flags(tiny_model, shared_data, path, *method), "--batch-size", batch]
            assert main(args) == 0
            out[method, batch] = texts(path)
        assert out[method, "1"] == out[method, "7"]
    assert out[VISIONDROP, "1"] != out[(), "1"]


@pytest.mark.parametrize(
    "extra",
    [("--num_beams", "2"), ("--temperature", "0.7", "--top_p", "0.9")],
    ids=["beams", "sampling"],
)
def test_resumed_run_equals_a_whole_one(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    """Beams and sampling too: what a batch draws depends on its samples, not on what ran before."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    method = ("--method", "random", "--tokens", "9", "--limit", "9", *extra)
    assert main(flags(tiny_model, shared_data, whole, *method)) == 0
    stopped = RuntimeError("stopped")

    def stop_after_two(self: AnswerStore, batch: int, *answers: Any) -> None:
        append(self, batch, *answers)
        if batch == 1:
            raise stopped

    append = AnswerStore.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerStore, "append", stop_after_two)
        with pytest.raises(RuntimeError, match="stopped"):
            main(flags(tiny_model, shared_data, cut, *method))
    assert not cut.exists()
    assert main(flags(tiny_model, shared_data, cut, *method)) == 0
    assert cut.read_bytes() == whole.read_bytes()


def test_two_chunks_are_one_run(tiny_model: Path, shared_data: TinyData, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    assert main(flags(tiny_model, shared_data, whole, *VISIONDROP)) == 0
    parts = b""
    for i in ("0", "1"):
        part = tmp_path / f"2_{i}.jsonl"
        chunk = ("--num-chunks", "2", "--chunk-idx", i)
        assert main(flags(tiny_model, shared_data, part, *VISIONDROP, *chunk)) == 0
        parts += part.read_bytes()
    assert parts == whole.read_bytes()


def test_released_flags_are_the_method(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    stages = ("--layer_list", "[2,4]", "--image_token_list", "[[8,2],[5,1]]",
              "--dominant", "14", "--contextual", "3", "--limit", "3")  # fmt: skip
    assert main(flags(tiny_model, shared_data, out, *stages)) == 0
    for row in read(out):
        assert row["metadata"]["visual_tokens"] == [[17, 2], [10, 2], [6, 4]]
    settings = json.loads(out.with_name("answers.jsonl.settings.json").read_text())["settings"]
    assert settings["method"]["encoder"] == [14, 3]
    assert settings["method"]["llm"] == {"2": [8, 2], "4": [5, 1]}


def test_blank_picture_hides_the_picture(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    """With one question asked of every picture, only the picture could tell the answers apart."""
    questions = tmp_path / "same.jsonl"
    lines = [
        {"question_id": p, "image": f"picture{p}.png", "text": "What is it?\nShort."}
        for p in range(5)
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen, blank = tmp_path / "seen.jsonl", tmp_path / "blank.jsonl"
    data = TinyData(shared_data.folder, questions, shared_data.images, shared_data.annotations)
    assert main(flags(tiny_model, data, seen)) == 0
    ratio = ("--image-aspect-ratio", "square")  # padding would show the picture's shape
    assert main(flags(tiny_model, data, blank, "--blank-picture", *ratio)) == 0
    assert len(set(texts(seen))) > 1
    assert len(set(texts(blank))) == 1


def alone(args: list[str]) -> int:
    """`main` in a forked process, with a lock of its own for its progress bars: killed while it
    held the one that it shares with this process, it would leave that locked for good."""
    tqdm.set_lock(threading.RLock())
    return main(args)


def test_kill_minus_nine_at_several_moments(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    """A process of its own, killed while it answers: nothing is lost, nothing answered twice."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    partial = out.with_name(out.name + ".partial")
    more = (*VISIONDROP, "--max_new_tokens", "32")
    assert main(flags(tiny_model, shared_data, whole, *more)) == 0
    kept = b""
    for batches in (1, 2, 4):
        process = multiprocessing.get_context("fork").Process(
            target=alone, args=(flags(tiny_model, shared_data, out, *more),)
        )
        process.start()
        deadline = time.monotonic() + 90
        while not (partial.exists() and partial.read_bytes().count(b"\n") > batches):
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not out.exists()
        now = partial.read_bytes()
        assert now.startswith(kept), "what was on the disk stayed as it was"
        kept = now[: now.rfind(b"\n") + 1]
    answered = kept.count(b"\n") - 1
    assert 4 <= answered < 7
    computed: list[int] = []
    append = AnswerStore.append

    def count(self: AnswerStore, batch: int, *answers: Any) -> None:
        computed.append(batch)
        append(self, batch, *answers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerStore, "append", count)
        assert main(flags(tiny_model, shared_data, out, *more)) == 0
    assert computed == list(range(answered, 7))
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_questions_without_a_picture_among_others(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in shared_data.questions.read_text().splitlines()[:5]]
    for i in (1, 3):
        lines[i] = {"question_id": i, "text": "Is there no picture here?" + " Really?" * i}
    questions = tmp_path / "mixed.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = TinyData(shared_data.folder, questions, shared_data.images, shared_data.annotations)
    out = {}
    for batch in ("1", "5"):
        path = tmp_path / f"{batch}.jsonl"
        args = flags(tiny_model, data, path, "--method", "random", "--tokens", "9")
        assert main([*args, "--batch-size", batch]) == 0
        out[batch] = [(row["text"], row["metadata"]) for row in read(path)]
    assert out["1"] == out["5"]
    assert ["visual_tokens" in metadata for _, metadata in out["5"]] == [True, False] * 2 + [True]
