"""Flags that the evaluation commands share, and what they mean.

A flag that is not given falls back to an environment variable of the scripts (MODEL, TOKENS, ...),
then to the default.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from llava.eval.engines import add_engine_flag, check_engine
from llava.eval.errors import EvalError
from llava.eval.loading import ModelChoice, default_aspect_ratio
from llava.eval.settings import RunSettings, file_digest, fingerprint
from llava.mm_utils import ASPECT_RATIOS


def env(name: str, default: Any = None, kind: Callable[[str], Any] = str) -> Any:
    """The environment variable's value; the default where it is unset or empty."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        return kind(text)
    except (ValueError, EvalError):
        wanted = getattr(kind, "__name__", "value").replace("int", "whole number")
        raise EvalError(f"{name}={text!r} is not a {wanted}") from None


def parse_limit(text: str) -> int | None:
    """A number of questions, or "all"."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise EvalError(f"limit must be a whole number or 'all', got {text!r}") from None


def add_model_flags(parser: argparse.ArgumentParser, default_model: str | None = None) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model-path", default=env("MODEL", default_model), help="folder or hub id")
    group.add_argument("--model-base", default=env("MODEL_BASE"), help="for LoRA and projectors")
    group.add_argument(
        "--dtype",
        default=env("DTYPE", "auto"),
        help="float32 (default on a CPU), bfloat16, float16 (default on a GPU)",
    )
    group.add_argument(
        "--attn-implementation", default=env("ATTN", "sdpa"), help="sdpa, eager, flash_attention_2"
    )
    group.add_argument("--device", default=env("DEVICE", "auto"), help="cpu, cuda, cuda:1, ...")
    group.add_argument("--load-8bit", action="store_true", help="needs bitsandbytes; also on a CPU")
    group.add_argument("--load-4bit", action="store_true", help="needs bitsandbytes")


def add_answer_flags(parser: argparse.ArgumentParser, batch_size: int | None = None) -> None:
    group = parser.add_argument_group("answering")
    group.add_argument("--conv-mode", default=env("CONV_MODE", "vicuna_v1"))
    group.add_argument(
        "--image-aspect-ratio",
        default=env("IMAGE_ASPECT_RATIO"),
        help="how pictures are prepared; the checkpoint's own way by default",
    )
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument("--top_p", "--top-p", type=float, default=None)
    group.add_argument("--num_beams", "--num-beams", type=int, default=1)
    group.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=128)
    group.add_argument("--batch-size", type=int, default=env("BATCH", batch_size, int))
    group.add_argument(
        "--workers",
        type=int,
        default=env("WORKERS", None, int),
        help="processes that prepare pictures; 0 prepares them in this one",
    )
    group.add_argument(
        "--image-cache",
        choices=("on", "off"),
        default=env("IMAGE_CACHE", "on"),
        help="run what the questions of one picture share once, where the method allows it",
    )
    add_engine_flag(group)
    group.add_argument(
        "--blank-picture",
        action="store_true",
        help="replace every picture by a uniform grey one, as a control",
    )
    group.add_argument("--wandb", action="store_true", help="log to Weights & Biases")


def add_released_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the released VisionDrop code; their values are JSON."""
    group = parser.add_argument_group("VisionDrop's stages one by one, in place of a token budget")
    group.add_argument("--layer_list", "--layer-list", help="as in [8,16,24]")
    group.add_argument(
        "--image_token_list",
        "--image-token-list",
        help="(dominant, contextual) at each layer, as in [[30,5],[22,4],[16,3]]",
    )
    group.add_argument("--dominant", type=int, help="of the encoder stage, CLS included, as in 42")
    group.add_argument("--contextual", type=int, help="of the encoder stage, as in 6")


def add_budget_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        choices=("average", "nominal"),
        default=env("BUDGET", "average"),
        help="what --tokens means: the true mean over decoder layers, or the papers' own count",
    )


def default_workers(device: str) -> int:
    cores = len(os.sched_getaffinity(0))
    return min(4, cores - 1) if device.startswith("cuda") else min(1, cores - 1)


def model_choice(args: argparse.Namespace) -> ModelChoice:
    if not args.model_path:
        raise EvalError("no model given; use --model-path or MODEL")
    return ModelChoice(
        path=os.path.expanduser(args.model_path),
        base=args.model_base,
        dtype=args.dtype,
        device=args.device,
        attn_implementation=args.attn_implementation,
        load_8bit=args.load_8bit,
        load_4bit=args.load_4bit,
        sharded_by=args.sharded_by if getattr(args, "tensor_parallel", 1) > 1 else None,
    )


def run_settings(
    args: argparse.Namespace,
    choice: ModelChoice,
    config: Any,
    questions: str,
    method: Mapping[str, Any],
    seed: int = 0,
) -> RunSettings:
    """The settings of one run from its flags; ``config`` is the checkpoint's configuration."""
    if args.temperature < 0 or args.num_beams < 1 or args.max_new_tokens < 1:
        raise EvalError(
            f"need temperature >= 0, num_beams >= 1 and max_new_tokens >= 1; got "
            f"{args.temperature}, {args.num_beams} and {args.max_new_tokens}"
        )
    check_engine(args, choice.device_name)
    aspect_ratio = args.image_aspect_ratio or default_aspect_ratio(config)
    if aspect_ratio not in ASPECT_RATIOS:
        raise EvalError(
            f"unknown image aspect ratio {aspect_ratio!r}; choose one of {', '.join(ASPECT_RATIOS)}"
        )
    if aspect_ratio == "anyres" and not getattr(config, "image_grid_pinpoints", None):
        raise EvalError(
            f"image aspect ratio 'anyres' needs a LLaVA-NeXT checkpoint, and {choice.name} is "
            "none; use pad or square"
        )
    return RunSettings(
        model=choice.name,
        model_fingerprint=fingerprint(choice.path),
        model_base=choice.base,
        questions=file_digest(questions),
        method=method,
        batch_size=args.batch_size,
        dtype=choice.dtype_name,
        attn_implementation=choice.attn_implementation,
        device=choice.device_name.split(":")[0],
        conv_mode=args.conv_mode,
        image_aspect_ratio=aspect_ratio,
        temperature=args.temperature,
        top_p=args.top_p,
        num_beams=args.num_beams,
        max_new_tokens=args.max_new_tokens,
        seed=seed,
        blank_picture=args.blank_picture,
        quantisation=choice.quantisation,
    )


def parse_json_flag(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise EvalError(
            f"{name} {text!r} is not valid JSON ({error}); write it as [8,16,24]"
        ) from None


def parse_method_args(pairs: list[str] | None) -> dict[str, str]:
    """``["merge=mean", ...]`` as a dict; the values stay strings, checked against the method.

    ``@FILE`` stands for all fields of the method in a json file: one that a search found, or a
    result's.
    """
    out: dict[str, str] = {}
    for pair in [one for given in pairs or [] for one in _expand_file(given)]:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise EvalError(f"method argument {pair!r} is not of the form name=value")
        if name in out:
            raise EvalError(f"method argument {name!r} is given twice")
        out[name] = value
    return out


def _expand_file(pair: str) -> list[str]:
    """``@FILE`` as ``name=value`` for each field of the method in it; anything else as it is."""
    if not pair.startswith("@"):
        return [pair]
    try:
        with open(pair[1:], encoding="utf-8") as stream:
            data = json.load(stream)
        method = data.get("method_config") or data["method"]
        fields = {name: value for name, value in method.items() if name != "name"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EvalError(
            f"method argument {pair!r}: no method can be read from that file ({error}); it must be "
            'json like {"method": {"name": ..., field: value, ...}}'
        ) from None
    return [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in fields.items()]
