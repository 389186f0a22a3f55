"""A method of visual-token reduction, and how it is applied to one model object.

    with method(model) as trace:
        model.generate(...)

Nothing is patched globally: hooks are set on that model and removed on exit, also after an
exception.
"""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from torch import nn

from visiondrop.adapters.base import Geometry
from visiondrop.merging import Reduction
from visiondrop.schedule import mean_tokens
from visiondrop.tower_cache import TowerCache
from visiondrop.trace import Trace
from visiondrop.views import DecoderView, EncoderView

__all__ = ["Composed", "Positions", "Reducer"]

Positions = Literal["renumbered", "original"]

_ACTIVE: WeakKeyDictionary[nn.Module, Reducer] = WeakKeyDictionary()
_REGISTRY: dict[str, type[Reducer]] = {}


class Reducer(ABC):
    """Base of all methods. A subclass is a dataclass whose fields are its hyper-parameters.

    It overrides `encoder_stage`, or `llm_layers` and `llm_stage`, or both, and `ledger`.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    before_llm: bool = False
    """Whether the method reduces before the LLM."""
    inside_llm: bool = False
    """Whether the method reduces inside the LLM."""

    positions: Positions = "renumbered"
    """Positions of what is kept: numbered anew from 0, or those of the unpruned sequence."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            _REGISTRY[cls.name] = cls

    # ------------------------------------------------------------------ what a method decides

    def encoder_stage(self, view: EncoderView) -> Reduction | None:
        """Reduce at the vision encoder's output; None leaves the pictures whole."""
        return None

    def llm_layers(self) -> tuple[int, ...]:
        """Decoder layers before which `llm_stage` is called, rising."""
        return ()

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Reduce before decoder layer `view.layer`; None skips the stage for these pictures."""
        return None

    def check(self, geometry: Geometry) -> None:  # noqa: B027
        """Raise `ValueError`, before any compute, on what cannot be done at these sizes."""

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Visual tokens that each decoder layer sees for one picture, by plan."""
        return [num_patches] * num_layers

    # ------------------------------------------------------------------ what every method gets

    def mean_tokens(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> float:
        """True mean of the ledger."""
        return mean_tokens(self.ledger(num_layers, num_patches, has_cls))

    def to_dict(self) -> dict[str, Any]:
        """The method whole, for JSON: its name and every field."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **{k: _plain(v) for k, v in fields.items()}}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Reducer:
        """The inverse of `to_dict`. Raises `ValueError` on an unknown name or field."""
        data = dict(data)
        name = data.pop("name", None)
        if name == Composed.name:
            return Composed(*(Reducer.from_dict(part) for part in data["parts"]))
        if name not in _REGISTRY:
            raise ValueError(f"unknown method {name!r}; known: {', '.join(sorted(_REGISTRY))}")
        cls = _REGISTRY[name]
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if extra := sorted(set(data) - known):
            raise ValueError(
                f"{name} has no field {extra[0]!r}; it has: {', '.join(sorted(known))}"
            )
        return cls(**data)

    def __add__(self, other: Reducer) -> Composed:
        """One method before the LLM and one inside it."""
        return Composed(self, other)

    @contextmanager
    def __call__(
        self,
        model: nn.Module,
        keys: list[str] | None = None,
        tower_cache: TowerCache | None = None,
    ) -> Iterator[Trace]:
        """Apply the method to `model` for the length of a `with` block.

        Args:
            model: a supported transformers model (`visiondrop.adapters`).
            keys: sample keys for seeded methods, see `Trace.set_keys`.
            tower_cache: where tower outputs are kept for pictures named by `Trace.set_pictures`.

        Raises:
            TypeError: unknown model family.
            ValueError: a budget that the model cannot meet.
            RuntimeError: the model has a method already.
        """
        from visiondrop.adapters import adapter_of
        from visiondrop.decoder import Mechanism

        adapter = adapter_of(model)
        geometry = adapter.geometry(model.config)
        self.check(geometry)
        if model in _ACTIVE:
            raise RuntimeError(
                f"this model runs {_ACTIVE[model].name!r} already, {self.name!r} cannot be entered "
                "on top; leave the first `with` block, or compose: `with (a + b)(model)`"
            )
        trace = Trace(self.to_dict(), geometry.grid)
        trace.set_keys(keys)
        if tower_cache is not None:
            trace.towers = tower_cache
        _ACTIVE[model] = self
        mechanism = Mechanism(model, adapter, geometry, self, trace)
        try:
            mechanism.attach()
            yield trace
        finally:
            mechanism.detach()
            _ACTIVE.pop(model, None)


def _plain(value: Any) -> Any:
    """Tuples to lists and dictionary keys to strings, as JSON has them."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


class Composed(Reducer):
    """One method before and one inside the LLM, in that order of action.

    Raises `ValueError` where both act in the same place or number positions differently.
    """

    name = "composed"

    def __init__(self, first: Reducer, second: Reducer):
        if first.inside_llm and not first.before_llm:
            first, second = second, first
        for place, both in (
            ("before the LLM", first.before_llm and second.before_llm),
            ("inside the LLM", first.inside_llm and second.inside_llm),
        ):
            if both:
                raise ValueError(
                    f"{first.name!r} and {second.name!r} both act {place}; compose one method "
                    "before the LLM with one inside it"
                )
        if first.positions != second.positions:
            raise ValueError(
                f"{first.name!r} has positions={first.positions!r} and {second.name!r} "
                f"{second.positions!r}; give both the same"
            )
        self.first, self.second = first, second
        self.positions = first.positions
        self.before_llm = first.before_llm or second.before_llm
        self.inside_llm = first.inside_llm or second.inside_llm

    def encoder_stage(self, view: EncoderView) -> Reduction | None:
        """Of whichever part reduces before the LLM."""
        return (self.first if self.first.before_llm else self.second).encoder_stage(view)

    def llm_layers(self) -> tuple[int, ...]:
        """Of whichever part reduces inside the LLM."""
        return (self.first if self.first.inside_llm else self.second).llm_layers()

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Of whichever part reduces inside the LLM."""
        return (self.first if self.first.inside_llm else self.second).llm_stage(view)

    def check(self, geometry: Geometry) -> None:
        """Both parts'."""
        self.first.check(geometry)
        self.second.check(geometry)

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """The smaller of both parts' at each layer."""
        parts = (p.ledger(num_layers, num_patches, has_cls) for p in (self.first, self.second))
        return [min(pair) for pair in zip(*parts, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Both parts, whole."""
        return {"name": self.name, "parts": [self.first.to_dict(), self.second.to_dict()]}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composed) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]
