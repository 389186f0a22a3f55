"""Which runs a command asks for: methods x budgets x seeds, checked before any compute."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from llava.eval.cli import parse_method_args
from llava.eval.errors import EvalError
from llava.eval.oracle import Oracle, Regions
from llava.eval.released_flags import method_from_released_flags, uses_released_flags
from llava.eval.settings import digest_of_json
from visiondrop import Full, Reducer, VisionDrop
from visiondrop.adapters import Geometry, geometry_of
from visiondrop.methods import METHODS, build_method
from visiondrop.pictures import Pictures
from visiondrop.tiles import Tiles

Budget = Literal["average", "nominal"]
"""What a number of tokens means: the true mean over decoder layers, or the papers' own count."""


LONGEST_SUFFIX = 100


@dataclass(frozen=True)
class PlannedRun:
    """One method at one budget, with one seed.

    Attributes:
        tokens: the budget asked for (what the plan gives, rounded, for a method without one).
        suffix: what sets its folder apart beside ``<method>-<tokens>`` ("" in general).
        seed: of a seeded method and of sampling.
        seeds: all seeds that belong to the same cell of the table.
        budget: what ``tokens`` means; None for a method that was given none.
        preset: name of the preset that it is, if it is one.
        moved: the decoder layers before which it drops, where the budget forced its first drop
            forward.
        optional: whether it came by ``all``: then it may turn out not to run here.
    """

    method: Reducer
    tokens: int
    ledger: tuple[int, ...]
    suffix: str = ""
    seed: int = 0
    seeds: tuple[int, ...] = (0,)
    budget: Budget | None = "average"
    preset: str = ""
    moved: tuple[int, ...] = ()
    optional: bool = False

    @property
    def name(self) -> str:
        """The method's name, with its preset: ``fastv@R75``."""
        return f"{self.method.name}@{self.preset}" if self.preset else self.method.name

    @property
    def label(self) -> str:
        return self.name + self.suffix

    @property
    def cell(self) -> str:
        """The folder of the cell: ``<method>-<tokens>``."""
        return f"{self.name}-{self.tokens}{self.suffix}"

    def folder(self, out: Path) -> Path:
        """Where its answers go; several seeds lie in folders of their own."""
        folder = out / self.cell
        return folder / f"seed-{self.seed}" if len(self.seeds) > 1 else folder


@dataclass(frozen=True)
class Refusal:
    """A method of ``all`` that cannot run here, or not at this budget.

    Attributes:
        tokens: the budget asked for; None for a method without one.
        reason: why not, in one line.
    """

    name: str
    tokens: int | None
    reason: str

    @property
    def cell(self) -> str:
        """What the table says in place of a score."""
        found = re.search(r"not reachable, least is [\d.]*\d", self.reason)
        return found.group() if found else "cannot run here"


def geometry_of_config(config: Any) -> Geometry:
    try:
        return geometry_of(config)
    except (TypeError, ValueError) as error:
        raise EvalError(str(error)) from None


def check_name(name: str) -> None:
    """EvalError for a name, with or without ``@preset``, that is none."""
    method, at, preset = name.partition("@")
    if method not in METHODS and method != Oracle.name:
        raise EvalError(f"unknown method {method!r}; known are {', '.join(sorted(METHODS))}")
    known = METHODS[method].presets if method in METHODS else {}
    if at and preset not in known:
        raise EvalError(f"{method} has no preset {preset!r}; it has: {', '.join(known) or 'none'}")


def field_names(method: type[Reducer]) -> set[str]:
    """A method's hyper-parameters; one that draws at random has a "seed" (`Reducer.draws`: at times
    only). The options of `Reducer.on_pictures` and, on any-resolution pictures, `on_tiles` are
    theirs, too.
    """
    own = {f.name for f in fields(method)}  # type: ignore[arg-type]
    own |= {f"pictures.{f.name}" for f in fields(Pictures)}
    return own | {f"tiles.{f.name}" for f in fields(Tiles)} if method.tiled else own


def _check_args(names: Sequence[str], method_args: dict[str, str]) -> None:
    given = {name.partition("@")[0] for name in names}
    known = {name: field_names(METHODS[name]) for name in sorted(given) if name in METHODS}
    for argument in method_args:
        if not any(argument in found for found in known.values()):
            has = "; ".join(f"{n}: {', '.join(sorted(f)) or 'none'}" for n, f in known.items())
            raise EvalError(f"no method here has an argument {argument!r}; arguments of {has}")


def make_method(
    name: str,
    tokens: int | None,
    geometry: Geometry,
    method_args: Mapping[str, str] | None = None,
    budget: Budget = "average",
) -> Reducer:
    """The method of that name (``name@preset``) at a budget; EvalError for what cannot be met."""
    check_name(name)
    try:
        return build_method(name, tokens, geometry=geometry, args=method_args or {}, budget=budget)
    except (TypeError, ValueError) as error:
        raise EvalError(str(error)) from None


def ledger_of(method: Reducer, geometry: Geometry) -> tuple[int, ...]:
    """Visual tokens that each decoder layer sees by plan; EvalError for what cannot be met."""
    try:
        method.check(geometry)
        return tuple(method.ledger(geometry.num_layers, geometry.num_patches, geometry.has_cls))
    except ValueError as error:
        raise EvalError(str(error)) from None


def layers_moved(
    method: Reducer, geometry: Geometry, method_args: Mapping[str, str], budget: Budget
) -> tuple[int, ...]:
    """The layers before which a method drops, where a roomier budget would drop elsewhere.

    A method that leaves f of L layers full cannot go below N f / L; for less, its first drop moves
    forward.  Seven eighths of all patches do not force it.
    """
    layers = method.llm_layers()
    if not layers or not type(method).budgeted():
        return ()
    try:
        roomy = geometry.num_patches * 7 // 8
        usual = make_method(method.name, roomy, geometry, method_args, budget)
    except EvalError:
        return ()
    return layers if layers[:1] != usual.llm_layers()[:1] else ()


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
        budget=args.budget,
    )
    return runs[0]


def plan_runs(
    names: Sequence[str],
    tokens: Sequence[int],
    seeds: Sequence[int],
    geometry: Geometry,
    method_args: dict[str, str] | None = None,
    regions: Callable[[], Regions] | None = None,
    budget: Budget = "average",
    refused: list[Refusal] | None = None,
    lacks: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> list[PlannedRun]:
    """Every method at every budget, seeded methods with every seed, those without budget once.

    Args:
        names: methods, ``method@preset``, and "all": every method of the registry, of which one
            that cannot run here is no error but goes to ``refused``.
        method_args: for the methods that have such a field; one that none has is an error.
        regions: what the oracle knows of the samples; None where nothing is known.
        budget: what ``tokens`` means.
        lacks: of what methods may need, what the data has not, with a sentence why.
        defaults: fields that methods take where they have them and ``method_args`` says nothing.
    """
    everything = sorted(METHODS, key=lambda name: name != Full.name)
    wanted = {
        n: n not in names for name in names for n in (everything if name == "all" else [name])
    }
    for name in wanted:
        check_name(name)
    _check_args(list(wanted), method_args or {})
    if not tokens and any(_takes_budget(name) for name in wanted):
        raise EvalError("no token budget given; use --tokens or TOKENS, as in TOKENS=64")
    planner = _Planner(
        list(dict.fromkeys(seeds)), geometry, method_args or {}, budget, lacks or {}, defaults or {}
    )
    runs: list[PlannedRun] = []
    for name, optional in wanted.items():
        if name == Oracle.name:
            if regions is None:
                raise EvalError("the method 'oracle' works on the bundled TextVQA data only")
            known = regions()
            runs += [planner.run(Oracle(n, known), n) for n in dict.fromkeys(tokens)]
            continue
        for asked in dict.fromkeys(tokens) if _takes_budget(name) else (None,):
            try:
                runs += planner.cell(name, asked, optional)
            except EvalError as error:
                if not optional or refused is None:
                    raise
                refused.append(Refusal(name, asked, str(error)))
    return runs


def args_suffix(args: Mapping[str, str]) -> str:
    """What a cell's name says of fields that were set; many of them by a hash."""
    text = "".join(f"+{k}={v.replace('/', '_')}" for k, v in sorted(args.items()))
    return text if len(text) <= LONGEST_SUFFIX else f"+args={digest_of_json(dict(args))[:8]}"


def _takes_budget(name: str) -> bool:
    """Presets hold their own budget, and some methods have none."""
    return name == Oracle.name or ("@" not in name and METHODS[name].budgeted())


@dataclass(frozen=True)
class _Planner:
    """What all runs of a command share."""

    seeds: Sequence[int]
    geometry: Geometry
    method_args: Mapping[str, str]
    budget: Budget
    lacks: Mapping[str, str]
    defaults: Mapping[str, str]

    def run(self, method: Reducer, tokens: int | None, seed: int | None = None, **more: Any):
        """One run; ``seed`` where the method draws."""
        ledger = ledger_of(method, self.geometry)
        return PlannedRun(
            method,
            nominal_tokens(method, ledger) if tokens is None else tokens,
            ledger,
            seed=self.seeds[0] if seed is None else seed,
            seeds=(self.seeds[0],) if seed is None else tuple(self.seeds),
            budget=None if tokens is None else self.budget,
            **more,
        )

    def _idle(self, name: str) -> bool:
        """Whether a method that reduces would reduce nothing without being told what."""
        method = make_method(name, None, self.geometry)
        full = [self.geometry.num_patches] * self.geometry.num_layers
        reduces = method.before_llm or method.inside_llm
        return reduces and list(ledger_of(method, self.geometry)) == full

    def cell(self, name: str, tokens: int | None, optional: bool) -> list[PlannedRun]:
        """The runs of one cell of the table: one, or one a seed. EvalError where it cannot be."""
        method_name, _, preset = name.partition("@")
        cls = METHODS[method_name]
        for need in cls.needs:
            if need in self.lacks:
                raise EvalError(f"{method_name} needs {need}; {self.lacks[need]}")
        own = {k: v for k, v in self.method_args.items() if k in field_names(cls)}
        # Of a method that compares frames the ledger is an upper bound: the frames decide.
        known = "frames" not in cls.needs
        if optional and tokens is None and not own and known and self._idle(name):
            raise EvalError(
                f"{name} keeps every token as it is by default; set its fields with --method-arg, "
                "or in Python"
            )
        defaults = {k: v for k, v in self.defaults.items() if k in field_names(cls)}
        draws = make_method(name, tokens, self.geometry, defaults | own, self.budget).draws
        if not draws:  # a seed that decides nothing is no setting
            own.pop("seed", None)
        suffix = args_suffix(own)
        own = defaults | own
        if tokens is not None and self.budget != "average":
            suffix += f"+budget={self.budget}"
        drawn = draws and "seed" in field_names(cls) and "seed" not in own
        runs = []
        for seed in self.seeds if drawn else (None,):
            args = own if seed is None else {**own, "seed": str(seed)}
            method = make_method(name, tokens, self.geometry, args, self.budget)
            moved = () if preset else layers_moved(method, self.geometry, args, self.budget)
            runs.append(
                self.run(
                    method,
                    tokens,
                    seed,
                    suffix=suffix,
                    preset=preset,
                    moved=moved,
                    optional=optional,
                )
            )
        return runs
