"""InternVL with its own processor: pictures of any shape, several in a prompt, frames of a video.

The stock processor wants a video processor, whose class needs torchvision; here it has none, and
frames come as pictures of one tile, which is what it would make of them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GotOcr2ImageProcessorPil, InternVLProcessor, PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from tests.visiondrop.internvl_models import SIDE, TILE, TOKENS, tiny_internvl
from tests.visiondrop.models import IMAGE, logits
from visiondrop import VisionDrop
from visiondrop.functional.tile_run import TileRun

MARKS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


class WithoutVideos(InternVLProcessor):
    """The stock processor, which accepts that there is no video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)


@functools.cache
def processor() -> InternVLProcessor:
    """With a tokenizer trained here, whose placeholder is the tiny model's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fill = [f"<{i}>" for i in range(IMAGE - 6)]
    special = ["<pad>", "<s>", *fill, *list(MARKS.values())[:2], "<video>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=0, special_tokens=[*special, "<IMG_CONTEXT>"])
    backend.train_from_iterator(["ab "], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=MARKS,
    )
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == IMAGE and len(tokenizer) <= 100
    pictures = GotOcr2ImageProcessorPil(size={"height": TILE, "width": TILE})
    return WithoutVideos(pictures, tokenizer, None, image_seq_length=TOKENS)


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Coarse random colours, so that parts differ."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


SIZES = [(60, 60), (100, 40), (40, 100), (150, 100), (100, 150), (128, 96), (300, 30), (128, 32)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [False, True])
def test_arrangement_is_that_of_the_processor(size: tuple[int, int], noise: bool) -> None:
    width, height = size
    picture = photo(width, height, 3)
    if noise:
        pixels = np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
    made = processor().image_processor(picture, crop_to_patches=True, return_tensors="pt")
    run = TileRun.of(made.pixel_values, SIDE)
    expected = get_optimal_tiled_canvas((height, width), (TILE, TILE), 1, 12)
    assert (run.columns, run.rows) == expected
    assert run.tiles == int(made.num_patches[0])


def test_through_generate() -> None:
    """Two pictures, one, none: each has the budget exactly, alone as in the batch."""
    model, process = tiny_internvl(), processor()
    photos = [photo(150, 100, 1), photo(60, 60, 2), photo(40, 100, 3)]
    texts = ["ab <IMG_CONTEXT> a <IMG_CONTEXT> b", "a b a", "<IMG_CONTEXT> aab ab"]
    method = VisionDrop(encoder=(26, 4), llm={2: (15, 3), 5: (7, 2)})
    options = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, suppress_tokens=[IMAGE])

    def ask(texts: list[str], photos: list[Image.Image]) -> tuple[torch.Tensor, Any]:
        made = process(images=photos or None, text=texts, padding=True, return_tensors="pt")
        with method(model) as trace:
            out = model.generate(
                **made, **options, return_dict_in_generate=True, output_logits=True
            )
        return logits(out), trace

    together, trace = ask(texts, photos)
    for sample, count in zip(trace.samples, (2, 1), strict=True):
        assert len(sample.tokens_by_picture) == count
        for layers in sample.tokens_by_picture:
            assert layers == [30] * 2 + [18] * 3 + [9] * 3
    for i, own in enumerate((photos[:2], [], photos[2:])):
        alone, _ = ask(texts[i : i + 1], own)
        torch.testing.assert_close(together[:, i], alone[:, 0], atol=2e-4, rtol=1e-4)


def test_frames_of_a_video() -> None:
    """One tile a frame, each a picture of its own."""
    model, process = tiny_internvl(), processor()
    frames = [photo(100, 40, seed) for seed in range(4)]
    text = "\n".join(f"a{i + 1} <IMG_CONTEXT>" for i in range(4)) + " ab"
    made = process(images=frames, text=text, crop_to_patches=False, return_tensors="pt")
    assert made.pixel_values.shape == (4, 3, TILE, TILE)
    with VisionDrop(encoder=(6, 2), llm={4: (3, 1)})(model) as trace, torch.no_grad():
        model(**made, logits_to_keep=1)
    assert trace.samples[0].tokens_by_picture == [[8] * 4 + [4] * 4] * 4
    assert trace.samples[0].grids == [None] * 4
