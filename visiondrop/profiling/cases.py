"""What is profiled: every method that was asked for at every budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visiondrop.adapters import geometry_of
from visiondrop.methods import METHODS, VisionDrop, build_method
from visiondrop.profiling.random_clip import random_clip
from visiondrop.reducer import Reducer
from visiondrop.schedule import split_total
from visiondrop.text_encoder import NEED

__all__ = ["STOCK", "Case", "cases_of", "first_words", "key_of", "numbers"]

STOCK = "stock"
"""The model without anything of ours."""
SHALLOW = 4
ENCODER_ALONE = (
    "{} decoder layers have no room for VisionDrop's LLM stages: its encoder stage alone"
)


@dataclass
class Case:
    """A row to be: the method, or why there is none; in what the method is not itself."""

    name: str
    tokens: float | None
    method: Reducer | None = None
    reason: str = ""
    remark: str = ""


def cases_of(
    methods: str, tokens: str, method_args: Sequence[str], config: Any, folder: Path
) -> list[Case]:
    """Every method at every budget; one that cannot be built is told, alone it is refused.

    Args:
        methods, tokens, method_args: as typed, see `python -m visiondrop.profile`.
        config: of the model; folder: where a text encoder with random weights may lie.

    Raises `ValueError` on what there is not.
    """
    geometry = geometry_of(config)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if "all" in names:
        names = [STOCK, "full", *(name for name in METHODS if name != "full")]
    known = {STOCK, *METHODS}
    if unknown := [name for name in names if name.partition("@")[0] not in known]:
        raise ValueError(f"--method {unknown[0]}: unknown; known: {', '.join(sorted(known))}")
    if not names:
        raise ValueError("--method: at least one method is needed")
    if wrong := [pair for pair in method_args if "=" not in pair]:
        raise ValueError(f"--method-arg {wrong[0]}: FIELD=VALUE is needed")
    fields = dict(pair.split("=", 1) for pair in method_args)
    budgets = numbers("--tokens", tokens, float)
    cases: list[Case] = []
    for name in dict.fromkeys(names):
        if name == STOCK:
            cases.append(Case(name, None))
            continue
        cls = METHODS[name.partition("@")[0]]
        own = dict(fields)
        if NEED in cls.needs and "clip" not in own and geometry.has_cls:
            own["clip"] = str(text_encoder(config, folder))
        fixed = "@" in name or not cls.budgeted()
        for budget in [None] if fixed else budgets:
            case = Case(name, budget)
            if name == VisionDrop.name and budget and not fields and geometry.num_layers < SHALLOW:
                # For a first look with --layers 2: it has to run, and to say what it is.
                case.remark = ENCODER_ALONE.format(geometry.num_layers)
                case.method = VisionDrop(split_total(round(budget)))
                case.method.check(geometry)
                cases.append(case)
                continue
            try:
                case.method = build_method(name, budget, geometry=geometry, args=own)
            except (ValueError, TypeError) as error:
                case.reason = first_words(error)
            cases.append(case)
    if len(cases) == 1 and cases[0].reason:
        raise ValueError(cases[0].reason)
    return cases


def first_words(error: Exception) -> str:
    """A refusal without the list of what would work."""
    return str(error).split("; methods that work")[0]


def text_encoder(config: Any, folder: Path) -> Path:
    """A CLIP with random weights, made once."""
    path = folder / "clip"
    return path if path.is_dir() else random_clip(path, config.vision_config.hidden_size)


def key_of(case: Case, method_args: Sequence[str]) -> str:
    """What tells a row from others of equal settings."""
    tokens = "-" if case.tokens is None else f"{case.tokens:g}"
    return "/".join([case.name, tokens, *sorted(method_args)])


def numbers(flag: str, text: str, kind: type) -> list[Any]:
    """A comma list. Raises `ValueError` naming the flag."""
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise ValueError(f"{flag} {text!r}: numbers are needed, separated by commas")
    return found
