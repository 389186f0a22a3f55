"""Two methods as one: one before the LLM and one inside it, and what acts elsewhere with any."""

from __future__ import annotations

from typing import Any

from visiondrop.adapters.base import Geometry
from visiondrop.extensions.base import Extension
from visiondrop.merging import Reduction
from visiondrop.reducer import Positions, Reducer, Reductions
from visiondrop.views import DecoderView, EncoderView, ProjectedView, PromptView, TowerBlockView

__all__ = ["Composed"]


class Composed(Reducer):
    """One method before and one inside the LLM, in that order of action.

    Where the first renumbers positions and the second keeps them, the second keeps those that the
    first gave. Raises `ValueError` where both act in the same place, or where the first keeps the
    unpruned positions and the second renumbers.
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
        self.first, self.second = first, second
        self.parts = (first, second)
        idle = Idle()
        self.outer = next((p for p in self.parts if p.before_llm), idle)
        self.inner = next((p for p in self.parts if p.inside_llm), idle)
        self.before_llm = self.outer is not idle
        self.inside_llm = self.inner is not idle
        self.before = self.outer.before  # type: ignore[misc]
        self.needs = tuple(dict.fromkeys(n for p in self.parts for n in p.needs))  # type: ignore[misc]
        self.reads_text = self.inner.reads_text  # type: ignore[misc]
        self.looks_back = self.inner.looks_back  # type: ignore[misc]
        self.uses_input = self.inner.uses_input  # type: ignore[misc]
        self.seeded = self.inner.seeded  # type: ignore[misc]
        self.flops_by_ledger = all(p.flops_by_ledger for p in self.parts)  # type: ignore[misc]
        self.tiled = all(p.tiled for p in self.parts)  # type: ignore[misc]
        acting = self.inner if self.inside_llm else self.outer
        self.positions = acting.positions
        if self.before_llm and self.entry_positions == "original" != self.positions:
            raise ValueError(
                f"{self.outer.name!r} has positions='original' and {self.inner.name!r} "
                "'renumbered'; give both the same"
            )

    @property
    def entry_positions(self) -> Positions:
        """Of the part before the LLM."""
        return self.outer.entry_positions if self.before_llm else self.positions

    @property
    def before_part(self) -> Reducer:
        """The first."""
        return self.outer

    @property
    def inside_part(self) -> Reducer:
        """The second."""
        return self.inner

    def on_tiles(self, **options: Any) -> Composed:
        """Both parts with these options."""
        return Composed(*(part.on_tiles(**options) for part in self.parts))

    def on_pictures(self, **options: Any) -> Composed:
        """Both parts with these options."""
        return Composed(*(part.on_pictures(**options) for part in self.parts))

    def encoder_stage(self, view: EncoderView) -> Reductions:
        """Of the part that reduces before the LLM."""
        return self.outer.encoder_stage(view)

    def projected_stage(self, view: ProjectedView) -> Reductions:
        """Of the part that reduces before the LLM."""
        return self.outer.projected_stage(view)

    def tower_block(self, view: TowerBlockView) -> Reduction | None:
        """Of the part that reduces before the LLM."""
        return self.outer.tower_block(view)

    def prompt_stage(self, view: PromptView) -> list[Reduction | None] | None:
        """Of the part that reduces before the LLM."""
        return self.outer.prompt_stage(view)

    def llm_layers(self) -> tuple[int, ...]:
        """Of the part that reduces inside the LLM."""
        return self.inner.llm_layers()

    def llm_stage(self, view: DecoderView) -> Reductions:
        """Of the part that reduces inside the LLM."""
        return self.inner.llm_stage(view)

    def extensions(self) -> list[Extension]:
        """Both parts'."""
        return [extension for part in self.parts for extension in part.extensions()]

    def check(self, geometry: Geometry) -> None:
        """Both parts'."""
        for part in self.parts:
            part.check(geometry)

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """What the inner part leaves of what the outer one hands the LLM."""
        held = self.outer.ledger(num_layers, num_patches, has_cls)
        if self.inner is self.outer:
            return held
        inner = self.inner.ledger(num_layers, held[0], has_cls)
        return [min(pair) for pair in zip(held, inner, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Both parts, whole."""
        return {"name": self.name, "parts": [part.to_dict() for part in self.parts]}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composed) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


class Idle(Reducer):
    """Stands where no part acts."""
