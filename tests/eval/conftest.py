"""A tiny random LLaVA in Hugging Face layout, and TextVQA-shaped data for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from llava.eval.benchmarks import get_benchmark

SUFFIX = "Answer the question using a single word or phrase."


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class TinyData:
    folder: Path
    questions: Path
    images: Path
    annotations: Path


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([f"USER: what colour is it? ASSISTANT: {SUFFIX}"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 decoder layers, 36 patches with CLS, random weights with a seed."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    vocabulary = len(tokenizer)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=84,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=vocabulary + 1,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        ),
        image_token_index=vocabulary,
        image_seq_length=36,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # as initialised, the layers hardly change what they read
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.normal_(std=2.0 * parameter.shape[1] ** -0.5)
    model.generation_config.pad_token_id = 3
    folder = tmp_path_factory.mktemp("model") / "tiny-llava"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84}
    ).save_pretrained(folder)
    return folder


def write_data(folder: Path, pictures: int = 5, questions_each: int = 4) -> TinyData:
    """Several questions a picture under one question_id, as in the real file."""
    images = folder / "train_images"
    images.mkdir(parents=True)
    lines, entries = [], []
    colours = ["red", "green", "blue", "yellow", "black"]
    for p in range(pictures):
        picture = Image.new("RGB", (96, 64 + 8 * p), "white")
        draw = ImageDraw.Draw(picture)
        for i in range(p + 2):
            x = 12 * i
            draw.rectangle((x, 5 * i, x + 9, 5 * i + 11), fill=colours[(p + i) % len(colours)])
        picture.save(images / f"picture{p}.png")
        for q in range(questions_each):
            question = f"What is thing number {q}{' there' * q}?"
            lines.append(
                {
                    "question_id": f"picture{p}",
                    "image": f"picture{p}.png",
                    "text": f"{question}\nReference OCR token: a, b\n{SUFFIX}",
                    "category": "default",
                }
            )
            entries.append(
                {
                    "image_id": f"picture{p}",
                    "question": question,
                    "answers": [colours[q % 3]] * 6 + ["white"] * 4,
                    "question_id": len(entries),
                }
            )
    data = TinyData(
        folder,
        folder / "llava_textvqa_val_v051_ocr.jsonl",
        images,
        folder / "TextVQA_0.5.1_val.json",
    )
    data.questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data.annotations.write_text(json.dumps({"data": entries}))
    types = [
        {
            "image_id": entry["image_id"],
            "question": entry["question"],
            "type": f"t{i % 2}",
            "region": [i, i + 1, 35],
        }
        for i, entry in enumerate(entries)
    ]
    (folder / "regions.json").write_text(json.dumps(types))
    return data


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """20 questions about 5 pictures; not to be changed."""
    return write_data(tmp_path_factory.mktemp("data") / "textvqa")


@pytest.fixture
def tiny_data(tmp_path: Path) -> TinyData:
    """The same, a copy to spoil."""
    return write_data(tmp_path / "textvqa")


def answer_rows(name: str, folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    """Rows of an answers file: texts for the first questions of a benchmark's files."""
    benchmark = get_benchmark(name)
    samples = benchmark.read(benchmark.files(folder))
    return [
        {
            "question_id": s.question_id,
            "prompt": s.prompt,
            "image": s.image,
            "text": t,
            "metadata": {},
        }
        for s, t in zip(samples, texts)
    ]
