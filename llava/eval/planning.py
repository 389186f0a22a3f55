"""Which runs a command asks for: methods x budgets x seeds, checked before any compute."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from llava.eval.cli import parse_json_flag, parse_method_args
from llava.eval.errors import EvalError
from visiondrop import Full, Reducer, VisionDrop
from visiondrop.adapters import Geometry, geometry_of
from visiondrop.methods import METHODS, build_method


@dataclass(frozen=True)
class PlannedRun:
    """One method at one budget, with one seed.

    Attributes:
        tokens: the budget asked for (the number of patches for the unpruned model).
        suffix: what sets its folder apart beside ``<method>-<tokens>`` ("" in general).
        seed: of a seeded method and of sampling.
        seeds: all seeds that belong to the same cell of the table.
    """

    method: Reducer
    tokens: int
    ledger: tuple[int, ...]
    suffix: str = ""
    seed: int = 0
    seeds: tuple[int, ...] = (0,)

    @property
    def label(self) -> str:
        return self.method.name + self.suffix

    @property
    def cell(self) -> str:
        """The folder of the cell: ``<method>-<tokens>``."""
        return f"{self.method.name}-{self.tokens}{self.suffix}"

    def folder(self, out: Path) -> Path:
        """Where its answers go; several seeds lie in folders of their own."""
        folder = out / self.cell
        return folder / f"seed-{self.seed}" if len(self.seeds) > 1 else folder


def geometry_of_config(config: Any) -> Geometry:
    try:
        return geometry_of(config)
    except (TypeError, ValueError) as error:
        raise EvalError(str(error)) from None


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


def check_name(name: str) -> None:
    if name not in METHODS:
        raise EvalError(f"unknown method {name!r}; known are {', '.join(sorted(METHODS))}")


def is_seeded(method: Any) -> bool:
    """Whether a method draws at random, which shows in its having a seed."""
    return is_dataclass(method) and any(f.name == "seed" for f in fields(method))


def make_method(
    name: str, tokens: int, geometry: Geometry, method_args: dict[str, str] | None = None
) -> Reducer:
    """The method of that name at a budget; EvalError for what cannot be met."""
    check_name(name)
    try:
        if name == Full.name and not method_args:
            return Full()
        return build_method(name, tokens, geometry=geometry, args=method_args or {})
    except ValueError as error:
        raise EvalError(str(error)) from None


def ledger_of(method: Reducer, geometry: Geometry) -> tuple[int, ...]:
    """Visual tokens that each decoder layer sees by plan; EvalError for what cannot be met."""
    try:
        method.check(geometry)
        return tuple(method.ledger(geometry.num_layers, geometry.num_patches, geometry.has_cls))
    except ValueError as error:
        raise EvalError(str(error)) from None


def nominal_tokens(method: Reducer, ledger: Sequence[int]) -> int:
    """The budget to name a method by that was given stage by stage: its rounded mean."""
    return round(sum(ledger) / len(ledger))


def plan_one(args: argparse.Namespace, geometry: Geometry) -> PlannedRun:
    """The one run of ``--method`` and ``--tokens``, or of the released flags."""
    if uses_released_flags(args):
        if args.tokens is not None or (args.method or VisionDrop.name) != VisionDrop.name:
            raise EvalError(
                "--layer_list, --image_token_list, --dominant and --contextual set VisionDrop's "
                "stages one by one; leave out --tokens and any other --method"
            )
        if args.method_arg:
            raise EvalError("--method-arg goes with --method and --tokens, not with stages")
        method: Reducer = method_from_released_flags(args)
        ledger = ledger_of(method, geometry)
        return PlannedRun(
            method, nominal_tokens(method, ledger), ledger, seed=args.seed, seeds=(args.seed,)
        )
    name = args.method or (VisionDrop.name if args.tokens is not None else Full.name)
    runs = plan_runs(
        [name],
        [args.tokens] if args.tokens is not None else [],
        [args.seed],
        geometry,
        parse_method_args(args.method_arg),
    )
    return runs[0]


def plan_runs(
    names: Sequence[str],
    tokens: Sequence[int],
    seeds: Sequence[int],
    geometry: Geometry,
    method_args: dict[str, str] | None = None,
) -> list[PlannedRun]:
    """Every method at every budget, seeded methods with every seed; the unpruned model once.

    ``method_args`` go to every method but the unpruned one.
    """
    if list(names) == ["all"]:
        names = sorted(METHODS, key=lambda name: (name != Full.name, name))
    for name in names:
        check_name(name)
    if not tokens and any(name != Full.name for name in names):
        raise EvalError("no token budget given; use --tokens or TOKENS, as in TOKENS=64")
    runs: list[PlannedRun] = []
    for name in dict.fromkeys(names):
        if name == Full.name:
            full = make_method(name, geometry.num_patches, geometry)
            runs.append(
                PlannedRun(
                    full,
                    geometry.num_patches,
                    ledger_of(full, geometry),
                    seed=seeds[0],
                    seeds=(seeds[0],),
                )
            )
            continue
        suffix = "".join(f"+{k}={v}" for k, v in sorted((method_args or {}).items()))
        for budget in dict.fromkeys(tokens):
            method = make_method(name, budget, geometry, method_args)
            seeded = is_seeded(method) and "seed" not in (method_args or {})
            wanted = tuple(dict.fromkeys(seeds)) if seeded else (seeds[0],)
            for seed in wanted:
                extra = {**(method_args or {}), **({"seed": str(seed)} if seeded else {})}
                method = make_method(name, budget, geometry, extra)
                ledger = ledger_of(method, geometry)
                runs.append(PlannedRun(method, budget, ledger, suffix, seed, wanted))
    return runs
