"""The stage before the LLM that sees all pictures of a prompt together: frames of a video."""

from __future__ import annotations

import dataclasses

from visiondrop.adapters.base import Geometry
from visiondrop.encoder import Picture
from visiondrop.reducer import Reducer
from visiondrop.trace import StageTrace
from visiondrop.views import PromptView

__all__ = ["reduce_prompts"]


def reduce_prompts(
    method: Reducer, geometry: Geometry, rows: list[list[Picture]]
) -> list[list[Picture]]:
    """The pictures of each prompt after `method.prompt_stage`.

    Raises `ValueError` on pictures that were encoded elsewhere, whose embeddings are not at hand.
    """
    return [reduce_prompt(method, geometry, own) if own else [] for own in rows]


def reduce_prompt(method: Reducer, geometry: Geometry, pictures: list[Picture]) -> list[Picture]:
    """Of one prompt."""
    features = []
    for picture in pictures:
        if picture.features is None:
            raise ValueError(
                f"{method.name!r} reduces what the projector gives, but was handed features "
                "encoded elsewhere; give pixel_values"
            )
        features.append(picture.features)
    view = PromptView(
        features,
        [picture.sizes for picture in pictures],
        geometry.grid,
        [picture.pixels for picture in pictures],
        [picture.key or "" for picture in pictures],
    )
    reductions = method.prompt_stage(view) or [None] * len(pictures)
    if len(reductions) != len(pictures):
        raise ValueError(f"{len(reductions)} reductions for {len(pictures)} pictures: one each")
    out = []
    for picture, reduction in zip(pictures, reductions, strict=True):
        if reduction is None:
            out.append(picture)
            continue
        source = reduction.source[0]
        stage = StageTrace(
            "prompt",
            None,
            0,
            picture.identity,
            source,
            reduction.target[0],
            reduction.contextual[0],
        )
        out.append(
            dataclasses.replace(
                picture,
                tokens=source.shape[0],
                identity=picture.identity[source],
                slot=picture.slot[source],
                sizes=reduction.sizes[0],
                overflow=reduction.features[0],
                stage=stage,
            )
        )
    return out
