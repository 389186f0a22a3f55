"""The flags of the released VisionDrop code, which set its stages one by one."""

from __future__ import annotations

import argparse
from typing import Any

from llava.eval.cli import parse_json_flag
from llava.eval.errors import EvalError
from visiondrop import VisionDrop


def uses_released_flags(args: argparse.Namespace) -> bool:
    return any(
        getattr(args, name, None) is not None
        for name in ("layer_list", "image_token_list", "dominant", "contextual")
    )


def method_from_released_flags(args: argparse.Namespace) -> VisionDrop:
    """``--layer_list [8,16,24] --image_token_list [[30,5],...] --dominant 42 --contextual 6``."""
    layers = parse_json_flag("--layer_list", args.layer_list or "[]")
    budgets = parse_json_flag("--image_token_list", args.image_token_list or "[]")
    if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
        raise EvalError(f"--layer_list {args.layer_list} must be a list of layers, as in [8,16,24]")
    if not isinstance(budgets, list) or not all(_is_pair(pair) for pair in budgets):
        raise EvalError(
            f"--image_token_list {args.image_token_list} must be a list of pairs (dominant, "
            "contextual), as in [[30,5],[22,4],[16,3]]"
        )
    if len(layers) != len(budgets):
        raise EvalError(
            f"--layer_list names {len(layers)} layers and --image_token_list {len(budgets)} "
            "budgets; give one budget a layer"
        )
    if len(set(layers)) != len(layers):
        raise EvalError(f"--layer_list {args.layer_list} names a layer twice")
    if args.contextual is not None and args.dominant is None:
        raise EvalError("--contextual needs --dominant, as in --dominant 42 --contextual 6")
    encoder = None if args.dominant is None else (args.dominant, args.contextual or 0)
    llm = {layer: tuple(pair) for layer, pair in zip(layers, budgets)}
    try:
        return VisionDrop(encoder=encoder, llm=llm)
    except ValueError as error:
        raise EvalError(str(error)) from None


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value)
