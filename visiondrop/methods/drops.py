"""What methods share that drop tokens inside the LLM: one drop at one layer, or lists that someone
tuned for several layers.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from visiondrop.adapters.base import Geometry
from visiondrop.budgets import (
    between,
    check_average,
    check_counts,
    check_layers,
    listed_drops,
    refuse_options,
    scaled_layers,
    single_drop,
    stepwise,
)
from visiondrop.reducer import Reducer

__all__ = ["ListedDrops", "OneDrop"]


class OneDrop(Reducer):
    """Drops once, before decoder layer `layer`; what stays is seen by it and all later ones.

    A subclass is a dataclass with the fields `layer` and `tokens`, and says what is `kept`.
    """

    layer: int
    tokens: int | None
    inside_llm: bool = True
    official: ClassVar[int] = 2
    """The authors' layer in a decoder of 32."""
    counted_by: ClassVar[tuple[str, ...]] = ("tokens",)
    """Fields that a budget sets."""

    @abstractmethod
    def kept(self, total: int) -> int:
        """How many of a picture's `total` tokens stay."""

    @classmethod
    def least(cls, options: Mapping[str, Any]) -> int:
        """How few tokens can stay."""
        return 1

    @classmethod
    def from_average(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """The released layer scaled by depth, or an earlier one where the mean needs it (see
        `budgets.single_drop`).
        """
        refuse_options(options, cls.counted_by, cls.name)
        layer, kept = single_drop(
            tokens,
            scaled_layers((cls.official,), num_layers)[0],
            num_layers,
            num_patches,
            given=options.pop("layer", None),
            least=min(cls.least(options), num_patches),
            name=cls.name,
        )
        return cls(layer=layer, tokens=kept, **options)  # type: ignore[call-arg]

    @classmethod
    def from_nominal(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """As papers count: `tokens` stay after `layer`, the full layers before it left out."""
        refuse_options(options, cls.counted_by, cls.name)
        options.setdefault("layer", scaled_layers((cls.official,), num_layers)[0])
        return cls(tokens=round(tokens), **options)  # type: ignore[call-arg]

    def counted(self, count: Callable[[int], int]) -> Self:
        """Another `tokens`, at least the least."""
        if self.tokens is None:
            return self
        tokens = max(self.least(vars(self)), count(self.tokens))
        return dataclasses.replace(self, tokens=tokens)  # type: ignore[type-var]

    def check(self, geometry: Geometry) -> None:
        """Refuse an impossible layer or count."""
        super().check(geometry)
        check_layers((self.layer,), geometry.num_layers, f"{self.name}'s drop")
        total = geometry.num_patches
        kept, least = self.kept(total), self.least(vars(self))
        if not least <= kept <= total:
            raise ValueError(
                f"{self.name} would keep {kept} tokens of a picture's {total}; {least} to {total} "
                f"can stay: set {' or '.join(self.counted_by)} so"
            )

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Everything before `layer`, then what stays."""
        return stepwise((self.layer,), (self.kept(num_patches),), num_layers, num_patches)

    def llm_layers(self) -> tuple[int, ...]:
        """The one."""
        return (self.layer,)


class ListedDrops(Reducer):
    """Prunes the output of each layer of `layers` to `tokens[i]` tokens and possibly some more.

    At least one token goes at every stage, as in the released SparseVLM: min(tokens[i], n - 1) of n
    stay. A subclass is a dataclass with both fields and numbers for `presets`.
    """

    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    inside_llm: bool = True
    official: ClassVar[tuple[int, ...]]
    """The authors' layers in a decoder of 32."""
    counted_by: ClassVar[tuple[str, ...]] = ("tokens",)
    """Fields that a budget sets."""
    list_patches: ClassVar[int] = 576
    """The lists in `presets`, by nominal budget, are for pictures of so many tokens."""

    def __post_init__(self) -> None:
        self.layers, self.tokens = tuple(self.layers), tuple(self.tokens)

    @staticmethod
    def added(dropped: int) -> int:
        """How many tokens are made of so many dropped ones."""
        return 0

    @classmethod
    def lists(cls, nominal: float, num_patches: int) -> list[float]:
        """`tokens` (not yet whole) for a nominal budget: the lists of `presets` at their numbers,
        linear between these and from the highest up to all tokens, and in proportion to the lowest
        below it. For pictures of other sizes than the lists', budget and counts scale.
        """
        scale, stages = num_patches / cls.list_patches, len(cls.official)
        known = sorted((float(name), preset["tokens"]) for name, preset in cls.presets.items())
        most = (float(cls.list_patches), (cls.list_patches,) * stages)
        table = [(0.0, (0,) * stages), *known, most]
        return [count * scale for count in between(nominal / scale, table)]

    @classmethod
    def from_average(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """The member of `lists` with this true mean, added tokens counted, after the released
        layers scaled by depth, or with the first of them earlier (`budgets.listed_drops`).
        """
        refuse_options(options, cls.counted_by, cls.name)
        make: Any = cls
        layers, counts = listed_drops(
            tokens,
            scaled_layers(cls.official, num_layers),
            lambda nominal: cls.lists(nominal, num_patches),
            lambda layers, counts: make(layers, counts).ledger(num_layers, num_patches),
            num_patches,
            given=options.pop("layers", None),
            earliest=0,
            name=cls.name,
        )
        return make(layers, counts, **options)

    def counted(self, count: Callable[[int], int]) -> Self:
        """Another number at each layer."""
        tokens = tuple(count(n) for n in self.tokens)
        return dataclasses.replace(self, tokens=tokens)  # type: ignore[type-var]

    @classmethod
    def from_nominal(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """The authors' list for this number, or one between their lists (`lists`)."""
        refuse_options(options, cls.counted_by, cls.name)
        check_average(tokens, num_patches)
        options.setdefault("layers", scaled_layers(cls.official, num_layers))
        counts = (max(1, round(count)) for count in cls.lists(tokens, num_patches))
        return cls(tokens=tuple(counts), **options)  # type: ignore[call-arg]

    def check(self, geometry: Geometry) -> None:
        """Refuse impossible layers or counts."""
        super().check(geometry)
        check_layers(self.llm_layers(), geometry.num_layers)
        check_counts(self.tokens, self.layers, geometry.num_patches, self.name)

    def kept(self, layer: int, arriving: int) -> int:
        """How many of the `arriving` tokens stay as they are after `layer`."""
        return min(self.tokens[self.layers.index(layer)], arriving - 1)

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Kept and added tokens, by layer."""
        held, out = num_patches, []
        for layer in range(num_layers):
            out.append(held)
            if layer in self.layers and held > 1:
                kept = self.kept(layer, held)
                held = kept + self.added(held - kept)
        return out

    def llm_layers(self) -> tuple[int, ...]:
        """After the layers that are pruned."""
        return tuple(layer + 1 for layer in self.layers)
