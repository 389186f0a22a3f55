"""Answers that came close to being others: margins, and what another batch size may change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.eval.answering import generate
from llava.eval.loading import ModelChoice, load_model
from llava.eval.near_ties import NEAR, Margins, all_near_ties, near_ties
from llava.eval.preparing import QuestionDataset
from llava.eval.run_benchmark import main
from llava.eval.samples import Sample, read_questions
from llava.eval.settings import RunSettings
from tests.eval.conftest import TinyData
from tests.eval.test_run_benchmark import flags, result
from visiondrop import Full, VisionDrop


def test_margins_are_the_models_own(tiny_model: Path, shared_data: TinyData) -> None:
    """A batch of unequal prompts, against each one's logits in one forward over all its tokens."""
    loaded = load_model(ModelChoice(str(tiny_model), device="cpu"))
    samples = read_questions(shared_data.questions)[:5]
    dataset = QuestionDataset(
        samples, shared_data.images, loaded.tokenizer, loaded.image_processor,
        loaded.model.config, "vicuna_v1", "pad",
    )  # fmt: skip
    settings = RunSettings("m", None, "q", {}, max_new_tokens=6)
    ready = [dataset[i] for i in range(5)]
    assert len({len(p.input_ids) for p in ready}) > 2
    margins = Margins()
    with torch.inference_mode(), Full()(loaded.model) as trace:
        texts, counts = generate(loaded, ready, samples, settings, trace, margins)
        assert (texts, counts) == generate(loaded, ready, samples, settings, trace)
    for p, count, found in zip(ready, counts, margins.least(counts)):
        out = loaded.model.generate(
            p.input_ids[None], images=p.image[None], do_sample=False, max_new_tokens=6,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        steps = [logits[0].sort().values for logits in out.logits[:count]]
        assert found == pytest.approx(min(float(s[-1] - s[-2]) for s in steps), abs=1e-4)


def test_padding_after_the_end_does_not_count() -> None:
    margins = Margins()
    for best in (3.0, 2.0, 1.0):
        scores = torch.tensor([[best, 0.0, -1.0], [4.0, 0.5, 0.0]])
        assert margins(None, scores) is scores
    assert margins.least([2, 3]) == [2.0, 3.5]
    assert margins.least([3, 0]) == [1.0, None]


def test_near_ties_are_listed() -> None:
    samples = [Sample(f"q{i}", "?", None, line=i + 1) for i in range(4)]
    found = near_ties(samples, [NEAR, NEAR / 2, None, 0.0])
    assert (found["checked"], found["count"]) == (3, 2)
    assert [(tie["line"], tie["question_id"]) for tie in found["samples"]] == [(2, "q1"), (4, "q3")]
    assert all_near_ties([found, found])["count"] == 4


def test_a_tie_is_found_in_a_run(tiny_model: Path, shared_data: TinyData, tmp_path: Path) -> None:
    """Every token has a twin with the same row of weights: each step is a tie."""
    model = tmp_path / "twins"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = load_file(model / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("lm_head.weight")]
    half = len(weights[name]) // 2
    weights[name][half : 2 * half] = weights[name][:half]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    more = ("--methods", "full", "--limit", "5")
    assert main(flags(model, shared_data, tmp_path / "out", *more)) == 0
    ties = result(tmp_path / "out" / "textvqa" / "full-36")["near_ties"]
    assert (ties["checked"], ties["count"]) == (5, 5)
    assert all(tie["margin"] == 0 for tie in ties["samples"])
    assert main(flags(model, shared_data, tmp_path / "beams", *more, "--num_beams", "2")) == 0
    ties = result(tmp_path / "beams" / "textvqa" / "full-36")["near_ties"]
    assert (ties["checked"], ties["count"]) == (0, 0), "beams have no margin"


@pytest.mark.parametrize("method", [Full(), VisionDrop.from_average(64, num_layers=16)])
def test_batch_sizes_give_the_same_texts_but_for_near_ties(tmp_path: Path, method: Any) -> None:
    """The bundled model in float32, prompts of unequal length: batches of 1, 3 and 8."""
    answers: dict[int, list[str]] = {}
    near: set[int] = set()
    name = method.name
    for batch in (1, 3, 8):
        out = tmp_path / str(batch)
        assert main(
            [
                *("textvqa", "--methods", name, "--tokens", "64", "--limit", "16"),
                *("--dtype", "float32", "--out", str(out), "--nproc", "1", "--workers", "0"),
                *("--batch-size", str(batch), "--device", "cpu"),
            ]
        ) == 0  # fmt: skip
        (folder,) = (out / "textvqa").glob(f"{name}-*")
        rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        assert len({row["metadata"]["text_tokens"] for row in rows}) > 3
        answers[batch] = [row["text"] for row in rows]
        ties = result(folder)["near_ties"]
        assert ties["checked"] == 16
        near |= {tie["line"] - 1 for tie in ties["samples"]}
    assert len(near) < 8, "what is not compared must be the exception"
    for i, text in enumerate(answers[1]):
        assert i in near or answers[3][i] == answers[8][i] == text
