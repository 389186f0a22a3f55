"""Questions about a picture, answered in turn with a method each: what page and chat share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import get_template, infer_template
from llava.eval.answering import LoadedModel
from llava.eval.preparing import as_seen, build_prompt
from llava.mm_utils import process_images, tokenizer_image_token
from visiondrop import Geometry, Reducer, Session, geometry_of
from visiondrop.show import ledger_text
from visiondrop.streaming import Stream
from visiondrop.trace import SampleTrace

__all__ = ["Asker", "Prepared", "by_layer"]


@dataclass
class Prepared:
    """A question ready for the model.

    Attributes:
        question: as it was asked.
        ids: [1, T], with IMAGE_TOKEN_INDEX where the picture goes.
        images: tensors of the picture, as `process_images` gives them.
        size: (width, height) of the picture.
        seen: the picture as it is to be drawn over.
    """

    question: str
    ids: torch.Tensor
    images: Any
    size: tuple[int, int]
    seen: Image.Image


class Asker:
    """A loaded checkpoint and the one session on it.

    Args:
        loaded: of `llava.eval.loading.load_model`.
        conv_mode: a template of `llava.conversation`; by default the one of the model's name.
        max_new_tokens: of an answer; temperature: 0 is greedy; seed: of draws.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        conv_mode: str | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ):
        self.loaded = loaded
        self.conv_mode = conv_mode or infer_template(loaded.name)
        get_template(self.conv_mode)
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.session = Session(loaded.model)
        self.geometry: Geometry = geometry_of(loaded.model)

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `generate` that say how tokens are chosen, and how many."""
        chosen: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            chosen = {"do_sample": True, "temperature": self.temperature}
        return {
            **chosen,
            "max_new_tokens": self.max_new_tokens,
            "pad_token_id": self.loaded.pad_id,
        }

    def prepare(self, picture: Image.Image, question: str) -> Prepared:
        """A picture and a question as the model takes them.

        Raises `ValueError` on an empty question, or one that does not fit.
        """
        question = question.strip()
        if not question:
            raise ValueError("no question: type one")
        config = self.loaded.model.config
        marks = bool(getattr(config, "mm_use_im_start_end", False))
        prompt = build_prompt(question, self.conv_mode, True, marks)
        ids = tokenizer_image_token(
            prompt, self.loaded.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
        )
        room = getattr(config.get_text_config(), "max_position_embeddings", None)
        needed = len(ids) - 1 + self.geometry.num_patches + self.max_new_tokens
        if room is not None and needed > room:
            text, free = len(ids) - 1, room - self.geometry.num_patches - self.max_new_tokens
            raise ValueError(
                f"the question is too long: with the template {text} tokens, where {free} fit "
                "beside the picture and the answer; make it shorter"
            )
        images = process_images([picture], self.loaded.image_processor, config)
        tiled = images[0].dim() == 4
        seen = picture if tiled else as_seen(images[0], self.loaded.image_processor)
        return Prepared(question, ids[None], images, picture.size, seen)

    def stream(self, method: Reducer | None, prepared: Prepared) -> Stream:
        """The answer piece by piece, in its turn. None is the full model."""
        call = functools.partial(
            self.loaded.model.generate,
            prepared.ids,
            images=prepared.images,
            image_sizes=[prepared.size],
            **self.sampling,
        )
        return self.session.stream(
            self.loaded.tokenizer,
            call,
            method,
            seed=self.seed,
            questions=[prepared.question],
        )

    def warm_up(self) -> None:
        """One short answer about a grey picture, so that the first question's time is not that of a
        model that has never run.
        """
        prepared = self.prepare(Image.new("RGB", (336, 336), (127, 127, 127)), "Is it grey?")
        with self.stream(None, prepared) as stream:
            "".join(stream)


def by_layer(sample: SampleTrace) -> str:
    """Visual tokens by run of layers, without their mean."""
    return ledger_text(sample).removeprefix("visual tokens").rpartition(";")[0].strip()
