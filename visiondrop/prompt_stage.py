"""The stage before the LLM that sees frames together: the pictures of a prompt, or a video's."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from visiondrop.adapters.base import Geometry
from visiondrop.encoder import Picture
from visiondrop.functional.frame_layout import FrameGrid
from visiondrop.merging import Reduction, concatenate, keep_all
from visiondrop.reducer import Reducer
from visiondrop.registry import NEEDS, working
from visiondrop.trace import StageTrace
from visiondrop.views import PromptView

__all__ = ["reduce_prompts"]


def reduce_prompts(
    method: Reducer, geometry: Geometry, rows: list[list[Picture]]
) -> list[list[Picture]]:
    """The pictures of each prompt after `method.prompt_stage`: the frames of each video by
    themselves, all pictures that are none together.

    Raises `ValueError` on pictures that were encoded elsewhere, whose embeddings are not at hand.
    """
    return [reduce_prompt(method, geometry, own) for own in rows]


def reduce_prompt(method: Reducer, geometry: Geometry, pictures: list[Picture]) -> list[Picture]:
    """Of one prompt."""
    if any(picture.features is None for picture in pictures):
        raise ValueError(
            f"{method.name!r} reduces what the projector gives, but was handed features "
            "encoded elsewhere; give pixel_values"
        )
    alone = len(pictures) == 1 and not isinstance(pictures[0].grid, FrameGrid)
    if alone and "frames" in method.before_part.needs:
        raise ValueError(
            f"{method.name!r} needs {NEEDS['frames']}, and a prompt has one picture; methods that "
            f"work here: {', '.join(working(geometry, 'frames'))}"
        )
    out: dict[int, Picture] = {}
    single = [i for i, picture in enumerate(pictures) if not isinstance(picture.grid, FrameGrid)]
    if single:
        view = PromptView(
            [tokens_of(pictures[i]) for i in single],
            [pictures[i].sizes for i in single],
            geometry.grid,
            [pictures[i].pixels for i in single],
            [pictures[i].key or "" for i in single],
            has_cls=geometry.cls_in_prompt,
        )
        for i, reduction in zip(single, reductions_of(method, view), strict=True):
            out[i] = pictures[i] if reduction is None else replaced(pictures[i], reduction)
    for i, picture in enumerate(pictures):
        if isinstance(picture.grid, FrameGrid):
            out[i] = reduce_video(method, picture, picture.grid)
    return [out[i] for i in range(len(pictures))]


def reduce_video(method: Reducer, video: Picture, grid: FrameGrid) -> Picture:
    """Of the frames of one video, which share the method's counts. A newline behind them stays."""
    split = [grid.per_frame] * grid.frames
    frames = list(tokens_of(video)[: grid.first_newline].split(split))
    sizes = list(video.sizes[: grid.first_newline].split(split))
    pixels = [None] * grid.frames if video.pixels is None else list(video.pixels)
    keys = [f"{video.key or ''}/{f}" for f in range(grid.frames)]
    square = (grid.side, grid.side)
    view = PromptView(frames, sizes, square, pixels, keys, has_cls=grid.cls, video=True)
    parts = [
        keep_all(frame[None], size[None]) if own is None else own
        for own, frame, size in zip(reductions_of(method, view), frames, sizes, strict=True)
    ]
    if grid.newline:
        last = slice(grid.first_newline, None)
        parts.append(keep_all(tokens_of(video)[None, last], video.sizes[None, last]))
    return replaced(video, concatenate(parts))


def tokens_of(picture: Picture) -> Tensor:
    """[rows, D'], its embeddings."""
    assert picture.features is not None
    return picture.features


def reductions_of(method: Reducer, view: PromptView) -> list[Reduction | None]:
    """What the method says, one for each picture or frame."""
    reductions = method.prompt_stage(view) or [None] * len(view.pictures)
    if len(reductions) != len(view.pictures):
        raise ValueError(
            f"{len(reductions)} reductions for {len(view.pictures)} pictures: one each"
        )
    return reductions


def replaced(picture: Picture, reduction: Reduction) -> Picture:
    """The picture after its reduction (G = 1)."""
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
    newlines = picture.newlines
    return dataclasses.replace(
        picture,
        newlines=None if newlines is None else newlines[source.cpu().numpy()],
        tokens=source.shape[0],
        identity=picture.identity[source],
        slot=picture.slot[source],
        sizes=reduction.sizes[0],
        overflow=reduction.features[0],
        stage=stage,
        projected=picture.passed[1],
    )
