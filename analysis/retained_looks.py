"""Methods at budgets, asked about pictures: what each kept, and what it answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from analysis.retained_geometry import (
    Box,
    Stage,
    region_share,
    region_squares,
    retained,
    token_boxes,
)
from analysis.setting import Case, Setting
from llava.eval.errors import EvalError
from llava.eval.generating import generate_whole, traces_of
from llava.eval.planning import check_name, field_names, make_method
from visiondrop import Reducer
from visiondrop.methods import METHODS
from visiondrop.trace import SampleTrace

__all__ = [
    "Asked",
    "Planned",
    "Shown",
    "ask",
    "look_at",
    "one_of_each",
    "parse_methods",
    "pick_cases",
    "plan",
]

LISTED = 6
"""Pictures that an error names."""


@dataclass(frozen=True)
class Planned:
    """A method at a budget.

    Attributes:
        label: as it was asked for, "visiondrop+causal=expectation".
        tokens: the mean of visual tokens over the decoder layers that was asked for; None where
            the method has no budget.
        method: None where it cannot be.
        reason: why not.
    """

    label: str
    tokens: int | None
    method: Reducer | None
    reason: str = ""

    @property
    def title(self) -> str:
        """For plots."""
        return title_of(self.label)


def title_of(label: str) -> str:
    """A method as plots name it."""
    name, args = split_label(label)
    cls = METHODS[name.partition("@")[0]]
    shown = cls.title + name[len(name.partition("@")[0]) :]
    return ", ".join([shown, *(f"{key}={value}" for key, value in args.items())])


def split_label(label: str) -> tuple[str, dict[str, str]]:
    """Name (with its preset) and fields of "name+field=value+field=value"."""
    name, *pairs = re.split(r"\+(?=[\w.]+=)", label.strip())
    return name, dict(pair.split("=", 1) for pair in pairs)  # type: ignore[arg-type]


def parse_methods(text: str) -> list[str]:
    """Labels as in "visiondrop,visiondrop+causal=expectation", checked.

    Commas within brackets belong to values. Raises `EvalError` for a method or a field that is not
    there, naming those that are.
    """
    labels = [part.strip() for part in re.split(r",(?![^\[{]*[\]}])", text) if part.strip()]
    if not labels:
        raise EvalError("no method given; write --methods visiondrop,random")
    for label in labels:
        name, args = split_label(label)
        check_name(name)
        cls = METHODS.get(name.partition("@")[0])
        if cls is None:
            raise EvalError(f"{name} cannot be drawn here; methods are {', '.join(METHODS)}")
        known = field_names(cls)
        for key in args:
            if key not in known:
                raise EvalError(
                    f"{name} has no argument {key!r}; it has: {', '.join(sorted(known))}"
                )
    return list(dict.fromkeys(labels))


def plan(setting: Setting, labels: Sequence[str], tokens: Sequence[int]) -> list[Planned]:
    """Every method at every budget; one that cannot be has its reason in place of a method.

    Raises `EvalError` where none can be.
    """
    out = []
    for label in labels:
        name, args = split_label(label)
        budgeted = "@" not in name and METHODS[name].budgeted()
        for asked in tokens if budgeted else (None,):
            try:
                method = make_method(name, asked, setting.geometry, args)
                out.append(Planned(label, asked, method))
            except EvalError as error:
                out.append(Planned(label, asked, None, str(error)))
    if all(one.method is None for one in out):
        raise EvalError("; ".join(dict.fromkeys(one.reason for one in out)))
    return out


def pick_cases(setting: Setting, names: Sequence[str], count: int) -> list[Case]:
    """The first question of each picture named, or one on each of the first `count` pictures.

    Args:
        names: of pictures, with or without ending; "NAME:3" takes the third question.

    Raises `EvalError` for one that is not there, with some that are.
    """
    if not names:
        return one_of_each(setting, count)
    by_name: dict[str, list[Case]] = {}
    for case in setting.cases:
        by_name.setdefault(case.picture, []).append(case)
    stems = {name.rpartition(".")[0] or name: name for name in by_name}
    out = []
    for asked in names:
        name, _, number = asked.partition(":")
        found = by_name.get(name) or by_name.get(stems.get(name, ""))
        if found is None:
            some = ", ".join(list(by_name)[:LISTED])
            raise EvalError(
                f"no picture {name!r} in {setting.data}; it has {len(by_name)}, among them {some}"
            )
        if number and not (number.isdigit() and 1 <= int(number) <= len(found)):
            raise EvalError(
                f"{asked!r}: picture {name} has questions 1 to {len(found)}; write {name}:1"
            )
        out.append(found[int(number or 1) - 1])
    return out


def one_of_each(setting: Setting, count: int | None) -> list[Case]:
    """One question on each of the first `count` pictures: the first's first, the second's second,
    and so on round, so that all kinds of questions come.
    """
    by_name: dict[str, list[Case]] = {}
    for case in setting.cases:
        by_name.setdefault(case.picture, []).append(case)
    return [own[i % len(own)] for i, own in enumerate(list(by_name.values())[:count])]


@dataclass(frozen=True)
class Shown:
    """A question's picture, ready to be drawn over.

    Attributes:
        squares: of the question's region, [] where nobody knows it.
        full: what the unpruned model answers; "" where it was not asked.
    """

    case: Case
    image: Image.Image
    squares: tuple[Box, ...]
    full: str = ""


@dataclass(frozen=True)
class Asked:
    """What one method did with one picture at one budget."""

    shown: Shown
    planned: Planned
    sample: SampleTrace
    answer: str
    grid: tuple[int, int] = field(repr=False)

    @cached_property
    def boxes(self) -> Mapping[str, Mapping[int, Box]]:
        """Where its patches lie, by view."""
        return token_boxes(self.sample, self.grid, self.shown.image.size)

    @cached_property
    def stages(self) -> list[Stage]:
        """What became of them."""
        return retained(self.sample, self.boxes)

    def share(self, stage: Stage, kinds: Sequence[str] = ("kept", "contextual")) -> float:
        """Of the patches in the region, the share that is of some kinds; NaN where unknown."""
        return region_share(stage.patches, self.shown.squares, kinds)


def ask(
    setting: Setting, method: Reducer, case: Case, new_tokens: int = 10
) -> tuple[str, SampleTrace, tuple[int, int]]:
    """The answer to one question under a method, its trace, and the picture's (width, height).

    Raises `EvalError` for a picture that cannot be read or a method that does not run here.
    """
    prepared = [setting.dataset([case])[0]]
    if prepared[0].error is not None or prepared[0].image_size is None:
        raise EvalError(f"question {case.sample.question_id!r}: {prepared[0].error}")
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": new_tokens,
        "pad_token_id": setting.loaded.pad_id,
        "use_cache": True,
    }
    try:
        with torch.inference_mode(), method(setting.model, tower_cache=setting.towers) as trace:
            out = generate_whole(setting.loaded, prepared, [case.sample], trace, options)
    except ValueError as error:
        raise EvalError(f"{method.name}: {error}") from None
    (text,) = setting.loaded.tokenizer.batch_decode(out, skip_special_tokens=True)
    return text.strip(), traces_of(trace, prepared, 1)[0], prepared[0].image_size


def look_at(
    setting: Setting, cases: Sequence[Case], planned: Sequence[Planned], *, full: bool = True
) -> list[Asked]:
    """Ask each question under each method that can be, picture by picture.

    Args:
        full: ask the unpruned model, too.
    """
    out = []
    for case in cases:
        reference, sample, original = ask(setting, METHODS["full"](), case, 10 if full else 1)
        image, tiled = setting.image(case), any(sample.grids)
        squares = region_squares(case.region or (), original, image.size, tiled)
        shown = Shown(case, image, tuple(squares), reference if full else "")
        for one in planned:
            if one.method is not None:
                answer, sample, _ = ask(setting, one.method, case)
                out.append(Asked(shown, one, sample, answer, setting.geometry.grid))
    return out
