"""Qwen2.5-VL and Qwen2-VL from pictures and words to words, by the family's own picture processor.

The processor of the whole family holds its video processor, which needs torchvision; the picture
processor, the tokenizer and the chat template do not. Placeholders, token types and the frames of a
video are prepared here as the family's processor does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from tests.visiondrop.models import logits
from tests.visiondrop.qwen_models import (
    END,
    IMAGE,
    MERGE,
    PATCH,
    START,
    TEMPORAL,
    VIDEO,
    generate,
    tiny_qwen,
)
from visiondrop import VisionDrop

SPECIAL = {
    "<|image_pad|>": IMAGE, "<|vision_start|>": START, "<|vision_end|>": END, "<|video_pad|>": VIDEO
}  # fmt: skip
SHARED = "<|vision_start|>{}<|vision_end|>"


def tokenizer() -> PreTrainedTokenizerFast:
    """Words learned from a few lines; special tokens at the ids of the tiny models."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    lines = ["what is in the picture", "which colour is the sign", "what happens in the video"]
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>"], vocab_size=80)
    core.train_from_iterator(lines, trainer)
    filler = [f"<{i}>" for i in range(core.get_vocab_size(), IMAGE)]
    core.add_tokens(filler)
    core.add_special_tokens(sorted(SPECIAL, key=SPECIAL.__getitem__))
    out = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    assert out.convert_tokens_to_ids(list(SPECIAL)) == list(SPECIAL.values())
    return out


def processor() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH, temporal_patch_size=TEMPORAL, merge_size=MERGE,
        size={"shortest_edge": 16 * PATCH**2, "longest_edge": 100 * PATCH**2},
    )  # fmt: skip


def picture(width: int, height: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def packed_frames(frames: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """[F, 3, H, W] to the rows of patches that the tower reads, and (t, h, w): two frames to a
    patch, 2 x 2 patches together.
    """
    count, channels, high, broad = frames.shape
    t, h, w = count // TEMPORAL, high // PATCH, broad // PATCH
    x = frames.view(t, TEMPORAL, channels, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(t * h * w, -1), [t, h, w]


def feed(prompts: list[str], pictures: list[Image.Image], video: torch.Tensor | None) -> Any:
    """Placeholders for each picture and the video, ids, mask, types, pixels."""
    given: dict[str, Any] = {}
    counts = {}
    if pictures:
        given = dict(processor()(pictures, return_tensors="pt"))
        counts[IMAGE] = (given["image_grid_thw"].prod(-1) // MERGE**2).tolist()
    if video is not None:
        rows, grid = packed_frames(video)
        given |= {"pixel_values_videos": rows, "video_grid_thw": torch.tensor([grid])}
        counts[VIDEO] = [grid[0] * grid[1] * grid[2] // MERGE**2]
    for i, text in enumerate(prompts):
        for word, token in (("<|image_pad|>", IMAGE), ("<|video_pad|>", VIDEO)):
            parts = text.split(word)
            for n, part in enumerate(parts[1:]):
                parts[n + 1] = word * counts[token].pop(0) + part
            text = "".join(parts)
        prompts[i] = text
    coded = tokenizer()(prompts, padding=True, return_tensors="pt")
    ids = coded["input_ids"]
    types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return given | {
        "input_ids": ids, "attention_mask": coded["attention_mask"], "mm_token_type_ids": types
    }  # fmt: skip


def test_frames_are_packed_as_the_processor_packs_pictures() -> None:
    """A picture is two equal frames."""
    image = picture(36, 52, 1)
    stock = processor()(image, return_tensors="pt")
    _, h, w = stock["image_grid_thw"][0].tolist()
    small = image.resize((w * PATCH, h * PATCH), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (processor().image_mean, processor().image_std)
    )
    rows, grid = packed_frames(((x - mean) / std).expand(2, -1, -1, -1))
    assert grid == [1, h, w]
    torch.testing.assert_close(rows, stock["pixel_values"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_pictures_and_video_through_the_processor(family: str, tmp_path: Path) -> None:
    """Pictures of several sizes, two in a prompt, a video, none: batch = singles, in words too."""
    model, shared = tiny_qwen(family), SHARED.format("<|image_pad|>")
    images = [picture(40, 56, 1), picture(30, 20, 2), picture(64, 24, 3)]
    video = torch.randn(6, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    prompts = [
        f"what is in {shared} the picture",
        f"{shared} which colour {shared} is the sign",
        f"{SHARED.format('<|video_pad|>')} what happens in the video",
        "what is the colour",
    ]
    method = VisionDrop(encoder=(8, 2), llm={2: (5, 2), 5: (3, 1)})
    with method(model) as trace:
        out = generate(model, feed(list(prompts), images, video))
    parts = [(images[:1], None), (images[1:], None), ([], video), ([], None)]
    for i, (own, clip) in enumerate(parts):
        with method(model):
            one = generate(model, feed(prompts[i : i + 1], own, clip))
        torch.testing.assert_close(logits(out)[:, i], logits(one)[:, 0], atol=2e-4, rtol=1e-4)
        words = tokenizer().decode(one.sequences[0, -4:])
        assert words == tokenizer().decode(out.sequences[i, -4:])
    shapes = [sample.shapes for sample in trace.samples]
    assert shapes[0] == [(1, 5, 4)] and shapes[2] == [(3, 3, 2)]
    assert [s.tokens_per_layer for s in trace.samples][0] == [10, 10, 7, 7, 7, 4, 4, 4]
    trace.draw(images[0], tmp_path / "kept.png")
    assert Image.open(tmp_path / "kept.png").width > 4 * 250  # four panels
    with pytest.raises(ValueError, match="1 pictures for a video of 3 frames"):
        trace.draw(images[0], tmp_path / "never.png", sample=2)
    trace.draw([images[0]] * 6, tmp_path / "video.png", sample=2)
    assert not (tmp_path / "never.png").exists() and (tmp_path / "video.png").exists()
    assert trace.to_dict()["samples"][2]["shapes"] == [[3, 3, 2]]
