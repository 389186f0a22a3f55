"""Prompt formats of the language models that LLaVA is built on.

A template joins a system text and alternating messages into the one string that the model was
tuned on; every space and newline counts. Templates are facts of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from enum import Enum, auto
from typing import Any


class SeparatorStyle(Enum):
    """How messages are joined.

    SINGLE: one separator after every message.
    TWO: `sep` after the user's message, `sep2` after the assistant's.
    MPT: role marks hold everything, one separator after each message.
    PLAIN: messages without roles.
    LLAMA_2: `[INST] ... [/INST]`, the system text inside the first one.
    """

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


@dataclasses.dataclass
class Conversation:
    """A system text, messages so far, and the way they become a prompt.

    messages: lists `[role, text]`; text None (or empty) is the turn that the model is to fill. A
        message with pictures is a tuple whose first item is the text.
    offset: how many of the first messages are examples of the template's own.
    """

    system: str
    roles: tuple[str, str]
    messages: list[Any]
    offset: int
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"

    def get_prompt(self) -> str:
        """The conversation as one string, ending where the model is to write."""
        turns = [(role, text[0] if type(text) is tuple else text) for role, text in self.messages]
        if turns and type(self.messages[0][1]) is tuple:
            # Pictures come first, whatever the user's text says of their place.
            role, text = turns[0]
            turns[0] = (role, "<image>\n" + text.replace("<image>", "").strip())
        if self.sep_style is SeparatorStyle.PLAIN:
            ends = (self.sep, self.sep2 or "")
            return self.system + "".join(
                text + ends[i % 2] for i, (_, text) in enumerate(turns) if text
            )
        if self.sep_style is SeparatorStyle.LLAMA_2:
            return self._llama_2(turns)
        if self.sep_style is SeparatorStyle.TWO:
            ends = (self.sep, self.sep2 or "")
            return (
                self.system
                + self.sep
                + "".join(
                    f"{role}: {text}{ends[i % 2]}" if text else f"{role}:"
                    for i, (role, text) in enumerate(turns)
                )
            )
        between = ": " if self.sep_style is SeparatorStyle.SINGLE else ""
        return (
            self.system
            + self.sep
            + "".join(
                role + between + text + self.sep if text else role + between.rstrip()
                for role, text in turns
            )
        )

    def _llama_2(self, turns: list[tuple[str, str | None]]) -> str:
        prompt = ""
        for i, (role, text) in enumerate(turns):
            if i == 0 and (not text or role != self.roles[0]):
                raise ValueError(
                    f"the first message is {text!r} by {role!r}; it must be a text by "
                    f"{self.roles[0]!r}"
                )
            if not text:
                continue
            if i == 0 and self.system:
                text = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{text}"
            prompt += f"{self.sep}[INST] {text} [/INST]" if i % 2 == 0 else f" {text} {self.sep2}"
        return prompt.removeprefix(self.sep)

    def append_message(self, role: str, message: Any) -> None:
        """Adds a turn; None is the turn that the model is to fill."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """An independent conversation with the same messages so far."""
        return dataclasses.replace(self, messages=[list(turn) for turn in self.messages])


_CURIOUS = (
    "A chat between a curious {who} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
)
_UNDERSTANDS = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_HONEST = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
)


def _vicuna(who: str) -> Conversation:
    return Conversation(
        _CURIOUS.format(who=who),
        ("USER", "ASSISTANT"),
        [],
        0,
        SeparatorStyle.TWO,
        " ",
        "</s>",
        version="v1",
    )


def _chatml(system: str) -> Conversation:
    return Conversation(
        f"<|im_start|>system\n{system}",
        ("<|im_start|>user\n", "<|im_start|>assistant\n"),
        [],
        0,
        SeparatorStyle.MPT,
        "<|im_end|>",
        version="mpt",
    )


def _inst(system: str, sep: str) -> Conversation:
    return Conversation(
        system,
        ("USER", "ASSISTANT"),
        [],
        0,
        SeparatorStyle.LLAMA_2,
        sep,
        "</s>",
        version="llama_v2",
    )


conv_vicuna_v1 = _vicuna("user")
conv_llava_v1 = _vicuna("human")
conv_llava_v0 = Conversation(_CURIOUS.format(who="human"), ("Human", "Assistant"), [], 0)
conv_llava_plain = Conversation("", ("", ""), [], 0, SeparatorStyle.PLAIN, "\n")
conv_llava_llama_2 = _inst(_UNDERSTANDS, "<s>")
conv_mistral_instruct = _inst("", "")
conv_mpt = _chatml(_HONEST)
conv_chatml_direct = _chatml("Answer the questions.")

default_conversation = conv_vicuna_v1

# Take a `.copy()` before appending messages.
conv_templates: dict[str, Conversation] = {
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llava_v1": conv_llava_v1,
    "llava_v0": conv_llava_v0,
    "plain": conv_llava_plain,
    "v0_plain": conv_llava_plain,
    "llava_llama_2": conv_llava_llama_2,
    "mistral_instruct": conv_mistral_instruct,
    "mpt": conv_mpt,
    "chatml": conv_chatml_direct,
    "chatml_direct": conv_chatml_direct,
}


def get_template(name: str) -> Conversation:
    """A fresh copy of a template. Raises ValueError naming those that exist."""
    if name not in conv_templates:
        raise ValueError(
            f"unknown conversation mode {name!r}; must be one of {', '.join(conv_templates)}"
        )
    return conv_templates[name].copy()


def infer_template(model_name: str) -> str:
    """The template that a checkpoint was tuned on, judged by its name as LLaVA does.

    A name that LLaVA does not know gets `vicuna_v1`, the template of LLaVA-1.5's training.
    """
    lowered = model_name.lower()
    known = {
        "llama-2": "llava_llama_2",
        "mistral": "mistral_instruct",
        "v1.6-34b": "chatml_direct",
        "v1": "llava_v1",
        "mpt": "mpt",
        "v0": "llava_v0",
    }
    return next((template for part, template in known.items() if part in lowered), "vicuna_v1")
