"""All methods by name.

A new method is one file here, one line in `METHODS` and one line in the test matrix.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from torch import nn

from visiondrop.adapters import Geometry, geometry_of
from visiondrop.methods.cdpruner import CDPruner
from visiondrop.methods.controls import Full, Random, Uniform
from visiondrop.methods.dart import DART
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.dtd import DTD
from visiondrop.methods.fastervlm import FasterVLM
from visiondrop.methods.fastv import FastV
from visiondrop.methods.framewise import FrameWise
from visiondrop.methods.globalcom2 import GlobalCom2
from visiondrop.methods.hired import HiRED
from visiondrop.methods.holov import HoloV
from visiondrop.methods.pool import Pool
from visiondrop.methods.prumerge import PruMerge
from visiondrop.methods.prumerge_plus import PruMergePlus
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.region import Region
from visiondrop.methods.scope import Scope
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.sparsevlm_plus import SparseVLMPlus
from visiondrop.methods.tome import ToMe
from visiondrop.methods.trim import Trim
from visiondrop.methods.vflowopt import VFlowOpt
from visiondrop.methods.visiondrop import VisionDrop
from visiondrop.methods.visiondrop_div import VisionDropDiv
from visiondrop.methods.visionzip import VisionZip
from visiondrop.methods.vispruner import VisPruner
from visiondrop.methods.vista import Vista
from visiondrop.methods.vmtc_cmai import VmtcCmai
from visiondrop.methods.yopo import Yopo
from visiondrop.pictures import Pictures
from visiondrop.reducer import Reducer
from visiondrop.tiles import Tiles

__all__ = ["METHODS", "Full", "Random", "Uniform", "VisionDrop", "build_method"]

# One line per method.
METHODS: dict[str, type[Reducer]] = {
    cls.name: cls
    for cls in (
        VisionDrop,
        VisionDropDiv,
        VisionZip,
        FasterVLM,
        VisPruner,
        PruMerge,
        PruMergePlus,
        HiRED,
        GlobalCom2,
        Yopo,
        ToMe,
        DivPrune,
        CDPruner,
        Trim,
        Scope,
        HoloV,
        FastV,
        SparseVLM,
        SparseVLMPlus,
        PyramidDrop,
        DART,
        VmtcCmai,
        VFlowOpt,
        Pool,
        DTD,
        FrameWise,
        Region,
        Vista,
        Random,
        Uniform,
        Full,
    )
}

Budgeting = typing.Literal["average", "nominal"]
"""What a number of tokens means: the true mean over decoder layers, or the papers' count."""


def build_method(
    name: str,
    tokens: float | None = None,
    *,
    model: nn.Module | Any | None = None,
    geometry: Geometry | None = None,
    args: Mapping[str, str] | None = None,
    budget: Budgeting = "average",
) -> Reducer:
    """A method from what was typed on a command line, checked before any compute.

    Args:
        name: a name of `METHODS`, or "name@preset" with one of its `presets`.
        tokens: the number of visual tokens; None takes the method's default.
        model: the model or its configuration, for its sizes; or give `geometry`.
        args: fields of the method by name, as typed; lists and numbers are read as JSON, never
            evaluated. "tiles.budget" and the like are options of `Reducer.on_tiles`,
            "pictures.budget" of `Reducer.on_pictures`.
        budget: what `tokens` means: the true mean over decoder layers ("average"), or what the
            method's paper calls its budget ("nominal").

    Raises `ValueError` naming what is wrong and what is possible.
    """
    name, _, preset = name.partition("@")
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    cls = METHODS[name]
    if geometry is None:
        if model is None:
            raise ValueError("give the model or its geometry: budgets depend on its sizes")
        geometry = geometry_of(model)
    if budget not in typing.get_args(Budgeting):
        raise ValueError(f"budget={budget!r}; possible: 'average', 'nominal'")
    args = dict(args or {})
    tiles, pictures = _options("tiles", Tiles, args), _options("pictures", Pictures, args)
    fields = parse_fields(cls, args)
    staged = {"encoder", "llm"} & set(fields)
    method: Reducer
    if preset:
        if preset not in cls.presets:
            known = ", ".join(f"{name}@{p}" for p in cls.presets) or "none"
            raise ValueError(f"{name} has no preset {preset!r}; its presets: {known}")
        method = cls(**{**cls.presets[preset], **fields})
    elif tokens is None or not cls.budgeted():
        method = cls(**fields)
    elif staged:
        raise ValueError(
            f"{name}: --tokens {tokens} and the stages themselves were both given; give one of them"
        )
    else:
        if geometry.frames > 1:
            fields = {**cls.video_options, **fields}
        make = cls.from_average if budget == "average" else cls.from_nominal
        method = make(
            _whole(tokens),
            num_layers=geometry.num_layers,
            num_patches=geometry.num_patches,
            has_cls=geometry.has_cls,
            **fields,
        )
    method = method.on_tiles(**tiles) if tiles else method
    method = method.on_pictures(**pictures) if pictures else method
    method.check(geometry)
    return method


def _options(group: str, kind: type, args: dict[str, str]) -> dict[str, str]:
    """Those of `args` that are named "group.field", taken out of them."""
    own = {key: args.pop(key) for key in list(args) if key.startswith(f"{group}.")}
    known = [f"{group}.{f.name}" for f in dataclasses.fields(kind)]
    if unknown := sorted(set(own) - set(known)):
        raise ValueError(f"unknown argument {unknown[0]}; there are: {', '.join(known)}")
    return {key.partition(".")[2]: value for key, value in own.items()}


def _whole(tokens: float) -> float | int:
    return int(tokens) if float(tokens).is_integer() else tokens


def parse_fields(cls: type[Reducer], args: Mapping[str, str]) -> dict[str, Any]:
    """Command-line strings to the types of the method's fields.

    Raises `ValueError` on an unknown field or a value outside its choices.
    """
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    out: dict[str, Any] = {}
    for key, text in args.items():
        if key not in known:
            raise ValueError(
                f"{cls.name} has no argument {key!r}; it has: {', '.join(known) or 'none'}"
            )
        hint = hints[key]
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        value: Any = text
        if not choices and hint is not str:
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                if not _fits(text, hint):
                    raise ValueError(
                        f"{cls.name}: {key}={text!r} is not a number, list or mapping in JSON"
                    ) from None
        if choices and value not in choices:
            raise ValueError(
                f"{cls.name}: {key}={text!r}; possible: {', '.join(map(repr, choices))}"
            )
        if not choices and not _fits(value, hint):
            kind = getattr(hint, "__name__", str(hint))
            raise ValueError(f"{cls.name}: {key}={text!r} must be of type {kind}")
        out[key] = value
    return out


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a field's type; containers are the method's to check."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    return not isinstance(value, str)
