"""A conversation in words: LLaVA's templates and pictures on `visiondrop.chat`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.conversation import get_template, infer_template
from llava.eval.run_llava import build_question
from llava.mm_utils import process_images, tokenizer_image_token
from visiondrop.chat import Chat
from visiondrop.image_cache import ImageCache

__all__ = ["LlavaChat"]

ANSWER = "\x02"
"""Stands for an answer while a template is written, to find what follows it."""


class LlavaChat:
    """Turns of text, with pictures in any of them, answered on kept KV (`visiondrop.chat.Chat`).

    Args:
        tokenizer, image_processor: of the checkpoint.
        cache: on its model; several conversations may share it.
        conv_mode: a template of `llava.conversation`; by default the one of the model's name.

    Attributes:
        messages: (role, text) so far, for display. What the model sees are `chat.ids`.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        cache: ImageCache,
        conv_mode: str | None = None,
    ):
        self.tokenizer, self.image_processor, self.cache = tokenizer, image_processor, cache
        name = str(getattr(cache.model.config, "_name_or_path", ""))
        self.template = get_template(conv_mode or infer_template(name))
        self.chat = Chat(cache)
        self.messages: list[tuple[str, str]] = []

    def reset(self) -> None:
        """Begin a new conversation."""
        self.chat.reset()
        self.messages = []

    def ask(self, text: str, images: Sequence[Image.Image] = (), **kwargs: Any) -> str:
        """One turn; pictures go before its text.

        Args:
            kwargs: of `generate`; a `streamer` sees the new tokens only.

        Returns: the answer. Raises `ValueError` on an empty turn.
        """
        if not text.strip():
            raise ValueError("the turn has no text; ask something")
        config = self.cache.model.config
        marks = bool(getattr(config, "mm_use_im_start_end", False))
        ids = self.ids_of(build_question(text, len(images), marks))
        pictures = None
        if images:
            pictures = {
                "images": process_images(images, self.image_processor, config),
                "image_sizes": [image.size for image in images],
            }
        new = self.chat.ask(ids, pictures, **kwargs)
        answer = str(self.tokenizer.decode(new, skip_special_tokens=True)).strip()
        self.messages += [(self.template.roles[0], text), (self.template.roles[1], answer)]
        return answer

    def ids_of(self, message: str) -> Tensor:
        """Ids of the next turn, behind those that the conversation has."""
        conversation = self.template.copy()
        first = not self.messages
        if not first:
            # The template's words between two turns do not depend on what was said before.
            conversation.append_message(conversation.roles[0], "-")
            conversation.append_message(conversation.roles[1], ANSWER)
        conversation.append_message(conversation.roles[0], message)
        conversation.append_message(conversation.roles[1], None)
        prompt = conversation.get_prompt()
        if first:
            return tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt")
        tail = prompt.rpartition(ANSWER)[2]
        end = self.tokenizer.decode(self.chat.ids[-1:]) if self.ended else ""
        if end and tail.lstrip().startswith(end):
            tail = tail.lstrip()[len(end) :]  # the model wrote it itself
        ids = tokenizer_image_token(tail, self.tokenizer)
        empty = list(self.tokenizer("").input_ids)
        return torch.tensor(ids[len(empty) :] if ids[: len(empty)] == empty else ids)

    @property
    def ended(self) -> bool:
        """Whether the last answer came to its end, and not to the limit of new tokens."""
        ends = self.cache.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return int(self.chat.ids[-1]) in ends

    def ledger(self) -> dict[str, Any]:
        """Counts of tokens and bytes, see `Chat.ledger`."""
        return self.chat.ledger()
