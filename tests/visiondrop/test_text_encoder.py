"""CLIP's text side: what it embeds, and what is refused before any compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from tests.conftest import GOLDEN
from tests.visiondrop.models import generate, pixels, prompt, tiny
from tests.visiondrop.tiny_clip import tiny_clip
from visiondrop.methods import METHODS, build_method
from visiondrop.methods.cdpruner import CDPruner
from visiondrop.methods.trim import Trim
from visiondrop.text_encoder import text_encoder

CPU = torch.device("cpu")
LONG = "what is on the table " * 12
BOTH = pytest.mark.parametrize("method", [CDPruner, Trim])


def test_embeddings_are_the_stock_models() -> None:
    """Questions of unequal length in one batch, each as alone; patches as CLIP treats CLS."""
    stock = CLIPModel.from_pretrained(tiny_clip(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_clip())
    clip = text_encoder(tiny_clip(), CPU)
    questions = ["A cat?", "How many of them are red?"]
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for question, got in zip(questions, clip.questions(questions), strict=True):
            ids = tokenizer(question, return_tensors="pt")
            expected = stock.text_projection(stock.text_model(**ids).pooler_output)
            torch.testing.assert_close(got, expected)
        last = stock.vision_model(images).last_hidden_state
        pooled = stock.visual_projection(stock.vision_model(images).pooler_output)
    torch.testing.assert_close(clip.patches(last[:, :1])[:, 0], pooled)


def test_long_questions_in_segments_or_truncated() -> None:
    clip = text_encoder(tiny_clip(), CPU)
    ids = clip.tokenizer(LONG)["input_ids"]
    segments = clip.segments(LONG)
    assert len(ids) > 2 * 77 and [t for s in segments for t in s] == ids
    assert [len(s) for s in segments[:-1]] == [77] * (len(segments) - 1)
    (short,) = clip.segments(LONG, truncate=True)
    assert short == [*ids[:76], ids[-1]]
    got = clip.questions(["A cat?", LONG])
    assert [len(g) for g in got] == [1, len(segments)]
    torch.testing.assert_close(got[0], clip.questions(["A cat?"])[0])


def test_float64_patches_stay_float64_and_half_is_widened() -> None:
    clip = text_encoder(tiny_clip(), CPU)
    features = torch.randn(1, 5, 32, dtype=torch.float64)
    assert clip.patches(features).dtype == torch.float64
    assert clip.patches(features.bfloat16()).dtype == torch.float32


def test_one_load_per_checkpoint() -> None:
    assert text_encoder(tiny_clip(), CPU) is text_encoder(tiny_clip(), CPU)


@BOTH
def test_no_checkpoint_is_refused_with_the_remedy(method: Any) -> None:
    with (
        pytest.raises(ValueError, match="--method-arg clip=PATH") as error,
        method(tokens=9)(tiny()),
    ):
        pass
    assert "openai/clip-vit-large-patch14-336" in str(error.value)
    listed = str(error.value).rsplit("methods that work without: ", 1)[1].split(", ")
    assert {"visiondrop", "divprune", "scope"} <= set(listed)
    assert not {"cdpruner", "trim", "composed"} & set(listed)
    # Names of methods that tests define may be among them.
    fit = {n for n, cls in METHODS.items() if not {"text encoder", "crops"} & set(cls.needs)}
    assert set(listed) & set(METHODS) == fit


@BOTH
@pytest.mark.parametrize(
    "clip, message",
    [
        (str(GOLDEN / "no-such-folder"), "no checkpoint can be read at clip="),
        (str(GOLDEN / "tiny-clip-vit-336"), "is a 'clip_vision_model' checkpoint without"),
        (
            str(GOLDEN / "tiny-clip-full-336"),
            "vision tower has width 32, the CLIP checkpoint .* 64: give the CLIP that",
        ),
    ],
)
def test_unfit_checkpoints_are_refused(method: Any, clip: str, message: str) -> None:
    with pytest.raises(ValueError, match=message), method(tokens=9, clip=clip)(tiny()):
        pass


@BOTH
def test_a_tower_that_is_no_clip_is_refused(method: Any) -> None:
    model = tiny("siglip")
    with (
        pytest.raises(ValueError, match="tower is no CLIP; methods"),
        method(tokens=9, clip="x")(model),
    ):
        pass


@BOTH
def test_a_missing_question_is_refused(method: Any) -> None:
    with (
        method(tokens=9, clip=tiny_clip())(tiny()),
        pytest.raises(ValueError, match="set_questions"),
    ):
        generate(tiny(), [prompt(3, 4)], pixels(1))


@pytest.mark.parametrize(
    "name, tokens, args, message",
    [
        ("cdpruner", 9, {"theta": "1.0"}, "theta=1.0; give 0 to below 1"),
        ("cdpruner", 37, {}, "tokens=37 asked for where a picture has 36 at most"),
        ("trim", 37, {}, "tokens=37 asked for where a picture has 36 at most"),
        ("divprune", 0, {}, "tokens=0 asked for"),
        ("scope", 9, {"alpha": "-1"}, "alpha=-1 is a power"),
        ("holov", 9, {"crops": "19"}, "crops=19; give 1 to 18, half the patches"),
        ("holov", 9, {"crops": "7", "shape": "windows"}, "7 windows, 1 x 7, do not fit"),
        ("holov", 9, {"beta": "-0.1"}, "beta=-0.1 is a weight"),
    ],
)
def test_bad_fields_are_refused(name: str, tokens: int, args: dict, message: str) -> None:
    if name in ("cdpruner", "trim"):
        args = {**args, "clip": tiny_clip()}
    with pytest.raises(ValueError, match=message):
        build_method(name, tokens, model=tiny(), args=args)


def test_from_the_command_line() -> None:
    method = build_method("trim", 9, model=tiny(), args={"clip": tiny_clip()})
    assert method == Trim(9, clip=tiny_clip()) and method.mean_tokens(8, 36) == 9
    paper = build_method("trim@paper", model=tiny(), args={"clip": tiny_clip()})
    assert paper == Trim(clip=tiny_clip(), similarity="cosine", relevant="high")
