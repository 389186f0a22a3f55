"""`--engine`: the same answers, recorded; who cannot be recorded runs as ever and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval.errors import EvalError
from tests.eval.conftest import TinyData
from tests.eval.test_image_cache import run
from tests.eval.test_run_benchmark import flags, main, result
from visiondrop.kernels import CALLS

METHODS = ["--methods", "full,visiondrop,vmtc_cmai"]


def texts(out: Path, cell: str) -> list[str]:
    """Answers in the order of the questions."""
    lines = (out / "textvqa" / cell / "answers.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("image_cache", ["on", "off"])
def test_the_answers_are_the_same(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, image_cache: str
) -> None:
    more = [*METHODS, "--image-cache", image_cache]
    plain, fast = tmp_path / "plain", tmp_path / "fast"
    run(tiny_model, shared_data, plain, *more)
    before = CALLS.copy()
    run(tiny_model, shared_data, fast, *more, "--engine", "replay")
    ways = CALLS - before
    assert ways["prefill:graph"] > 0 and ways["tower:graph"] > 0, "recordings answered"
    for folder in (plain / "textvqa").iterdir():
        if not (folder / "answers.jsonl").exists():
            continue
        cell = folder.name
        assert texts(plain, cell) == texts(fast, cell)
        here, there = (result(out / "textvqa" / cell) for out in (fast, plain))
        assert there["engine"] == "none" and here["score"] == there["score"]
        changes_layers = cell.startswith("vmtc")
        assert here["engine"] == ("none" if changes_layers else "replay")
        same = here["settings_digest"] == there["settings_digest"]
        assert same == changes_layers, "another engine is another run, none is the run of before"


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("graphs", "--engine graphs needs a CUDA device, not cpu"),
        ("fast", "unknown engine 'fast'; choose one of none, compile"),
    ],
)
def test_refused_before_the_model_is_loaded(
    tiny_model: Path,
    shared_data: TinyData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    said: str,
) -> None:
    monkeypatch.setattr("llava.eval.running.load_model", lambda _: pytest.fail("loaded"))
    with pytest.raises(EvalError, match=said):
        main(flags(tiny_model, shared_data, tmp_path, *METHODS, "--engine", engine))
