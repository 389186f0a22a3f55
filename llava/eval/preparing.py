"""Questions made ready for the model in worker processes: prompt ids and picture tensors.

Pictures are prepared as the original checkpoint does (``llava.mm_utils.process_images``).  One that
cannot be read becomes an error of its sample; the other samples of its batch go on.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import conv_templates
from llava.eval.clips import ClipFolder
from llava.eval.errors import EvalError
from llava.eval.pictures import GREY, Folder, Pictures
from llava.eval.samples import Sample
from llava.mm_utils import process_images, tokenizer_image_token
from visiondrop.adapters import geometry_of

HELD = 512 * 2**20  # bytes of prepared pictures; one of 336 px has 1.3 MiB
HELD_BY_WORKER = 64 * 2**20  # a worker process ends with its run


@dataclass
class Prepared:
    """One question ready for the model.

    Attributes:
        index: the sample's place in the run.
        input_ids: (T,) prompt ids with IMAGE_TOKEN_INDEX where the picture goes.
        image: (3, H, W), (tiles, 3, H, W) for any-resolution pictures, (frames, 3, H, W) for a
            clip; None without a picture.
        image_size: (width, height) of the picture as it was.
        error: why the sample cannot be answered; None if it can.
    """

    index: int
    input_ids: torch.Tensor
    image: torch.Tensor | None = None
    image_size: tuple[int, int] | None = None
    error: str | None = None


def build_prompt(
    question: str, conv_mode: str, has_image: bool = True, im_start_end: bool = False
) -> str:
    """LLaVA's prompt: the picture's placeholder, the question, in the conversation's template.

    ``im_start_end`` puts the placeholder between marks, for checkpoints tuned that way.
    """
    if conv_mode not in conv_templates:
        raise EvalError(
            f"unknown conversation {conv_mode!r}; choose one of {', '.join(sorted(conv_templates))}"
        )
    conversation = conv_templates[conv_mode].copy()
    if DEFAULT_IMAGE_TOKEN in question:  # as in ScienceQA's file; it goes in front in any case
        question = question.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    picture = DEFAULT_IMAGE_TOKEN
    if im_start_end:
        picture = DEFAULT_IM_START_TOKEN + picture + DEFAULT_IM_END_TOKEN
    message = f"{picture}\n{question}" if has_image else question
    conversation.append_message(conversation.roles[0], message)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def load_picture(file: Path | BinaryIO, blank: bool = False) -> Image.Image:
    """The picture in RGB; with ``blank`` a uniform grey one of its size."""
    with Image.open(file) as image:
        if blank:
            return Image.new("RGB", image.size, GREY)
        return image.convert("RGB")


def as_seen(image: torch.Tensor, processor: Any) -> Image.Image:
    """The picture as the model sees it, padded or cropped, from its tensor (3, H, W)."""
    whole = image[0] if image.dim() == 4 else image  # any-resolution: the overview tile
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    pixels = (whole.float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def drawn_over(
    prepared: Prepared, dataset: QuestionDataset, processor: Any
) -> Image.Image | list[Image.Image]:
    """What `Trace.draw` takes for a sample: a picture of one tile or the frames of a clip as the
    model saw them, a picture of several tiles as it was.
    """
    image, name = prepared.image, dataset.samples[prepared.index].image
    if image is None or name is None:
        raise ValueError("a question without a picture has nothing to be drawn over")
    if image.dim() == 3:
        return as_seen(image, processor)
    if hasattr(dataset.pictures, "frames"):
        return [as_seen(frame, processor) for frame in image]
    return load_picture(dataset.pictures.find(name), dataset.blank_picture)


class QuestionDataset(Dataset[Prepared]):
    """Prepared questions by their place in the run.

    The pictures prepared last are held, up to ``hold_bytes``: one picture's questions may lie apart
    in the file, and further runs over the same dataset ask about the same pictures.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pictures: str | Path | Pictures,
        tokenizer: Any,
        image_processor: Any,
        model_config: Any,
        conv_mode: str,
        image_aspect_ratio: str,
        blank_picture: bool = False,
        hold_bytes: int = HELD_BY_WORKER,
    ) -> None:
        self.samples = samples
        self.pictures = Folder(pictures) if isinstance(pictures, (str, Path)) else pictures
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.model_config = copy.copy(model_config)
        self.model_config.image_aspect_ratio = image_aspect_ratio
        self.conv_mode = conv_mode
        self.blank_picture = blank_picture
        self.positions, self.patches = _room(model_config)
        self.hold_bytes = hold_bytes
        self._held: OrderedDict[str, tuple[torch.Tensor, tuple[int, int]]] = OrderedDict()
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Prepared:
        sample = self.samples[index]
        marks = bool(getattr(self.model_config, "mm_use_im_start_end", False))
        prompt = build_prompt(sample.prompt, self.conv_mode, sample.image is not None, marks)
        input_ids = tokenizer_image_token(
            prompt, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
        )
        prepared = Prepared(index, input_ids)
        pictures = int((input_ids == IMAGE_TOKEN_INDEX).sum())
        needed = len(input_ids) + pictures * (self.patches - 1)
        if self.positions is not None and needed > self.positions:
            # Alike for every method, also one that would drop enough: they answer the same samples.
            prepared.error = (
                f"prompt too long: {len(input_ids) - pictures} tokens of text and {pictures} "
                f"picture(s) of {self.patches}, the model has {self.positions} positions"
            )
            return prepared
        if sample.image is None:
            return prepared
        if sample.image in self._held:
            self._held.move_to_end(sample.image)
            prepared.image, prepared.image_size = self._held[sample.image]
            return prepared
        try:
            image, size = self._prepare(sample.image)
        except Exception as error:
            # A broken file makes Pillow raise nearly anything; the sample fails, the run goes on.
            prepared.error = (
                f"cannot read picture {sample.image}: {str(error) or type(error).__name__}"
            )
            return prepared
        prepared.image, prepared.image_size = image, size
        self._hold(sample.image, image, size)
        return prepared

    def _prepare(self, name: str) -> tuple[torch.Tensor, tuple[int, int]]:
        """The picture's (or clip's) tensor, and (width, height) as it was."""
        if isinstance(self.pictures, ClipFolder):
            frames = self.pictures.frames(name, self.blank_picture)
            pixels = process_images(frames, self.image_processor, self.model_config)
            return torch.stack(list(pixels)), frames[0].size
        picture = load_picture(self.pictures.find(name), self.blank_picture)
        pixels = process_images([picture], self.image_processor, self.model_config)
        return pixels[0], picture.size

    def _hold(self, name: str, image: torch.Tensor, size: tuple[int, int]) -> None:
        """Keep a prepared picture, and let go of those asked for longest ago."""
        self._held[name] = (image, size)
        self._held_bytes += image.nbytes
        while self._held_bytes > self.hold_bytes and len(self._held) > 1:
            _, (oldest, _) = self._held.popitem(last=False)
            self._held_bytes -= oldest.nbytes


def _room(config: Any) -> tuple[int | None, int]:
    """Positions of the language model, if it says how many, and patches of a picture at least."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    try:
        return positions, geometry_of(config).num_patches
    except (TypeError, ValueError):
        return positions, 1


def batch_loader(
    dataset: QuestionDataset, batches: Sequence[range], workers: int
) -> Iterable[list[Prepared]]:
    """A loader that yields the given batches in order, as lists."""
    return DataLoader(
        dataset,
        batch_sampler=[list(batch) for batch in batches],
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
