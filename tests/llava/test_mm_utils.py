"""Prompts with pictures as ids, and pictures prepared, against arithmetic written out here."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    divide_to_patches,
    expand2square,
    get_anyres_image_grid_shape,
    get_model_name_from_path,
    load_image_from_base64,
    process_images,
    select_best_resolution,
    tokenizer_image_token,
    unpad_image,
)
from llava.model.tokenizer import load_tokenizer
from tests.llava import forms

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
SIDE = forms.SIDE


@pytest.fixture(scope="module")
def processor():
    torch.set_num_threads(1)
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    forms.write_tokenizer(folder, forms.sentencepiece_model())
    return load_tokenizer(folder)


def picture(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def normalised(array):
    """uint8 `[H, W, 3]` as CLIP takes it, `[3, H, W]`."""
    return torch.tensor(((array / 255.0 - MEAN) / STD).transpose(2, 0, 1), dtype=torch.float32)


@pytest.mark.parametrize("size", [(100, 60), (60, 101), (80, 80), (30, 20), (57, 56)])
def test_pad_is_a_square_of_mean_colour_then_a_resize(processor, size):
    image = picture(*size)
    side = max(size)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = [122, 116, 104]  # int(255 * mean)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = np.asarray(image)
    resized = Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    got = process_images([image], processor, SimpleNamespace(image_aspect_ratio="pad"))
    assert got.shape == (1, 3, SIDE, SIDE)
    torch.testing.assert_close(got[0], normalised(np.asarray(resized)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [None, "square"])
def test_square_is_the_middle(processor, kind):
    image = picture(2 * SIDE + 10, SIDE)
    got = process_images([image], processor, SimpleNamespace(image_aspect_ratio=kind))
    left = (SIDE + 10) // 2
    middle = np.asarray(image)[:, left : left + SIDE]
    torch.testing.assert_close(got[0], normalised(middle), atol=1e-5, rtol=0)


def test_anyres_tiles(processor):
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=forms.PINPOINTS)
    image = picture(2 * SIDE, SIDE)  # fills 112 x 56 exactly
    got = process_images([image], processor, config)
    assert got.shape == (1, 3, 3, SIDE, SIDE)
    whole = np.asarray(image.resize((SIDE, SIDE)))
    array = np.asarray(image)
    for tile, expected in zip(got[0], [whole, array[:, :SIDE], array[:, SIDE:]], strict=True):
        torch.testing.assert_close(tile, normalised(expected), atol=1e-5, rtol=0)
    mixed = process_images([image, picture(90, 100)], processor, config)
    assert [len(tiles) for tiles in mixed] == [3, 5]
    transposed = SimpleNamespace(
        image_aspect_ratio="anyres", model_type="llava_next",
        image_grid_pinpoints=[[height, width] for width, height in forms.PINPOINTS],
    )  # fmt: skip
    again = process_images([image], processor, transposed)
    assert torch.equal(again, got)


def test_anyres_pads_with_black_in_the_middle(processor):
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints="[(56, 112)]")
    image = picture(SIDE, SIDE)  # 28 rows of black above and below
    got = process_images([image], processor, config)[0]
    black = normalised(np.zeros((1, 1, 3)))[:, 0, 0]
    assert got.shape[0] == 3
    for tile, rows in ((got[1], slice(0, 28)), (got[2], slice(28, 56))):
        torch.testing.assert_close(
            tile[:, rows], black[:, None, None].expand(3, 28, SIDE), atol=1e-5, rtol=0
        )
    array = np.asarray(image)
    torch.testing.assert_close(got[1][:, 28:], normalised(array)[:, :28], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[2][:, :28], normalised(array)[:, 28:], atol=1e-5, rtol=0)


def test_pictures_that_cannot_be_prepared(processor):
    with pytest.raises(ValueError, match="'stretch'.*pad, anyres, square"):
        process_images([picture(9, 9)], processor, SimpleNamespace(image_aspect_ratio="stretch"))
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        process_images([picture(9, 9)], processor, SimpleNamespace(image_aspect_ratio="anyres"))
    with pytest.raises(ValueError, match="at least one"):
        process_images([], processor, SimpleNamespace(image_aspect_ratio="pad"))


def test_other_colour_modes_become_rgb(processor):
    grey = picture(40, 30).convert("L")
    config = SimpleNamespace(image_aspect_ratio="pad")
    rgb = process_images([grey.convert("RGB")], processor, config)
    assert torch.equal(process_images([grey], processor, config), rgb)


def test_resolution_keeps_most_pixels_and_wastes_least():
    possible = [(56, 112), (112, 56), (112, 112)]
    assert select_best_resolution((200, 100), possible) == (112, 56)
    assert select_best_resolution((100, 200), possible) == (56, 112)
    assert select_best_resolution((100, 100), possible) == (112, 112)
    assert select_best_resolution((50, 50), possible) == (56, 112)  # equals: the first
    assert get_anyres_image_grid_shape((200, 100), possible, 56) == (2, 1)
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        get_anyres_image_grid_shape((200, 100), "[]", 56)


def test_unpad_takes_the_padding_off():
    features = torch.arange(8 * 8).reshape(1, 8, 8)
    assert torch.equal(unpad_image(features, (200, 100)), features[:, 2:6])
    assert torch.equal(unpad_image(features, (100, 200)), features[:, :, 2:6])
    assert torch.equal(unpad_image(features, (100, 100)), features)


def test_divide_in_reading_order():
    image = picture(4, 6)
    tiles = divide_to_patches(image, 2)
    array = np.asarray(image)
    assert len(tiles) == 6
    assert np.array_equal(np.asarray(tiles[1]), array[:2, 2:4])
    assert np.array_equal(np.asarray(tiles[4]), array[4:6, :2])


def test_expand2square_of_a_square_is_itself():
    image = picture(5, 5)
    assert expand2square(image, (0, 0, 0)) is image


def test_ids_around_pictures(tokenizer):
    a, b = tokenizer("hello a").input_ids, tokenizer("\nWhat").input_ids
    assert a[0] == b[0] == 1
    ids = tokenizer_image_token("hello a<image>\nWhat", tokenizer)
    assert ids == [*a, IMAGE_TOKEN_INDEX, *b[1:]]
    twice = tokenizer_image_token("<image><image>\nWhat", tokenizer, -7)
    assert twice == [1, -7, -7, *b[1:]]
    assert tokenizer_image_token("hello a", tokenizer) == a
    tensor = tokenizer_image_token("hello a<image>\nWhat", tokenizer, return_tensors="pt")
    assert tensor.dtype == torch.long and tensor.tolist() == ids
    with pytest.raises(ValueError, match="'np'"):
        tokenizer_image_token("a", tokenizer, return_tensors="np")


def test_ids_without_bos():
    class Bare:
        bos_token_id = None

        def __call__(self, text):
            return SimpleNamespace(input_ids=[ord(letter) for letter in text])

    assert tokenizer_image_token("ab<image>c", Bare()) == [97, 98, IMAGE_TOKEN_INDEX, 99]


def test_keywords_end_each_row_by_itself(tokenizer):
    prompt = torch.tensor([tokenizer("USER: a red square").input_ids])
    stop = KeywordsStoppingCriteria(["square"], tokenizer, prompt)

    def rows(*texts):
        ids = [tokenizer(text).input_ids[1:] for text in texts]
        width = max(map(len, ids))
        return torch.tensor([row[:1] * (width - len(row)) + row for row in ids])

    new = rows("a blue square", "What is in the")
    assert stop(new, None).tolist() == [True, False]
    # The prompt itself holds the keyword, but is no answer.
    full = torch.cat([prompt.expand(2, -1), new], dim=1)
    assert stop(full, None).tolist() == [True, False]
    assert stop(prompt, None).tolist() == [False]
    assert KeywordsStoppingCriteria(["</s>"], tokenizer, prompt)(torch.tensor([[9, 2]]), None).all()


def test_model_names():
    assert get_model_name_from_path("liuhaotian/llava-v1.5-7b") == "llava-v1.5-7b"
    assert get_model_name_from_path("/a/llava-lora/checkpoint-500/") == "llava-lora_checkpoint-500"
    assert get_model_name_from_path("checkpoint-500") == "checkpoint-500"


def test_base64():
    image, buffer = picture(4, 3), io.BytesIO()
    image.save(buffer, format="PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    assert np.array_equal(np.asarray(load_image_from_base64(text)), np.asarray(image))
    with pytest.raises(ValueError, match="no picture"):
        load_image_from_base64(base64.b64encode(b"text").decode())
