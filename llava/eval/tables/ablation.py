"""VisionDrop's variants: one thing changed at a time, the mean of visual tokens the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

from llava.eval.tables.spec import Variant
from visiondrop import VisionDrop
from visiondrop.adapters import Geometry
from visiondrop.budgets import single_drop
from visiondrop.schedule import Budget, split_total, stage_layers


def usual(tokens: int, geometry: Geometry, **options: Any) -> VisionDrop:
    """VisionDrop at that mean."""
    return VisionDrop.from_average(
        tokens,
        num_layers=geometry.num_layers,
        num_patches=geometry.num_patches,
        has_cls=geometry.has_cls,
        **options,
    )


def entry(tokens: int, geometry: Geometry, ratio: float) -> VisionDrop:
    """What the encoder keeps is ``ratio`` times the mean; the LLM stages make up for it."""
    return usual(tokens, geometry, entry=ratio)


def contextual(tokens: int, geometry: Geometry, share: float) -> VisionDrop:
    """The totals as they are, ``share`` of each merged tokens, rounded up."""
    method = usual(tokens, geometry)
    assert method.encoder is not None

    def split(budget: Budget) -> Budget:
        merged = ceil(share * sum(budget))
        return sum(budget) - merged, merged

    llm = {layer: split(budget) for layer, budget in method.llm.items()}
    return replace(method, encoder=split(method.encoder), llm=llm)


def before_llm(tokens: int, geometry: Geometry) -> VisionDrop:
    """One stage, at the encoder."""
    return VisionDrop(encoder=split_total(tokens))


def inside_llm(tokens: int, geometry: Geometry) -> VisionDrop:
    """One stage inside the LLM, where the first usually stands or as late as the mean allows."""
    layer, kept = single_drop(
        tokens,
        stage_layers(geometry.num_layers)[0],
        geometry.num_layers,
        geometry.num_patches,
        name="VisionDrop with one stage inside the LLM",
    )
    return VisionDrop(llm={layer: split_total(max(kept, 2))})


def _row(slug: str, title: str, group: str, build: Callable, **more: object) -> Variant:
    return Variant(slug, title, group, partial(build, **more) if more else build)


RETENTION, SPLIT = "encoder keeps, times the mean", "contextual share"
STAGES, MERGE = "stages", "merge rule"
POSITIONS, CAUSAL, QUERY = "positions", "causal correction in the LLM", "who judges at the encoder"

VARIANTS = (
    *(_row(f"entry={r:g}", f"{r:g}", RETENTION, entry, ratio=r) for r in (1.0, 1.25, 2.0, 3.0)),
    *(_row(f"contextual={s:g}", f"{s:g}", SPLIT, contextual, share=s) for s in (0, 0.25, 0.5)),
    _row("stages=before", "one, before the LLM", STAGES, before_llm),
    _row("stages=inside", "one, inside the LLM", STAGES, inside_llm),
    *(_row(f"merge={m}", m, MERGE, usual, merge=m) for m in ("mean", "size-weighted")),
    _row("positions=original", "original", POSITIONS, usual, positions="original"),
    *(
        _row(f"causal={c}", c.replace("_", " "), CAUSAL, usual, causal=c)
        for c in ("expectation", "no_mask", "visible")
    ),
    _row("query=patches", "all patches", QUERY, usual, query="patches"),
)
DEFAULTS = {
    RETENTION: "1.5",
    SPLIT: "0.125",
    STAGES: "four, falling",
    MERGE: "sum",
    POSITIONS: "renumbered",
    CAUSAL: "off",
    QUERY: "CLS",
}
"""What VisionDrop itself does in each group."""
