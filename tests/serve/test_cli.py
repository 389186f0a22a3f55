"""The chat in a terminal, driven by lines as from a pipe, against the bundled model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava.conversation import get_template
from llava.eval.answering import LoadedModel
from llava.eval.errors import run_main
from llava.mm_utils import process_images, tokenizer_image_token
from llava.serve import cli
from tests.serve.conftest import PICTURES, POCKET, ROOT
from visiondrop import Full, build_method

SIGNS = PICTURES / "8c7bc0ab68e0267c.jpg"
SALE = PICTURES / "5771c078e1780e24.jpg"


@pytest.fixture
def chat(
    pocket: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs the command with lines on its input; gives its status and what it printed."""
    monkeypatch.setattr(cli, "load_model", lambda choice: pocket)

    def run(lines: Sequence[str], *flags: str) -> tuple[int, list[str]]:
        left = list(lines)

        def read(prompt: str = "") -> str:
            if not left:
                raise EOFError
            return left.pop(0)

        monkeypatch.setattr("builtins.input", read)
        command = ["--model-path", str(POCKET), "--temperature", "0", "--max-new-tokens", "16"]
        status = run_main(cli.main, [*command, *flags])
        captured = capsys.readouterr()
        return status, (captured.out + captured.err).splitlines()

    return run


def afresh(
    loaded: LoadedModel, turns: list[tuple[str, list[Path]]], name: str, tokens: int
) -> list[str]:
    """Every turn as one prompt of the whole conversation, read anew; nothing of the chat's code."""
    model, conversation, pictures = loaded.model, get_template("vicuna_v1"), []
    method = Full() if name == "full" else build_method(name, tokens, model=model)
    for text, files in turns:
        pictures += [Image.open(file).convert("RGB") for file in files]
        conversation.append_message("USER", "<image>\n" * len(files) + text)
        conversation.append_message("ASSISTANT", None)
        ids = tokenizer_image_token(
            conversation.get_prompt(), loaded.tokenizer, return_tensors="pt"
        )
        shown: dict[str, Any] = {}
        if pictures:
            shown["images"] = process_images(pictures, loaded.image_processor, model.config)
        with method(model, questions=[text] * len(pictures)), torch.no_grad():
            out = model.generate(
                ids[None], **shown, do_sample=False, max_new_tokens=16, pad_token_id=3
            )
        answer = loaded.tokenizer.decode(out[0], skip_special_tokens=True).strip()
        conversation.messages[-1][1] = answer
    return [text for role, text in conversation.messages if role == "ASSISTANT"]


def answers(lines: list[str]) -> list[str]:
    return [line.removeprefix("ASSISTANT: ") for line in lines if line.startswith("ASSISTANT: ")]


TURNS = [
    ("What does the red sign say?", [SIGNS]),
    ("How many triangles are there?", []),
    ("What word is on the orange sign?", [SALE]),
    ("Is there a red ring?", []),
]


@pytest.mark.parametrize("name", ["visiondrop", "fastv"])
def test_turns_equal_the_whole_conversation_read_anew(
    chat: Any, pocket: LoadedModel, name: str
) -> None:
    """On kept KV (VisionDrop) and without it (FastV), with a second picture in turn 3."""
    typed = [TURNS[0][0], TURNS[1][0], f"/image {SALE}", TURNS[2][0], "", TURNS[3][0], "/quit", "x"]
    status, lines = chat(typed, "--image-file", str(SIGNS), "--method", name, "--tokens", "96")
    assert status == 0
    assert answers(lines) == afresh(pocket, TURNS, name, 96)
    assert f"{SIGNS.name}: 336 x 336 pixels" in lines
    cached = not any("without the image cache: it chooses by" in line for line in lines)
    assert cached == (name != "fastv")


def test_ledger_draw_method_reset(chat: Any, pocket: LoadedModel, tmp_path: Path) -> None:
    question, drawn = TURNS[0][0], tmp_path / "deep" / "kept.png"
    typed = [
        "/ledger",
        question,
        "/ledger",
        f"/draw {drawn}",
        "/reset",
        question,
        "/ledger",
        "/method random 32",
        question,
        "/ledger",
        "/method",
        "/help",
    ]
    flags = ["--image-file", str(SIGNS), "--method", "visiondrop", "--tokens", "64"]
    status, lines = chat(typed, *flags)
    text = "\n".join(lines)
    assert status == 0 and lines[1] == "nothing was read yet: ask about a picture first"
    rows = [line.split() for line in lines]
    # The plan of 64 on 16 layers, and what stages kept and merged: README's numbers.
    for layers, tokens in (("0-3", 96), ("4-7", 70), ("8-11", 52), ("12-15", 38)):
        (first, *_) = [row for row in rows if row[:1] == [layers]]
        assert int(first[1]) == tokens < int(first[2])
    assert [r for r in rows if r[:1] == ["encoder"]][0][1:] == ["577", "84", "12", "96"]
    assert [r for r in rows if r[:2] == ["layer", "12"]][0][2:] == ["52", "33", "5", "38"]
    assert "visiondrop: 64 visual tokens on average over the layers" in text
    assert "random: 32 visual tokens on average over the layers" in text
    assert "image cache: 0 hit(s), 1 miss(es), 0 evicted, 1 held" in text
    assert "image cache: 1 hit(s), 1 miss(es), 0 evicted, 1 held" in text, "the reset hit"
    assert f"wrote {drawn}" in lines and not list(drawn.parent.glob("*.part"))
    assert np.asarray(Image.open(drawn)).std() > 20
    told = answers(lines)
    assert told[0] == told[1] == afresh(pocket, TURNS[:1], "visiondrop", 64)[0]
    assert told[2] == afresh(pocket, TURNS[:1], "random", 32)[0]
    assert "'name': 'random'" in text and "/draw FILE.png           what was kept" in text


def test_errors_are_one_line_and_the_chat_goes_on(
    chat: Any, pocket: LoadedModel, tmp_path: Path
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    typed = {
        "/draw early.png": "nothing to draw: ask about a picture first",
        f"/image {notes}": "notes.txt cannot be read as a picture",
        "/image": "say which picture: /image PATH",
        "/image nowhere.png": "no picture at nowhere.png",
        "/image http://127.0.0.1:9/x.png": "cannot get http://127.0.0.1:9/x.png",
        "/nothing": "unknown command /nothing; there are: /image",
        "/method nothing 4": "unknown method 'nothing'",
        "/method fastv 8": "an average of 8 visual tokens is not reachable",
        "/method fastv many": "'many' is not a number of tokens",
        "/method visiondrop 64 merge=other": "possible: 'sum', 'mean'",
        "What is <image> here?": "picture",
        TURNS[0][0]: "",
        "/draw kept.jpg": "the drawing is a PNG",
    }
    flags = ["--image-file", str(SIGNS), "--method", "visiondrop", "--tokens", "64"]
    status, lines = chat(list(typed), *flags)
    errors = [line for line in lines if line.startswith("error: ")]
    expected = [text for text in typed.values() if text]
    assert status == 0 and len(errors) == len(expected), lines
    for line, text in zip(errors, expected, strict=True):
        assert text in line
    assert answers(lines) == afresh(pocket, TURNS[:1], "visiondrop", 64), "errors changed nothing"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image-file", "nowhere.png"], "no picture at nowhere.png"),
        (["--tokens", "64"], "give --method too"),
        (["--method", "fastv", "--tokens", "8"], "not reachable"),
        (["--method-arg", "merge"], "give --method too"),
        (["--max-new-tokens", "0"], "max_new_tokens >= 1"),
        (["--conv-mode", "nothing"], "unknown conversation mode 'nothing'"),
        (["--cache-bytes", "-1"], "max_bytes=-1"),
    ],
)
def test_bad_flags_end_it_in_one_line(chat: Any, flags: list[str], message: str) -> None:
    status, lines = chat(["Hello?"], *flags)
    assert status == 2 and len(lines) == 1
    assert lines[0].startswith("error: ") and message in lines[0]


def test_ctrl_c_ends_an_answer_and_not_the_chat(
    chat: Any, pocket: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is interrupted at the first piece; the next question is answered."""
    from visiondrop.streaming import Stream

    real, calls = Stream.__next__, []

    def once(self: Stream) -> str:
        piece = real(self)
        calls.append(piece)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return piece

    monkeypatch.setattr(Stream, "__next__", once)
    status, lines = chat([TURNS[0][0], "/reset", TURNS[0][0]], "--image-file", str(SIGNS))
    assert status == 0 and "(ended)" in lines
    assert answers(lines)[-1] == afresh(pocket, TURNS[:1], "full", 576)[0]


def test_through_a_real_pipe() -> None:
    """A process of its own, as users start it: lines in, answers out as they are made."""
    command = [sys.executable, "-m", "llava.serve.cli", "--model-path", str(POCKET)]
    command += ["--image-file", str(SIGNS), "--method", "visiondrop", "--tokens", "64"]
    done = subprocess.run(
        [*command, "--temperature", "0", "--device", "cpu"],
        input=f"{TURNS[0][0]}\n/ledger\n",
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(answers(lines)) == 1 and "Traceback" not in done.stderr
    assert any(line.split() == ["0-3", "96", line.split()[-1]] for line in lines if line.strip())
