"""The image cache through LLaVA's own front (-200 in the ids), and a conversation in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.chat import LlavaChat
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from visiondrop import ImageCache, VisionDrop
from visiondrop.reducer import Reducer

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "checkpoints" / "pocket-llava"
IMAGES = ROOT / "playground" / "data" / "eval" / "textvqa" / "train_images"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def pocket() -> tuple[Any, Any, Any]:
    """Tokenizer, model in float32, picture processor."""
    return load_pretrained_model(
        str(POCKET), None, "pocket-llava", device="cpu", torch_dtype=torch.float32
    )[:3]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in sorted(IMAGES.glob("*.jpg"))[:2]]


METHODS = [None, VisionDrop.from_average(64, num_layers=16)]


@pytest.mark.parametrize("method", METHODS, ids=["full", "visiondrop"])
def test_ids_with_markers(pocket: Any, pictures: list[Image.Image], method: Reducer | None) -> None:
    """Also: a penalty counts the new tokens only, as in LLaVA's generate."""
    tokenizer, model, processor = pocket
    images = list(process_images(pictures, processor, model.config))
    cache = ImageCache(model, method)
    head = tokenizer("A chat. USER: ").input_ids + [IMAGE_TOKEN_INDEX]
    questions = [
        tokenizer(text, add_special_tokens=False).input_ids
        for text in ("\nWhat color is it? ASSISTANT:", "\nHow many circles are there? ASSISTANT:")
    ]
    prefixes = cache.build_all([{"input_ids": head, "images": [image]} for image in images])
    for more in ({}, {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}):
        options = GREEDY | more | {"return_dict_in_generate": True, "output_logits": True}
        out = cache.generate(prefixes, questions, **options)
        with cache.method(model):
            rows = [torch.tensor(head + question) for question in questions]
            whole = model.generate(rows, images=images, **options)
        assert out.sequences.tolist() == whole.sequences.tolist()
        for a, b in zip(out.logits, whole.logits, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)
    assert prefixes[0].sample is not None and len(prefixes[0]) == len(head) - 1 + 576
    assert cache.build(torch.tensor([head]), images=images[0]) is prefixes[0]


def test_a_conversation_in_words_is_one_prompt(pocket: Any, pictures: list[Image.Image]) -> None:
    """Its ids are those of the template's whole text with the answers' own ids in it."""
    tokenizer, model, processor = pocket
    chat = LlavaChat(tokenizer, processor, ImageCache(model, METHODS[1]), "vicuna_v1")
    turns = [("Hello", 0), ("What color is it?", 1), ("How many are there?", 0), ("And here?", 1)]
    shown: list[Image.Image] = []
    streamed: list[int] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            streamed.extend(value.reshape(-1).tolist())

        def end(self) -> None:
            pass

    for text, count in turns:
        own = pictures[len(shown) : len(shown) + count]
        shown += own
        streamed.clear()
        answer = chat.ask(text, own, streamer=Streamer(), **GREEDY)
        ids, new = chat.chat.ids, list(streamed)
        assert ids[-len(new) :].tolist() == new, "the streamer sees the answer and nothing else"
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == answer
        images = [process_images([p], processor, model.config)[0] for p in shown]
        with chat.cache.method(model):
            whole = model.generate(ids[None, : -len(new)], images=images or None, **GREEDY)
        assert whole[0].tolist() == new
    assert [role for role, _ in chat.messages] == ["USER", "ASSISTANT"] * 4
    said = tokenizer.decode([i for i in ids.tolist() if i >= 0])
    assert said.count("USER:") == said.count("ASSISTANT:") == 4 and said.count("<s>") == 1
    assert chat.ledger()["visual_per_layer"][0] == 2 * 96
    with pytest.raises(ValueError, match="no text; ask something"):
        chat.ask("  ")
    chat.reset()
    assert chat.messages == [] and chat.ledger()["turns"] == 0


@pytest.mark.parametrize("mode", ["vicuna_v1", "llava_llama_2", "mistral_instruct", "llava_v0"])
@pytest.mark.parametrize("ended", [True, False])
def test_what_follows_an_answer(pocket: Any, mode: str, ended: bool) -> None:
    """The template's own words up to the next answer; an end token stands there once."""
    tokenizer, model, processor = pocket
    chat = LlavaChat(tokenizer, processor, ImageCache(model), mode)
    chat.messages = [("a", "b")]
    eos = model.generation_config.eos_token_id
    chat.chat.ids = torch.tensor([1, 20, 21, eos if ended else 22])
    ids = chat.ids_of("More?").tolist()
    conversation = chat.template.copy()
    for role, text in zip(conversation.roles * 2, ("-", "X", "More?", None), strict=True):
        conversation.append_message(role, text)
    tail = conversation.get_prompt().rpartition("X")[2]
    if ended and tail.lstrip().startswith("</s>"):
        tail = tail.lstrip().removeprefix("</s>")
    assert ids == tokenizer(tail, add_special_tokens=False).input_ids
