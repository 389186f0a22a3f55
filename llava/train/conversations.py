"""Conversations as training samples: token ids, labels on the assistant's words alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import process_images

IGNORE = -100
_HUMAN = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


def read_samples(path: str | Path) -> list[dict[str, Any]]:
    """The list of samples; raises ValueError naming the first that is not LLaVA's form."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        samples = (
            [json.loads(x) for x in text.splitlines() if x.strip()]
            if str(path).endswith(".jsonl")
            else json.loads(text)
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid json: {error}") from error
    if not isinstance(samples, list) or not samples:
        raise ValueError(f"{path} must hold a list of samples with at least one in it")
    for i, s in enumerate(samples):
        turns = s.get("conversations") if isinstance(s, dict) else None
        if not turns or any(t.get("from") not in _HUMAN or "value" not in t for t in turns):
            raise ValueError(
                f'{path}, sample {i}: "conversations" must be a list of '
                '{"from": "human" | "gpt", "value": ...}'
            )
    return samples


def pieces(turns: list[dict[str, str]], version: str) -> list[tuple[str, bool]]:
    """The conversation's text in pieces (text, learned): what the assistant says is learned.

    Ends as the template ends an answer, so that the model learns to stop.
    """
    if version not in conv_templates:
        raise ValueError(f"--version {version}: known are {', '.join(sorted(conv_templates))}")
    conv = conv_templates[version].copy()
    conv.messages = []
    style = conv.sep_style
    turns = turns[1:] if _HUMAN[turns[0]["from"]] else turns
    if style is SeparatorStyle.PLAIN:
        return [(DEFAULT_IMAGE_TOKEN, False), (turns[1]["value"].strip() + conv.sep, True)]
    out: list[tuple[str, bool]] = []
    before = ""
    for i, turn in enumerate(turns):
        role = _HUMAN[turn["from"]]
        if role != i % 2:
            raise ValueError(f"turn {i} is by {turn['from']!r}: human and gpt must alternate")
        value = turn["value"].strip()
        if role == 0 and DEFAULT_IMAGE_TOKEN in value:
            value = f"{DEFAULT_IMAGE_TOKEN}\n" + value.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        conv.append_message(conv.roles[role], value)
        if role == 1:
            # The prompt with this answer, less the prompt that asks for it, is what is learned.
            full = conv.get_prompt()
            conv.messages[-1][1] = None
            asked = conv.get_prompt()
            conv.messages[-1][1] = value
            if not full.startswith(asked):
                raise ValueError(f"the template {version} cannot be cut into question and answer")
            out += [(asked[len(before) :], False), (full[len(asked) :], True)]
            before = full
    if not out:
        raise ValueError("a conversation without an answer teaches nothing")
    return out


def encode(
    parts: list[tuple[str, bool]], tokenizer: Any, image_id: int, image_tokens: int, limit: int
) -> tuple[Tensor, Tensor]:
    """Ids and labels (T,) of a conversation; ``<image>`` becomes ``image_tokens`` image ids.

    The texts between pictures are tokenised whole, as at inference, and cut by character offsets.
    """
    text = "".join(t for t, _ in parts)
    learned = [flag for t, flag in parts for _ in t]
    ids: list[int] = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    labels = [IGNORE] * len(ids)
    at = 0
    for k, chunk in enumerate(text.split(DEFAULT_IMAGE_TOKEN)):
        if k:
            ids += [image_id] * image_tokens
            labels += [IGNORE] * image_tokens
            at += len(DEFAULT_IMAGE_TOKEN)
        coded = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
        for token, (a, b) in zip(coded.input_ids, coded.offset_mapping, strict=True):
            ids.append(token)
            labels.append(token if b > a and learned[at + b - 1] else IGNORE)
        at += len(chunk)
    return torch.tensor(ids[:limit]), torch.tensor(labels[:limit])


class Conversations(Dataset[dict[str, Any]]):
    """LLaVA's data, prepared sample by sample."""

    def __init__(
        self, path: str, folder: str, tokenizer: Any, processor: Any, config: Any, version: str,
        limit: int,
    ) -> None:  # fmt: skip
        self.samples = read_samples(path)
        self.folder, self.tokenizer, self.processor = Path(folder), tokenizer, processor
        self.config, self.version, self.limit = config, version, limit

    def __len__(self) -> int:
        return len(self.samples)

    def lengths(self) -> list[int]:
        """Words in each sample; negative for samples without a picture."""
        words = (sum(len(t["value"].split()) for t in s["conversations"]) + 1 for s in self.samples)
        return [n if "image" in s else -n for n, s in zip(words, self.samples, strict=True)]

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self.samples[i]
        parts = pieces(sample["conversations"], self.version)
        pictures = sum(t.count(DEFAULT_IMAGE_TOKEN) for t, _ in parts)
        if pictures != ("image" in sample):
            raise ValueError(
                f"sample {sample.get('id', i)!r}: {pictures} times <image> in its text but "
                f"{int('image' in sample)} picture"
            )
        ids, labels = encode(
            parts,
            self.tokenizer,
            self.config.image_token_id,
            self.config.image_seq_length,
            self.limit,
        )
        out: dict[str, Any] = {"input_ids": ids, "labels": labels}
        if pictures:
            with Image.open(self.folder / sample["image"]) as im:
                pixels = process_images([im.convert("RGB")], self.processor, self.config)
            out["pixel_values"] = pixels[0]
        return out


class Collator:
    """Right padding; pictures of the samples that have one are stacked in order."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        def padded(name: str, value: int) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence(
                [r[name] for r in rows], batch_first=True, padding_value=value
            )

        ids = padded("input_ids", self.pad)
        lengths = torch.tensor([len(r["input_ids"]) for r in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        out = {"input_ids": ids, "labels": padded("labels", IGNORE), "attention_mask": mask}
        pictures = [r["pixel_values"] for r in rows if "pixel_values" in r]
        if pictures:
            out["pixel_values"] = torch.stack(pictures)
        return out
