"""A conversation without kept KV, for methods that look at the question: each turn reads all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import get_template
from llava.eval.run_llava import build_question
from llava.mm_utils import process_images, tokenizer_image_token
from visiondrop.reducer import Reducer
from visiondrop.trace import SampleTrace

__all__ = ["PlainChat"]


class PlainChat:
    """Turns of text with pictures in any of them, as `llava.chat.LlavaChat`, but asked afresh.

    What a text-guided method keeps depends on the last question, so that nothing of an earlier turn
    can be used again.
    """

    def __init__(
        self, tokenizer: Any, image_processor: Any, model: Any, method: Reducer, conv_mode: str
    ):
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.model, self.method, self.template = model, method, get_template(conv_mode)
        self.messages: list[tuple[str, str]] = []
        self.sample: SampleTrace | None = None
        self._pictures: list[Image.Image] = []
        self._conversation = self.template.copy()

    def ask(self, text: str, images: Sequence[Image.Image] = (), **kwargs: Any) -> str:
        """One turn; pictures go before its text. Raises `ValueError` on an empty one."""
        if not text.strip():
            raise ValueError("the turn has no text; ask something")
        config = self.model.config
        marks = bool(getattr(config, "mm_use_im_start_end", False))
        conversation = self._conversation.copy()
        conversation.append_message(conversation.roles[0], build_question(text, len(images), marks))
        conversation.append_message(conversation.roles[1], None)
        ids = tokenizer_image_token(
            conversation.get_prompt(), self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
        )
        pictures = [*self._pictures, *images]
        if pictures:
            kwargs["images"] = process_images(pictures, self.image_processor, config)
            kwargs["image_sizes"] = [picture.size for picture in pictures]
        with torch.no_grad(), self.method(self.model, questions=[text] * len(pictures)) as trace:
            out = self.model.generate(ids[None], **kwargs)
        answer = str(self.tokenizer.decode(out[0], skip_special_tokens=True)).strip()
        conversation.messages[-1][1] = answer
        self._conversation, self._pictures = conversation, pictures
        self.sample = trace.samples[0] if trace.samples else None
        self.messages += [(self.template.roles[0], text), (self.template.roles[1], answer)]
        return answer

    def ledger(self) -> dict[str, Any]:
        """Counts of the last turn, by the names of `visiondrop.chat.Chat.ledger`."""
        sample = self.sample
        visual = [] if sample is None else list(sample.tokens_per_layer)
        return {
            "turns": len(self.messages) // 2,
            "held_per_layer": [] if sample is None else list(sample.lengths),
            "visual_per_layer": visual,
            "mean_visual_tokens": sum(visual) / max(1, len(visual)),
            "kv_bytes": 0 if sample is None else sample.kv_bytes,
        }
