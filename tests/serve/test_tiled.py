"""Page and chat on a model of any resolution: wide pictures, drawn whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from llava.eval.answering import LoadedModel
from llava.eval.loading import ModelChoice, load_model
from llava.serve.asking import Asker
from llava.serve.page import Page
from llava.serve.talk import Talk
from tests.eval.conftest import make_tokenizer
from tests.serve.test_demo import pictures_of
from tests.visiondrop.models import randomise
from visiondrop import METHODS

TILE = 84
PINPOINTS = [[84, 168], [168, 84], [168, 168], [84, 252], [252, 84]]


@pytest.fixture(scope="module")
def next_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny random LLaVA-NeXT from files, 36 patches a tile."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=TILE,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer) + 1,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=8,
            num_attention_heads=4,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        ),
        image_token_id=len(tokenizer),
        image_grid_pinpoints=PINPOINTS,
    )
    model = LlavaNextForConditionalGeneration(config)
    randomise(model)
    folder = tmp_path_factory.mktemp("model") / "tiny-next"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}
    ).save_pretrained(folder)
    return load_model(ModelChoice(str(folder), dtype="float32", device="cpu"))


def test_the_page_draws_all_tiles(next_model: LoadedModel, tmp_path: Path) -> None:
    page = Page(Asker(next_model, "vicuna_v1", max_new_tokens=3))
    assert "globalcom2" in page.choices and all(METHODS[name].tiled for name in page.choices)
    picture = tmp_path / "wide.png"
    Image.effect_noise((600, 200), 80).save(picture)
    *_, (told, full, reduced, table, drawing) = page.ask(str(picture), "What?", "visiondrop", 20)
    assert "alert" not in told and full and reduced and "vd-wide" in drawing
    assert "20" in table
    for panel in pictures_of(drawing):
        assert panel.width > 1.4 * panel.height, "1 x 3 tiles, above the thumbnail"


def test_the_chat_draws_all_tiles(next_model: LoadedModel, tmp_path: Path) -> None:
    talk = Talk(next_model, None, "vicuna_v1", {"max_new_tokens": 3, "do_sample": False})
    talk.set_method(talk.method_of("visiondrop", 20, {}))
    for size in ((600, 200), (200, 500)):
        talk.add_picture(Image.effect_noise(size, 80).convert("RGB"))
    with talk.ask("What are they?") as stream:
        list(stream)
    talk.took()
    assert len(talk.sample.grids) == 2 and all(talk.sample.grids)
    sheet = Image.open(talk.draw(str(tmp_path / "kept.png")))
    assert sheet.width > 1500 and sheet.height > 600, "a row of panels for each picture"
