"""The study of VisionDrop-Div: its short cut is exact, its halves are apart, its cells are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import visiondrop_div as study
from llava.eval.benchmarks.textvqa import TextVQA
from llava.eval.loading import ModelChoice, load_model
from llava.eval.samples import read_questions
from visiondrop import Full

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / TextVQA.default_data


@pytest.fixture(scope="module")
def questions() -> study.Questions:
    loaded = load_model(ModelChoice(str(ROOT / "checkpoints/pocket-llava"), dtype="float32"))
    return study.Questions(loaded, DATA, study.HALVES[0], limit=2)


@torch.inference_mode()
def test_shared_prefix_gives_the_answers_of_one_prompt_a_question(
    questions: study.Questions,
) -> None:
    loaded, method = questions.loaded, study.arms(24, 16, study.HALVES[0])[study.OURS]
    texts, mean = questions.answer(method)
    assert mean == method.mean_tokens(16) == 23.75
    alone = []
    for i in range(0, len(questions.samples), 3):
        prepared = questions.dataset[i]
        assert prepared.image is not None
        with method(loaded.model):
            sequence = loaded.model.generate(
                prepared.input_ids[None],
                images=prepared.image[None],
                max_new_tokens=study.STEPS,
                do_sample=False,
            )
        alone.append(loaded.tokenizer.decode(sequence[0], skip_special_tokens=True).strip())
    assert alone == texts[::3] and len(set(alone)) > 1


def test_halves_share_no_picture_and_are_alike_in_size() -> None:
    samples = read_questions(TextVQA().files(DATA).questions)
    halves = [{s.image for s in samples if study.half_of(str(s.image)) == h} for h in study.HALVES]
    assert not halves[0] & halves[1] and min(map(len, halves)) > 150
    assert len(halves[0] | halves[1]) == len({s.image for s in samples})


def test_cells_are_kept_with_what_they_depend_on(
    questions: study.Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def answer(method: Any) -> tuple[list[str], float]:
        calls.append(method)
        return ["red"] * len(questions.samples), 576.0

    monkeypatch.setattr(questions, "answer", answer)
    path = tmp_path / "full.json"
    first = study.cell(questions, Full(), path, {"dtype": "float32"})
    assert study.cell(questions, Full(), path, {"dtype": "float32"}) == first
    assert len(calls) == 1 and json.loads(path.read_bytes()) == first
    study.cell(questions, Full(), path, {"dtype": "bfloat16"})
    assert len(calls) == 2


def test_rows_hold_paired_differences() -> None:
    def found(*scores: float) -> dict[str, Any]:
        types = {"color": {"score": 100 * sum(scores) / 4, "n": 4}, "exist": {"score": 0.0, "n": 9}}
        settings = {"method": {}}
        return {"settings": settings, "mean_tokens": 9.0, "scores": [*scores], "types": types}

    cells = {study.PLAIN: found(0, 0, 1, 0), study.OURS: found(1, 1, 1, 1)}
    plain, ours = study.compare(cells, ["a", "a", "b", "b"], ["color", "exist", "color", "exist"])
    assert "minus visiondrop" not in plain and plain["score"] == plain["answered"] == 25
    minus = ours["minus visiondrop"]
    assert (minus["difference"], minus["low"], minus["high"]) == (75, 50, 100)
    assert minus["clusters"] == 2
    by_type = ours["types minus visiondrop"]
    assert by_type["color"]["difference"] == 50 and by_type["exist"]["low"] == 100
    assert "**+75.0 [+50.0, +100.0]**" in study.table([plain, ours])
