"""Which runs a command asks for: methods x budgets x seeds, checked before any compute."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llava.eval.cli import parse_json_flag, parse_method_args
from llava.eval.errors import EvalError
from llava.eval.oracle import Oracle, Regions
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
    if name not in METHODS and name != Oracle.name:
        raise EvalError(f"unknown method {name!r}; known are {', '.join(sorted(METHODS))}")


def field_names(method: type[Reducer]) -> set[str]:
    """A method's hyper-parameters; one that draws at random has a "seed"."""
    return {f.name for f in fields(method)}  # type: ignore[arg-type]


def _check_args(names: Sequence[str], method_args: dict[str, str]) -> None:
    known = {name: field_names(METHODS[name]) for name in names if name in METHODS}
    for argument in method_args:
        if not any(argument in found for found in known.values()):
            has = "; ".join(f"{n}: {', '.join(sorted(f)) or 'none'}" for n, f in known.items())
            raise EvalError(f"no method here has an argument {argument!r}; arguments of {has}")


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
    regions: Callable[[], Regions] | None = None,
) -> list[PlannedRun]:
    """Every method at every budget, seeded methods with every seed; the unpruned model once.

    Args:
        method_args: for the methods that have such a field; one that none has is an error.
        regions: what the oracle knows of the samples; None where nothing is known.
    """
    if list(names) == ["all"]:
        names = sorted(METHODS, key=lambda name: (name != Full.name, name))
    for name in names:
        check_name(name)
    _check_args(names, method_args or {})
    if not tokens and any(name != Full.name for name in names):
        raise EvalError("no token budget given; use --tokens or TOKENS, as in TOKENS=64")

    def one(method: Reducer, budget: int, suffix: str = "", seed: int | None = None) -> PlannedRun:
        first = seeds[0] if seed is None else seed
        cell = (first,) if seed is None else tuple(dict.fromkeys(seeds))
        return PlannedRun(method, budget, ledger_of(method, geometry), suffix, first, cell)

    runs: list[PlannedRun] = []
    for name in dict.fromkeys(names):
        if name == Full.name:
            runs.append(
                one(make_method(name, geometry.num_patches, geometry), geometry.num_patches)
            )
        elif name == Oracle.name:
            if regions is None:
                raise EvalError("the method 'oracle' works on the bundled TextVQA data only")
            known = regions()
            runs += [one(Oracle(budget, known), budget) for budget in dict.fromkeys(tokens)]
        else:
            own = {k: v for k, v in (method_args or {}).items() if k in field_names(METHODS[name])}
            suffix = "".join(f"+{k}={v}" for k, v in sorted(own.items()))
            for budget in dict.fromkeys(tokens):
                if "seed" in own or "seed" not in field_names(METHODS[name]):
                    runs.append(one(make_method(name, budget, geometry, own), budget, suffix))
                    continue
                for seed in dict.fromkeys(seeds):
                    method = make_method(name, budget, geometry, {**own, "seed": str(seed)})
                    runs.append(one(method, budget, suffix, seed))
    return runs
