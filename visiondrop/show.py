"""Show which visual tokens a method keeps on one picture.

python -m visiondrop.show --model llava-hf/llava-1.5-7b-hf --image cat.jpg --tokens 64 -o
kept.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

from visiondrop.adapters import adapter_of, geometry_of
from visiondrop.draw import pad_to_square
from visiondrop.methods import METHODS, build_method
from visiondrop.reducer import Reducer
from visiondrop.trace import SampleTrace, Trace

__all__ = ["add_arguments", "main", "method_from", "open_image", "show"]

QUESTION = "What is in the picture?"


def show(
    model: nn.Module,
    method: Reducer,
    image: Image.Image,
    output: Path,
    ask: Callable[[], str],
    question: str | None = None,
) -> Trace:
    """Answer once under `method`, print the ledger, draw the picture.

    Args:
        model: the model that `ask` runs.
        image: the picture as the model sees it (a square, or padded to one); one of any resolution
            whole.
        output: where the PNG goes.
        ask: runs the model on the picture and returns its answer.
        question: that it is asked, for methods that read it.
    """
    with method(model, questions=None if question is None else [question]) as trace:
        answer = ask()
    sample = trace.samples[0]
    print(f"answer: {answer}")
    print(ledger_text(sample))
    if not sample.stages:
        print(f"{method.name!r} has no stage: all patches are kept")
    output.parent.mkdir(parents=True, exist_ok=True)
    trace.draw(image, output)
    print(f"wrote {output}")
    return trace


def ledger_text(sample: SampleTrace) -> str:
    """Visual tokens by run of layers, and their mean."""
    layers, parts, first = sample.tokens_per_layer, [], 0
    for i in range(1, len(layers) + 1):
        if i == len(layers) or layers[i] != layers[first]:
            parts.append(f"layers {first}-{i - 1}: {layers[first]}")
            first = i
    mean = f"{sample.mean_tokens:.2f}".rstrip("0").rstrip(".")
    return f"visual tokens  {',  '.join(parts)};  mean {mean}"


def open_image(path: str) -> Image.Image:
    """A picture from a file. Raises `ValueError` naming the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"no picture at {path}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error})") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every `show` command has."""
    parser.add_argument("--model", required=True, help="checkpoint: local folder or hub id")
    parser.add_argument("--image", required=True, help="picture file")
    parser.add_argument(
        "--method", default="visiondrop", metavar="NAME", help=f"{', '.join(METHODS)}; NAME@PRESET"
    )
    parser.add_argument("--tokens", type=float, default=None, help="average visual tokens (64)")
    parser.add_argument(
        "--budget",
        choices=("average", "nominal"),
        default="average",
        help="what --tokens means: the true mean over decoder layers, or the papers' own count",
    )
    parser.add_argument(
        "--method-arg", action="append", default=[], metavar="NAME=VALUE", help="repeatable"
    )
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("-o", "--output", type=Path, default=Path("kept.png"))


def method_from(args: argparse.Namespace, model: nn.Module) -> Reducer:
    """The method that the flags ask for. Raises `ValueError` before any compute."""
    fields = {}
    for item in args.method_arg:
        name, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"--method-arg {item!r}: write NAME=VALUE")
        fields[name] = value
    tokens = args.tokens
    if tokens is None and "@" not in args.method and not {"encoder", "llm", "tokens"} & set(fields):
        tokens = 64
    return build_method(
        args.method, tokens, geometry=geometry_of(model), args=fields, budget=args.budget
    )


def load(path: str) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor of a Hugging Face checkpoint, without torchvision."""
    from transformers import (
        AutoModelForImageTextToText,
        AutoTokenizer,
        CLIPImageProcessorPil,
        LlavaNextImageProcessorPil,
    )

    cuda = torch.cuda.is_available()
    model = AutoModelForImageTextToText.from_pretrained(
        path, dtype=torch.float16 if cuda else torch.float32
    )
    model = model.to("cuda" if cuda else "cpu").eval()
    tiled = adapter_of(model).geometry(model.config).crops
    processor = LlavaNextImageProcessorPil if tiled else CLIPImageProcessorPil
    return model, AutoTokenizer.from_pretrained(path), processor.from_pretrained(path)


def picture_inputs(
    model: Any, processor: Any, image: Image.Image
) -> tuple[dict[str, Any], int, Image.Image]:
    """The model's picture arguments, its visual tokens, and the picture as it is to be drawn."""
    geometry = geometry_of(model)
    if not geometry.crops:
        image = pad_to_square(image)
    inputs = dict(processor(image, return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].to(model.device, model.dtype)
    if not geometry.crops:
        return inputs, geometry.num_patches + int(geometry.cls_in_prompt), image
    adapter: Any = adapter_of(model)
    _, grids = adapter.tiles(model, **inputs)
    return inputs, grids[0].unpruned, image


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m visiondrop.show", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        image = open_image(args.image)
        model, tokenizer, processor = load(args.model)
        method = method_from(args, model)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pictures, rows, image = picture_inputs(model, processor, image)
    token = adapter_of(model).image_token_id(model.config)
    before = tokenizer("USER: ")["input_ids"]
    after = tokenizer(f"\n{args.question} ASSISTANT:", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*before, *[token] * rows, *after]], device=model.device)

    def ask() -> str:
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **pictures,
            max_new_tokens=args.max_new_tokens,
            do_sample=False,
        )
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()

    print(f"method: {json.dumps(method.to_dict())}")
    show(model, method, image, args.output, ask, args.question)
    return 0


if __name__ == "__main__":
    sys.exit(main())
