"""One picture with many questions passes the vision tower once, wherever its batches end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llava.eval import answering, running
from llava.eval.answering import in_several_batches
from llava.eval.loading import load_model
from llava.eval.run_benchmark import main
from llava.eval.samples import Sample, batches_of
from tests.eval.conftest import TinyData
from tests.eval.test_run_benchmark import flags

ANSWERS = Path("textvqa") / "visiondrop-9" / "answers.jsonl"


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures the tower encodes in each pass of the models loaded from now on."""
    seen: list[int] = []

    def load(choice: Any) -> Any:
        loaded = load_model(choice)
        embeddings = loaded.model.model.vision_tower.embeddings
        embeddings.register_forward_pre_hook(lambda _m, args: seen.append(len(args[0])))
        return loaded

    with patch.context() as inner:
        inner.setattr(running, "load_model", load)
        yield seen


@pytest.mark.parametrize("batch", [1, 3, 7, 20])
def test_each_picture_is_encoded_once(
    tiny_model: Path,
    shared_data: TinyData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    """Five pictures with four questions each: batches of 3 and 7 end amid a picture."""
    args = flags(tiny_model, shared_data, tmp_path, "--methods", "visiondrop")
    with counted(monkeypatch) as seen:
        assert main([*args, "--batch-size", str(batch)]) == 0
    assert sum(seen) == 5
    assert max(seen) == (5 if batch == 20 else 1), "what comes again passes alone"


def test_without_room_it_is_encoded_once_a_batch_and_alike(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = flags(tiny_model, shared_data, tmp_path / "with", "--methods", "visiondrop")
    assert main(args) == 0
    monkeypatch.setattr(answering, "RUN_CACHE_BYTES", 0)
    with counted(monkeypatch) as seen:
        without = flags(tiny_model, shared_data, tmp_path / "without", "--methods", "visiondrop")
        assert main(without) == 0
    assert sum(seen) == 10, "batches of 3 split each of the five pictures in two"
    answers = [(tmp_path / name / ANSWERS).read_bytes() for name in ("with", "without")]
    assert answers[0] == answers[1]


def test_runs_that_share_a_cache_answer_as_alone(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = flags(tiny_model, shared_data, tmp_path / "alone", "--methods", "random,visiondrop")
    shared = flags(tiny_model, shared_data, tmp_path / "shared", "--methods", "random,visiondrop")
    with counted(monkeypatch) as seen:
        assert main(alone) == 0
        assert sum(seen) == 10
        seen.clear()
        assert main([*shared, "--tower-cache", "64"]) == 0
        assert sum(seen) == 5
    answers = [(tmp_path / name / ANSWERS).read_bytes() for name in ("alone", "shared")]
    assert answers[0] == answers[1]


def test_which_pictures_come_again() -> None:
    names = [*"aaabbc", None, *"cad"]
    samples = [Sample(i, "?", name) for i, name in enumerate(names)]
    assert in_several_batches(samples, batches_of(10, 4)) == frozenset("ab")
    assert in_several_batches(samples, batches_of(10, 10)) == frozenset()
