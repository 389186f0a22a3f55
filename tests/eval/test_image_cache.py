"""Questions about one picture share its prefill, and nothing that is written differs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.eval import running
from llava.eval.errors import EvalError
from llava.eval.loading import load_model
from llava.eval.near_ties import NEAR
from llava.eval.oracle import Oracle
from llava.eval.prefixes import sharing_note, why_not_shared
from llava.eval.run_benchmark import main
from llava.eval.samples import Sample
from tests.eval.conftest import TinyData, write_data
from tests.eval.test_run_benchmark import flags, result
from tests.visiondrop.matrix import METHODS, SETTINGS
from tests.visiondrop.models import generate as generate_tiny
from tests.visiondrop.models import pixels, prompt, tiny
from visiondrop import Full, Random, VisionDrop
from visiondrop.decoder_views import DecoderView
from visiondrop.methods.fastv import FastV
from visiondrop.methods.region import Region
from visiondrop.reuse import reads_keys
from visiondrop.views import EncoderView

VISIONDROP = Path("textvqa") / "visiondrop-9"
BOTH = "full,visiondrop"


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many prompts with a picture each forward runs, of the models loaded from now on."""
    seen: list[int] = []

    def load(choice: Any) -> Any:
        loaded = load_model(choice)
        token = loaded.model.config.image_token_id
        loaded.model.model.register_forward_pre_hook(
            lambda _m, _a, kw: seen.append(int((kw["input_ids"] == token).any(1).sum())),
            with_kwargs=True,
        )
        return loaded

    with patch.context() as inner:
        inner.setattr(running, "load_model", load)
        yield seen


def run(model: Path, data: TinyData, out: Path, *more: str) -> dict[str, bytes]:
    """All answers files of a run, by cell."""
    assert main(flags(model, data, out, *more)) == 0
    found = (out / "textvqa").rglob("answers.jsonl")
    return {file.parent.name: file.read_bytes() for file in found}


@pytest.fixture(scope="module")
def whole(tiny_model: Path, shared_data: TinyData, tmp_path_factory: Any) -> Path:
    """A run without the cache, of every kind of method."""
    out = tmp_path_factory.mktemp("whole")
    methods = ["--methods", "full,visiondrop,fastv,random", "--image-cache", "off"]
    run(tiny_model, shared_data, out, *methods)
    return out


def test_the_answers_file_is_the_same_with_and_without(
    tiny_model: Path,
    shared_data: TinyData,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five pictures with four questions each, in batches of three that end amid a picture."""
    with counted(monkeypatch) as seen:
        answers = run(tiny_model, shared_data, tmp_path, "--methods", BOTH)
    assert sum(seen) == 2 * 5, "each picture once for each method"
    for cell in ("full-36", "visiondrop-9"):
        assert answers[cell] == (whole / "textvqa" / cell / "answers.jsonl").read_bytes()
        here, there = (result(out / "textvqa" / cell) for out in (tmp_path, whole))
        assert here["image_cache"] == {"used": True}
        assert there["image_cache"] == {"used": False, "reason": "turned off"}
        for name in ("score", "mean_tokens", "flops", "kv_bytes", "settings_digest", "types"):
            assert here[name] == there[name], name
        margins = [
            json.loads((out / "textvqa" / cell / "answers.jsonl.settings.json").read_text())[
                "margins"
            ]
            for out in (tmp_path, whole)
        ]
        assert max(abs(a - b) for a, b in zip(*margins, strict=True)) < NEAR


@pytest.mark.parametrize(
    "more",
    [["--num_beams", "2"], ["--temperature", "0.8"], ["--batch-size", "20"]],
    ids=lambda more: more[0].strip("-"),
)
def test_ways_of_answering(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, more: list[str]
) -> None:
    options = ["--methods", "visiondrop", *more]
    on = run(tiny_model, shared_data, tmp_path / "on", *options)
    off = run(tiny_model, shared_data, tmp_path / "off", *options, "--image-cache", "off")
    assert on == off and on


def test_an_interrupted_run_goes_on_and_ends_bit_for_bit_alike(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    """Margins, too: what a picture's prefill gives does not depend on where the run stopped."""
    options = ["--methods", "visiondrop"]
    straight = run(tiny_model, shared_data, tmp_path / "straight", *options)
    run(tiny_model, shared_data, tmp_path / "halted", *options, "--limit", "8")
    assert run(tiny_model, shared_data, tmp_path / "halted", *options) == straight
    beside = [
        json.loads((tmp_path / n / VISIONDROP / "answers.jsonl.settings.json").read_text())
        for n in ("straight", "halted")
    ]
    # The limit ended amid a batch of three; that batch was answered again, as a whole.
    assert beside[0]["margins"] == beside[1]["margins"]


def test_what_asks_the_question_or_draws_by_it_runs_whole_prompts(
    tiny_model: Path,
    shared_data: TinyData,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with counted(monkeypatch) as seen:
        answers = run(tiny_model, shared_data, tmp_path, "--methods", "fastv,random")
    assert sum(seen) == 2 * 20
    reasons = {}
    for cell, content in answers.items():
        assert content == (whole / "textvqa" / cell / "answers.jsonl").read_bytes()
        reasons[cell] = result(tmp_path / "textvqa" / cell)["image_cache"]["reason"]
    assert reasons["fastv-9"].endswith("it chooses by the text after the picture")
    assert reasons["random-9"].endswith("it chooses by the sample's key, another for each question")


def test_a_failing_picture_fails_its_questions_alone(tiny_model: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", pictures=3)
    (data.images / "picture1.png").write_bytes(b"no picture")
    on, off = (
        main(flags(tiny_model, data, tmp_path / n, "--methods", "full", "--image-cache", n))
        for n in ("on", "off")
    )
    assert on == off != 0
    read = [(tmp_path / n / "textvqa" / "full-36" / "answers.jsonl") for n in ("on", "off")]
    texts = [file.read_text() for file in read]
    assert texts[0] == texts[1] and texts[0].count("cannot read picture") == 4


def test_where_it_is_worth_while() -> None:
    def samples(*names: str | None) -> list[Sample]:
        return [Sample(i, "?", name) for i, name in enumerate(names)]

    method = VisionDrop(encoder=(14, 4))
    assert why_not_shared(method, samples(*"aabb", None)) is None
    assert why_not_shared(method, samples(*"aabc")) == "1.33 questions a picture"
    assert why_not_shared(method, samples(None, None)) == "0.00 questions a picture"
    assert sharing_note(True, FastV(2, tokens=9), samples(*"aa"))["used"] is False
    assert sharing_note(False, Full(), samples(*"aa")) == {"used": False, "reason": "turned off"}


def test_below_float32_it_is_part_of_the_settings(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path
) -> None:
    """Last bits may turn an answer there: a run is not mixed from both."""
    options = ["--methods", "full,fastv", "--dtype", "bfloat16", "--limit", "8"]
    run(tiny_model, shared_data, tmp_path, *options)
    digest = {
        c: result(tmp_path / "textvqa" / c)["settings_digest"] for c in ("full-36", "fastv-9")
    }
    off = flags(tiny_model, shared_data, tmp_path, *options, "--image-cache", "off")
    with pytest.raises(EvalError, match="image_cache: true there, null here"):
        main(off)
    run(tiny_model, shared_data, tmp_path / "off", *options, "--image-cache", "off")
    for cell, known in digest.items():
        other = result(tmp_path / "off" / "textvqa" / cell)["settings_digest"]
        assert (other == known) == (cell == "fastv-9"), "what is asked whole is the same run"


def test_methods_say_whether_they_read_sample_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """By running each: `keys` of a view is noted, and nothing else is changed."""
    read: list[str] = []
    for view in (EncoderView, DecoderView):
        keys = view.__dict__["keys"]

        def noted(self: Any, keys: Any = keys) -> list[str]:
            read.append("keys")
            return keys.func(self)

        monkeypatch.setattr(view, "keys", property(noted))
    model, images = tiny(), pixels(1)
    for name, method in METHODS.items():
        if "single" in SETTINGS[name].exempt:
            continue
        read.clear()
        with method(model, questions=["is it?"]), torch.no_grad():
            generate_tiny(model, [prompt(3, 6, 1)], images, max_new_tokens=1, min_new_tokens=1)
        assert not read or reads_keys(method), f"{name} reads keys: say so by reads_keys = True"
    assert reads_keys(Random(9)) and reads_keys(Random(20) + VisionDrop(llm={3: (6, 2)}))
    assert reads_keys(Oracle(9)) and reads_keys(Region({"a": [(0.1, 0.1, 0.5, 0.5)]}))
    assert not reads_keys(Full())
