"""Prompts, pictures and batches as the model gets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.errors import EvalError
from llava.eval.loading import ModelChoice, load_model
from llava.eval.preparing import (
    QuestionDataset,
    as_seen,
    batch_loader,
    build_prompt,
    load_picture,
)
from llava.eval.samples import Sample, read_questions
from tests.eval.conftest import TinyData
from visiondrop.prefix import left_pad


def test_prompt_is_llavas() -> None:
    """Word for word what LLaVA's own loader builds for vicuna_v1."""
    assert build_prompt("How many?\nShort.", "vicuna_v1") == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "How many?\nShort. ASSISTANT:"
    )
    assert "<image>" not in build_prompt("How many?", "vicuna_v1", has_image=False)
    marked = build_prompt("How many?", "vicuna_v1", im_start_end=True)
    assert "<im_start><image><im_end>\nHow many?" in marked
    with pytest.raises(EvalError, match="choose one of .*vicuna_v1"):
        build_prompt("", "nobody")


def test_left_padding() -> None:
    ids, mask = left_pad([torch.tensor([1, 2, 3]), torch.tensor([4])], 9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.fixture(scope="module")
def dataset(tiny_model: Path, shared_data: TinyData) -> QuestionDataset:
    loaded = load_model(ModelChoice(str(tiny_model), device="cpu"))
    samples = [*read_questions(shared_data.questions), Sample("x", "No picture here?", None)]
    return QuestionDataset(
        samples, shared_data.images, loaded.tokenizer, loaded.image_processor,
        loaded.model.config, "vicuna_v1", "pad",
    )  # fmt: skip


def test_one_picture_is_prepared_alike_for_all_its_questions(dataset: QuestionDataset) -> None:
    """Also when it comes from the picture kept of the question before."""
    rows = [dataset[i] for i in (4, 5, 0, 6)]
    first, again, other, back = (row.image for row in rows)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first, back, rtol=0, atol=0)
    assert (first - other).abs().max() > 0.1
    assert rows[0].image_size == rows[1].image_size == (96, 72)
    assert int((rows[0].input_ids == IMAGE_TOKEN_INDEX).sum()) == 1


def test_prepared_pictures_are_held_up_to_the_limit(
    dataset: QuestionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one asked for longest ago goes first, and one is always held."""
    shown = {s.image: i for i, s in enumerate(dataset.samples) if s.image is not None}
    (first, second, third), size = list(shown.values())[:3], dataset[0].image.nbytes
    opened: list[str] = []
    monkeypatch.setattr(
        "llava.eval.preparing.load_picture",
        lambda file, blank: opened.append(file.name) or load_picture(file, blank),
    )

    def asked(hold_bytes: int, *places: int) -> int:
        opened.clear()
        dataset._held.clear()
        dataset._held_bytes, dataset.hold_bytes = 0, hold_bytes
        for place in places:
            dataset[place]
        assert dataset._held_bytes == sum(image.nbytes for image, _ in dataset._held.values())
        return len(opened)

    assert asked(2 * size, first, second, first, third, first) == 3
    assert asked(2 * size, first, second, first, third, second) == 4
    assert asked(0, first, first, second, first) == 3


def test_a_question_without_a_picture(dataset: QuestionDataset) -> None:
    row = dataset[20]
    assert row.image is None and row.error is None
    assert int((row.input_ids == IMAGE_TOKEN_INDEX).sum()) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_as_asked(dataset: QuestionDataset, workers: int) -> None:
    asked = [range(3, 6), range(0, 3), range(9, 11)]
    got = list(batch_loader(dataset, asked, workers))
    assert [[row.index for row in batch] for batch in got] == [list(b) for b in asked]


def test_as_seen_is_the_padded_picture(dataset: QuestionDataset, shared_data: TinyData) -> None:
    seen = as_seen(dataset[0].image, dataset.image_processor)
    assert seen.size == (84, 84)
    # 96 x 64 in a square of 96: the first row is padding in CLIP's mean colour.
    assert seen.getpixel((40, 2)) == pytest.approx((122, 116, 104), abs=1)
    assert seen.getpixel((80, 60)) == (255, 255, 255)


def test_blank_picture_is_grey(shared_data: TinyData) -> None:
    path = shared_data.images / "picture0.png"
    blank = load_picture(path, blank=True)
    with Image.open(path) as original:
        assert blank.size == original.size
    assert blank.getextrema() == ((127, 127),) * 3
