"""What simple methods share: a fixed number of tokens for each picture, chosen before the LLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self

from visiondrop.adapters.base import Geometry
from visiondrop.reducer import Reducer

__all__ = ["PictureBudget"]


class PictureBudget(Reducer):
    """Keeps `tokens` visual tokens of each picture before the LLM; all decoder layers see them.

    A subclass is a dataclass with the field `tokens`, and overrides one stage before the LLM.
    """

    tokens: int
    before_llm: bool = True

    def check(self, geometry: Geometry) -> None:
        """Refuse budgets beyond the picture."""
        super().check(geometry)
        most = geometry.num_patches + int(self.counts_cls and geometry.has_cls)
        whole = isinstance(self.tokens, int) and not isinstance(self.tokens, bool)
        if not whole or not 1 <= self.tokens <= most:
            raise ValueError(
                f"{self.name}: tokens={self.tokens} asked for where a picture has "
                f"{most} at most; give 1 to {most}"
            )

    def entry_tokens(self) -> int | None:
        """`tokens`."""
        return self.tokens

    def with_entry(self, tokens: int) -> Self:
        """With another number."""
        return dataclasses.replace(self, tokens=tokens)  # type: ignore[type-var]

    def counted(self, count: Callable[[int], int]) -> Self:
        """With count(tokens) for `tokens`."""
        if self.tokens is None:  # a method that may find out by itself
            return self
        return self.with_entry(count(self.tokens))

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """The same count in every layer."""
        most = num_patches + int(self.counts_cls and has_cls)
        return [min(self.tokens, most)] * num_layers

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
        """`tokens` of each picture: what enters the LLM is the mean over its layers."""
        return cls(tokens=tokens, **options)  # type: ignore[call-arg]
