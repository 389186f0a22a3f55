"""The modified encoder for videos whose frames pass the tower one by one: a reduction per frame,
projector, and the frames of each video one behind the other.

What a method sees is an `EncoderView` or `ProjectedView` whose G are frames; it knows nothing of
videos. A number of tokens is one of a whole video, whose frames share it equally
(`tiles.frame_budgets`). Each frame's CLS counts among what a method keeps where the method counts
it in a picture. A frame that is left whole keeps its CLS, as the unpruned model feeds it.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from visiondrop.adapters.base import Adapter, Geometry, TowerOutput, following_projections
from visiondrop.encoder import Encoded, Encoding, Picture, one_each, picture_keys, picture_questions
from visiondrop.functional.frame_layout import FrameGrid
from visiondrop.merging import Reduction, concatenate, keep_all, keep_only, per_picture
from visiondrop.tiles import frame_budgets
from visiondrop.trace import StageTrace
from visiondrop.transfer import to_device
from visiondrop.views import EncoderView, ProjectedView

__all__ = ["budgets_of", "encode_frames", "reduce_frames"]


def budgets_of(part: Any, frames: int, room: int) -> list[int | None] | None:
    """How many tokens each frame of a video keeps: None each where the method finds out by itself;
    None in all where its number leaves the video whole.

    Args:
        part: the method's part before the LLM; room: tokens that it can keep of a frame.
    """
    total = part.entry_tokens()
    if total is None:
        return [None] * frames
    return None if total > frames * room else list(frame_budgets(total, frames))


def encode_frames(
    model: nn.Module,
    adapter: Adapter,
    encoding: Encoding,
    pixel_values: Tensor,
    **kwargs: Any,
) -> Encoded:
    """Encode videos [B, F, 3, h, w] frame by frame, reduce, project.

    Args:
        encoding: with the geometry of one frame, whose CLS, where there is one, the unpruned model
            feeds to the decoder.
        kwargs: for the adapter's `encode` and `tower`.

    Returns: feature rows [B, F * rows of a frame, D'].
    """
    geometry, method, trace = encoding.geometry, encoding.method, encoding.trace
    place = method.before if method.before_llm else None
    if "text encoder" in method.needs:
        picture_questions(pixel_values, trace)  # refused before the tower runs
    batch, frames = pixel_values.shape[:2]
    pixels = pixel_values.flatten(0, 1)
    grid = FrameGrid(frames, geometry.grid[0], geometry.has_cls)

    def run(frames_of: Tensor) -> TowerOutput:
        return adapter.encode(model, frames_of, **kwargs)

    if trace.pictures is None:
        tower = run(pixels)
    else:
        names = one_each(trace.pictures, batch, "video names", "trace.set_pictures")
        labels = [f"video {name}/{f}" for name in names for f in range(frames)]
        tower = trace.towers.encode(labels, pixels, run)
    project = functools.partial(adapter.project, model)

    def named(of: list[str], index: Sequence[int]) -> list[str]:
        return [of[i // frames] for i in index]

    def view_of(index: list[int]) -> EncoderView:
        """Frames as a method sees them."""
        which = to_device(torch.tensor(index), tower.features.device)
        features = tower.features[which]
        keys = functools.partial(picture_keys, pixel_values, trace)
        return EncoderView(
            features,
            tower.query[which],
            tower.key[which],
            tower.scale,
            geometry.has_cls,
            geometry.grid,
            make_keys=lambda: [
                f"{key}/{i % frames}" for key, i in zip(named(keys(), index), index, strict=True)
            ],
            make_following=lambda: following_projections(*adapter.tower(model, **kwargs), features),
            pixels=pixels[which],
            make_questions=lambda: named(picture_questions(pixel_values, trace), index),
        )

    count = batch * frames
    made: dict[int, Reduction | None] = dict.fromkeys(range(count))
    if place in ("encoder", "projected"):
        made = reduce_frames(method.before_part, geometry, view_of, project, count, frames)
    parts: list[Reduction] = []
    for i, own in made.items():
        features = tower.features[i : i + 1]
        if own is None:
            ones = torch.ones(features.shape[:2], dtype=torch.long, device=features.device)
            own = keep_all(project(features) if place == "projected" else features, ones)
        parts.append(own)
    if place != "projected":
        joined = project(torch.cat([own.features for own in parts], 1))
        split = joined.split([own.source.shape[1] for own in parts], 1)
        parts = [replace(own, features=new) for own, new in zip(parts, split, strict=True)]

    keys: list[str | None] = [None] * batch
    if trace.keys is not None or method.seeded:
        keys = list(picture_keys(pixel_values, trace))
    out = parts[0].features.new_full((batch, grid.unpruned, parts[0].features.shape[-1]), math.nan)
    pictures = []
    for b in range(batch):
        video = concatenate(parts[b * frames : (b + 1) * frames])
        source, kept = video.source[0], video.source.shape[1]
        out[b, :kept] = video.features[0]
        info = Picture(
            grid.unpruned, kept, source, source, video.sizes[0], None, None, keys[b], grid=grid
        )
        if any(made[i] is not None for i in range(b * frames, (b + 1) * frames)):
            came = torch.arange(grid.unpruned, device=source.device)
            went = video.target[0], video.contextual[0]
            info.stage = StageTrace(method.before, None, 0, came, source, *went)
        if video.score is not None:
            info.score = video.score[0]
        info.tiles = frames
        if place == "projected":
            info.projected = frames * geometry.num_patches
        if place == "prompt":
            info.features, info.pixels = video.features[0], pixel_values[b]
        pictures.append(info)
    return Encoded(pooler_output=out, pictures=pictures)  # type: ignore[arg-type]


def reduce_frames(
    part: Any,
    geometry: Geometry,
    view_of: Callable[[list[int]], EncoderView],
    project: Callable[[Tensor], Tensor],
    count: int,
    frames: int,
) -> dict[int, Reduction | None]:
    """The reduction (G = 1) of each of `count` frames, of all its tokens; None leaves it whole.

    Args:
        part: the method's part before the LLM; frames: of each video.
    """
    room = geometry.num_patches + int(part.counts_cls and geometry.has_cls)
    budgets = budgets_of(part, frames, room)
    if budgets is None:
        return dict.fromkeys(range(count))
    groups: dict[int | None, list[int]] = defaultdict(list)
    for i in range(count):
        groups[budgets[i % frames]].append(i)
    out: dict[int, Reduction | None] = {}
    for budget, index in groups.items():
        acting = part if not budget else part.with_entry(budget)
        view = view_of(index)
        if budget == 0:
            nothing = torch.zeros(len(index), 0, dtype=torch.long, device=view.features.device)
            none = view.features if part.before == "encoder" else project(view.features[:, :0])
            made: Any = keep_only(view.features, view.sizes, nothing)
            made = replace(made, features=none[:, :0])
        elif part.before == "encoder":
            made = acting.encoder_stage(view)
        else:
            made = acting.projected_stage(ProjectedView(project(view.patches), view))
        for i, own in zip(index, per_picture(made, len(index)), strict=True):
            beside = 0 if own is None else view.features.shape[1] - own.target.shape[1]
            out[i] = own and shifted(own, beside)
    return dict(sorted(out.items()))


def shifted(reduction: Reduction, beside: int) -> Reduction:
    """A reduction of patches as one of all tokens, of which `beside` (CLS) come first and go."""
    target = torch.nn.functional.pad(reduction.target, (beside, 0), value=-1)
    return replace(reduction, source=reduction.source + beside, target=target)
