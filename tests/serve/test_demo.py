"""The page, driven as a program drives it, against the bundled model."""

from __future__ import annotations

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from PIL import Image

from llava.eval.answering import LoadedModel
from llava.eval.preparing import build_prompt
from llava.mm_utils import process_images, tokenizer_image_token
from llava.serve.asking import by_layer
from llava.serve.html import runs
from tests.serve.conftest import PICTURES
from tests.serve.test_pictures import huge_png
from visiondrop import build_method
from visiondrop.trace import SampleTrace

SIGNS = PICTURES / "8c7bc0ab68e0267c.jpg", "What does the red sign say?"
SALE = PICTURES / "5771c078e1780e24.jpg", "What word is on the orange sign?"


@pytest.fixture(scope="module")
def client(address: str) -> Client:
    return Client(address, verbose=False)


def ask(client: Client, picture: Path | None, question: str, name: str, tokens: float) -> Any:
    file = None if picture is None else handle_file(str(picture))
    return client.predict(file, question, name, tokens, api_name="/ask")


def alone(
    loaded: LoadedModel, picture: Path, question: str, name: str, tokens: int
) -> tuple[str, SampleTrace]:
    """The answer by `with method(model)`, with nothing of the page."""
    model = loaded.model
    image = Image.open(picture).convert("RGB")
    prompt = build_prompt(question, "vicuna_v1")
    ids = tokenizer_image_token(prompt, loaded.tokenizer, return_tensors="pt")
    with build_method(name, tokens, model=model)(model) as trace, torch.inference_mode():
        out = model.generate(
            ids[None],
            images=process_images([image], loaded.image_processor, model.config),
            do_sample=False,
            max_new_tokens=16,
            pad_token_id=loaded.pad_id,
        )
    text = loaded.tokenizer.decode(out[0], skip_special_tokens=True).strip()
    return text, trace.samples[0]


def pictures_of(drawing: str) -> list[Image.Image]:
    coded = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", drawing)
    return [Image.open(BytesIO(base64.b64decode(text))) for text in coded]


def test_upload_ask_move_the_slider_ask_again(client: Client, pocket: LoadedModel) -> None:
    picture, question = SIGNS
    shown, told = client.predict(handle_file(str(picture)), api_name="/look")
    assert "8c7bc0ab68e0267c.jpg: 336 x 336 pixels" in told
    assert Image.open(shown).size == (336, 336)
    full, _ = alone(pocket, picture, question, "full", 576)
    assert "HELP" in full
    seen = set()
    for tokens in (64, 8):
        told, one, other, table, drawing = ask(client, picture, question, "visiondrop", tokens)
        text, sample = alone(pocket, picture, question, "visiondrop", tokens)
        assert (one, other) == (full, text)
        assert f"VisionDrop at {tokens} tokens" in told and "alert" not in told
        assert runs(by_layer(sample)) in table and ">0-15: 576<" in table
        assert f"{sample.mean_tokens:.4g} ({100 * sample.mean_tokens / 576:.1f} % of full)" in table
        assert len(re.findall(r"\d+ ms", table)) == 4
        panels = pictures_of(drawing)
        assert len(panels) == 1 + len(sample.stages) == 5
        for stage, title in zip(
            sample.stages, re.findall(r"<figcaption>(.*?)<", drawing)[1:], strict=True
        ):
            assert f": {stage.tokens_out} tokens" in title
        # Kept patches are the picture's own, the others paler or darker.
        first, last = (np.asarray(panels[i].convert("L")).astype(int) for i in (0, -1))
        framed = {entry["reference"] for entry in sample.stages[-1].merged}
        change: dict[bool, list[float]] = {True: [], False: []}
        for patch, (what, _) in sample.fates()[-1][1].items():
            if patch >= 0 and patch not in framed:
                r, c = (16 * i for i in divmod(patch, 24))
                moved = abs(first[r : r + 16, c : c + 16] - last[r : r + 16, c : c + 16])
                change[what == "kept"].append(float(moved.mean()))
        assert max(change[True], default=0) < 10 and np.median(change[False]) > 25
        seen.add(drawing)
    assert len(seen) == 2


def buildable(name: str, tokens: int, loaded: LoadedModel) -> bool:
    try:
        build_method(name, tokens, model=loaded.model)
    except ValueError:
        return False
    return True


def test_the_slider_follows_the_method(address: str, pocket: LoadedModel) -> None:
    client = Client(address, verbose=False)
    for name, tokens in (("visionzip", 8), ("fastv", 8), ("visiondrop", 40)):
        least = next(n for n in range(1, 99) if buildable(name, n, pocket))
        value = max(tokens, least)
        slider, about = client.predict(name, tokens, api_name="/limits")
        assert (slider["value"], slider["minimum"], slider["maximum"]) == (value, least, 576)
        assert "judges by" in about
    slider, about = client.predict("yopo", 64, api_name="/limits")
    assert slider["interactive"] is False and "takes no number of tokens" in about


def test_a_text_file_and_a_huge_picture(client: Client, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("hello")
    huge, bomb = huge_png(tmp_path / "huge.png", 10_000), huge_png(tmp_path / "bomb.png", 20_000)
    for file, line in (
        (notes, "notes.txt cannot be read as a picture; give a PNG"),
        (bomb, "bomb.png is too large"),
    ):
        shown, told = client.predict(handle_file(str(file)), api_name="/look")
        assert shown is None and line in told and 'role="alert"' in told
        told, *rest = ask(client, file, "What is it?", "visiondrop", 64)
        assert line in told and rest == ["", "", "", ""]
    shown, told = client.predict(handle_file(str(huge)), api_name="/look")
    assert "huge.png: 10000 x 10000 pixels, brought to 2048 x 2048" in told
    told, full, reduced, table, _ = ask(client, huge, "Is it black?", "random", 64)
    assert full and reduced and "alert" not in told and "64 (11.1 % of full)" in table


def test_what_cannot_be_asked_is_told(address: str) -> None:
    client = Client(address, verbose=False)
    picture, question = SIGNS
    for file, text, name, tokens, line in (
        (None, question, "visiondrop", 64, "no picture: drop one"),
        (picture, "  ", "visiondrop", 64, "no question: type one"),
        (picture, "why " * 3000, "visiondrop", 64, "the question is too long: with the template"),
        (picture, question, "fastv", 8, "FastV at 8 tokens: on this model 37 to 576 are possible"),
    ):
        told, *rest = ask(client, file, text, name, tokens)
        assert line in told and 'role="alert"' in told and rest == ["", "", "", ""]
    told, full, *_ = ask(client, picture, "<b>bold</b> & <image> what?", "visiondrop", 64)
    assert "alert" not in told and full


def test_two_users_with_different_methods_do_not_mix(address: str, pocket: LoadedModel) -> None:
    users = [(*SIGNS, "visiondrop", 16), (*SALE, "fastv", 48)]
    expected = [alone(pocket, *user) for user in users]
    full = [alone(pocket, *user[:2], "full", 576)[0] for user in users]

    def work(number: int) -> list[Any]:
        own = Client(address, verbose=False)
        return [ask(own, *users[number]) for _ in range(2)]

    with ThreadPoolExecutor(len(users)) as pool:
        answers = list(pool.map(work, range(len(users))))
    for own, whole, (text, sample) in zip(answers, full, expected, strict=True):
        for told, one, other, table, _ in own:
            assert (one, other) == (whole, text), told
            assert runs(by_layer(sample)) in table


def test_the_page_asks_nobody_else_for_anything(address: str) -> None:
    """No address of another host is loaded by the page."""
    import httpx

    text = httpx.get(address).text
    loaded = re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", text)
    assert [url for url in loaded if "fonts.g" in url] == []
