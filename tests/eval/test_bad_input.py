"""Bad input: one clear line, status 2, no traceback, nothing lost, before the model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llava.eval import model_vqa_loader
from llava.eval.errors import run_main
from tests.eval.conftest import TinyData
from tests.eval.test_model_vqa_loader import flags, read


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(model_vqa_loader, "load_model", load)


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command prints."""
    assert run_main(model_vqa_loader.main, args) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    return error


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--method", "visiondorp", "--tokens", "9"),
            "unknown method 'visiondorp'; known",
        ),
        (("--method", "visiondrop"), "no token budget given"),
        (("--method", "visiondrop", "--tokens", "9", "--method-arg", "merg=sum"), "merg"),
        (("--method", "visiondrop", "--tokens", "9", "--method-arg", "merge=max"), "max"),
        (("--method", "visiondrop", "--tokens", "9", "--method-arg", "merge"), "name=value"),
        (("--method", "visiondrop", "--tokens", "40"), "36"),
        (("--method", "random", "--tokens", "40"), "36"),
        (("--method", "uniform", "--tokens", "0"), "1 to 36"),
        (("--dominant", "20", "--contextual", "30"), "contextual"),
        (("--contextual", "3"), "--contextual needs --dominant"),
        (("--layer_list", "[9]", "--image_token_list", "[[4,1]]"), "layer 9"),
        (("--layer_list", "[4,2]", "--image_token_list", "[[4,1],[3,1]]"), "out of order"),
        (("--layer_list", "[2,2]", "--image_token_list", "[[4,1],[3,1]]"), "twice"),
        (("--layer_list", "[2]", "--image_token_list", "[[4,1],[3,1]]"), "1 layers and"),
        (("--layer_list", "[2,", "--image_token_list", "[[4,1]]"), "not valid JSON"),
        (("--layer_list", "__import__('os')"), "not valid JSON"),
        (("--layer_list", "[2]", "--image_token_list", "[4]"), "list of pairs"),
        (("--dominant", "9", "--tokens", "9"), "leave out --tokens"),
        (("--conv-mode", "vicuna_v7"), "unknown conversation 'vicuna_v7'"),
        (("--dtype", "float12"), "unknown dtype 'float12'"),
        (("--image-aspect-ratio", "round"), "unknown image aspect ratio 'round'"),
        (("--image-aspect-ratio", "anyres"), "needs a LLaVA-NeXT checkpoint"),
        (("--limit", "0"), "limit must be at least 1"),
        (("--batch-size", "0"), "batch size must be at least 1"),
        (("--num-chunks", "2", "--chunk-idx", "2"), "chunk index 2 of 2"),
        (("--temperature", "-1"), "temperature"),
        (("--model-path", "nowhere/at/all"), "nowhere/at/all"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_bad_flags(
    tiny_model: Path,
    shared_data: TinyData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "answers.jsonl"
    assert message in refused(flags(tiny_model, shared_data, out, *more), capsys)
    assert not out.exists()


@pytest.mark.usefixtures("no_model")
def test_bad_question_file(
    tiny_model: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = flags(tiny_model, tiny_data, tmp_path / "answers.jsonl", "--limit", "2")
    lines = tiny_data.questions.read_text().splitlines()
    tiny_data.questions.write_text("\n".join([*lines[:7], lines[7][:30], *lines[8:]]))
    assert "line 8: not valid JSON" in refused(args, capsys)
    for bad in (None, [1], {}, 1.5):
        first = json.dumps({**json.loads(lines[0]), "question_id": bad})
        tiny_data.questions.write_text("\n".join([first, *lines[1:]]))
        assert 'line 1: "question_id" must be a text or a whole number' in refused(args, capsys)
    tiny_data.questions.write_text("\n".join([*lines, lines[4]]))
    assert "lines 5 and 21 are the same sample" in refused(args, capsys)
    tiny_data.questions.write_text("\n")
    assert "holds no question" in refused(args, capsys)
    tiny_data.questions.unlink()
    assert "file not found" in refused(args, capsys)


@pytest.mark.usefixtures("no_model")
def test_missing_pictures_are_all_named_before_anything_runs(
    tiny_model: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for p in (1, 2, 3, 4):
        (tiny_data.images / f"picture{p}.png").unlink()
    message = refused(flags(tiny_model, tiny_data, tmp_path / "answers.jsonl"), capsys)
    assert "4 of 5 pictures are not in" in message
    assert "picture1.png (line 5), picture2.png (line 9), picture3.png (line 13) and 1 more" in (
        message
    )


def test_a_corrupt_picture_fails_alone_and_can_be_mended(
    tiny_model: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    method = ("--method", "visiondrop", "--tokens", "9")
    assert model_vqa_loader.main(flags(tiny_model, tiny_data, whole, *method)) == 0
    picture = tiny_data.images / "picture2.png"
    good = picture.read_bytes()
    for bad in (good[: len(good) // 2], b"no picture"):
        picture.write_bytes(bad)
        args = flags(tiny_model, tiny_data, out, *method)
        assert run_main(model_vqa_loader.main, args) == 3
        assert "4 of 20 samples failed" in capsys.readouterr().err
        for row, expected in zip(read(out), read(whole)):
            if row["image"] == "picture2.png":
                assert row["text"] == "" and "picture2.png" in row["metadata"]["error"]
            else:
                assert row == expected
    picture.write_bytes(good)
    assert run_main(model_vqa_loader.main, flags(tiny_model, tiny_data, out, *method)) == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("no_model")
def test_answers_of_another_run_are_refused(
    tiny_model: Path, shared_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("{}\n")
    message = refused(flags(tiny_model, shared_data, out), capsys)
    assert "belongs to another run" in message
    assert out.read_text() == "{}\n"


@pytest.mark.parametrize("harm", ["weights", "half the weights", "architecture", "config"])
def test_bad_checkpoints(
    tiny_model: Path,
    shared_data: TinyData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: str,
) -> None:
    model = tmp_path / "broken-llava"
    shutil.copytree(tiny_model, model)
    config = model / "config.json"
    if harm == "weights":
        (model / "model.safetensors").unlink()
    elif harm == "half the weights":
        index = {
            "metadata": {},
            "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"},
        }
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    elif harm == "architecture":
        text = config.read_text().replace("LlavaForConditionalGeneration", "BertForMaskedLM")
        config.write_text(text)
    else:
        config.write_text(config.read_text()[:100])
    message = refused(flags(model, shared_data, tmp_path / "answers.jsonl"), capsys)
    assert "cannot use the model" in message and "broken-llava" in message
