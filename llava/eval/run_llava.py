"""One question about one or several pictures: `python -m llava.eval.run_llava`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import urllib.request
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
)
from llava.conversation import get_template, infer_template
from llava.eval.cli import add_budget_flag
from llava.eval.samples import raw_question
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_config, load_pretrained_model


def load_image(image_file: str) -> Image.Image:
    """A picture from a file or an http(s) address, in RGB. Raises ValueError naming it."""
    try:
        if image_file.startswith(("http://", "https://")):
            with urllib.request.urlopen(image_file, timeout=60) as answer:
                return Image.open(BytesIO(answer.read())).convert("RGB")
        return Image.open(Path(image_file).expanduser()).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"cannot read the picture {image_file}: {error}") from error


def build_question(query: str, pictures: int, start_end: bool) -> str:
    """The user's message: the query with `<image>` at its placeholders, else before it.

    Without a placeholder every picture goes before the query, one a line.
    """
    mark = DEFAULT_IMAGE_TOKEN
    if start_end:
        mark = DEFAULT_IM_START_TOKEN + mark + DEFAULT_IM_END_TOKEN
    placed = query.count(IMAGE_PLACEHOLDER)
    if placed == 0:
        return (mark + "\n") * pictures + query
    if placed != pictures:
        raise ValueError(
            f"the query has {placed} {IMAGE_PLACEHOLDER} but {pictures} picture(s) were given"
        )
    return query.replace(IMAGE_PLACEHOLDER, mark)


def build_reduction(args: argparse.Namespace) -> Any:
    """The method of `--method`, checked against the model's configuration; None without one."""
    if args.method is None:
        if args.tokens is not None or args.method_arg:
            raise ValueError("--tokens and --method-arg say how a method works; give --method too")
        return None
    from visiondrop.adapters import geometry_of
    from visiondrop.methods import build_method

    wrong = [pair for pair in args.method_arg if "=" not in pair]
    if wrong:
        raise ValueError(f"--method-arg {wrong[0]!r} is not of the form NAME=VALUE")
    settings = dict(pair.partition("=")[::2] for pair in args.method_arg)
    geometry = geometry_of(load_config(args.model_path, args.model_base))
    return build_method(
        args.method, args.tokens, geometry=geometry, args=settings, budget=args.budget
    )


def eval_model(args: argparse.Namespace) -> str:
    """Answers `args.query` about `args.image_file`, prints the answer and returns it."""
    if args.temperature < 0:
        raise ValueError(f"--temperature is {args.temperature}; must be 0 (greedy) or more")
    images = [load_image(file) for file in args.image_file.split(args.sep)]
    name = get_model_name_from_path(args.model_path)
    conversation = get_template(args.conv_mode or infer_template(name))
    # A bad query or budget fails before the model is loaded.
    build_question(args.query, len(images), False)
    method = build_reduction(args)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        args.model_path, args.model_base, name, device=args.device
    )
    start_end = bool(getattr(model.config, "mm_use_im_start_end", False))
    question = build_question(args.query, len(images), start_end)
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")
    sampling: dict[str, Any] = {"do_sample": False}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature}
        if args.top_p is not None:
            sampling["top_p"] = args.top_p
    reduction: Any = contextlib.nullcontext()
    if method is not None:
        asked = raw_question(args.query.replace(IMAGE_PLACEHOLDER, ""))
        reduction = method(model, questions=[asked] * len(images))
    with torch.inference_mode(), reduction:
        output = model.generate(
            ids[None],
            images=process_images(images, image_processor, model.config),
            image_sizes=[image.size for image in images],
            num_beams=args.num_beams,
            max_new_tokens=args.max_new_tokens,
            **sampling,
        )
    answer = str(tokenizer.batch_decode(output, skip_special_tokens=True)[0]).strip()
    print(answer)
    return answer


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llava.eval.run_llava", description=__doc__)
    parser.add_argument("--model-path", required=True, help="a folder or a hub id")
    parser.add_argument("--model-base", default=None, help="for LoRA adapters and projectors")
    parser.add_argument("--image-file", required=True, help="files or addresses, parted by --sep")
    parser.add_argument("--query", required=True)
    parser.add_argument("--conv-mode", default=None, help="a template of llava.conversation")
    parser.add_argument("--sep", default=",")
    parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy")
    parser.add_argument("--top_p", "--top-p", type=float, default=None)
    parser.add_argument("--num_beams", "--num-beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=512)
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1; all GPUs by default")
    parser.add_argument("--method", default=None, help="NAME of visiondrop.methods, NAME@PRESET")
    parser.add_argument("--tokens", type=int, default=None, help="visual tokens to keep on average")
    add_budget_flag(parser)
    parser.add_argument("--method-arg", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args(argv)
    try:
        eval_model(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
