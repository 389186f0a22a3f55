"""The reduction before the LLM for pictures and videos of native resolution.

Every picture has its own number of tokens, n = h w, and a video t h w of them. The tower makes one
visual token of k patches; what a method sees is a `MergedView` whose G are pictures (or frames) of
one size. "Frame" stands for what the tower attends within: one of the t of a video, which may show
two moments of it; a picture is one frame.

A method's count is for the whole picture or the whole video, however large. One that has no more
tokens than that stays whole. The frames of a video share it equally: frame i of t gets
floor((i + 1) T / t) - floor(i T / t) of T tokens, and each is reduced by itself. A frame that gets
none is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visiondrop.encoder import Encoded, Encoding, Picture, picture_keys, picture_questions
from visiondrop.merged_tokens import MergedView
from visiondrop.merging import Reduction, concatenate, keep_all, keep_only, per_picture
from visiondrop.scoring import CHUNK_ELEMENTS
from visiondrop.tiles import frame_budgets
from visiondrop.trace import StageTrace
from visiondrop.views import EncoderView, ProjectedView

__all__ = ["PackedTower", "encode_native", "frame_budgets"]

Frame = tuple[int, int]
"""(picture, frame in it)."""

ROWS_AT_ONCE = 32
"""Query rows of a group of frames whose attention fits into memory together, at least."""


@dataclass
class PackedTower:
    """What the vision tower gives for a batch of pictures or videos in one row.

    Attributes:
        tokens: [N, D'], decoder embeddings, picture by picture, frame by frame, in raster order.
        query, key: [k N, H, d], of the layer that judges, as its attention sees them (after RoPE),
            in the tower's own order.
        scale: 1 / sqrt(d).
        per_token: k, patches of a token, which stand together in the tower's order.
        order: [N] on the host, where the tower has the patches of each token, in tokens; a frame's
            stay within the frame.
        shapes: (t, h, w) of each picture or video, in tokens.
    """

    tokens: Tensor
    query: Tensor
    key: Tensor
    scale: float
    per_token: int
    order: Tensor
    shapes: list[tuple[int, int, int]]

    def __post_init__(self) -> None:
        sizes = [t * h * w for t, h, w in self.shapes]
        self.first = [sum(sizes[:p]) for p in range(len(sizes))]

    def places(self, frame: Frame) -> slice:
        """Of a frame's tokens."""
        picture, number = frame
        _, h, w = self.shapes[picture]
        start = self.first[picture] + number * h * w
        return slice(start, start + h * w)


def encode_native(encoding: Encoding, tower: PackedTower, pixels: list[Tensor]) -> Encoded:
    """Reduce what the tower gave.

    Args:
        pixels: of each picture or video, in whatever form; they only name it.
    """
    geometry, method, trace = encoding.geometry, encoding.method, encoding.trace
    kept = reduce_frames(encoding, tower, pixels) if method.before_llm else {}
    keys: list[str | None] = [None] * len(pixels)
    if trace.keys is not None or method.seeded:
        keys = list(picture_keys(pixels, trace))
    inside, out, pictures = method.inside_part, [], []
    for p, shape in enumerate(tower.shapes):
        t, h, w = shape
        n, rows = h * w, t * h * w
        identity = torch.arange(rows, device=tower.tokens.device)
        info = Picture(rows, rows, identity, identity, torch.ones_like(identity), None, None, None)
        own = tower.tokens[tower.first[p] : tower.first[p] + rows]
        frames = [kept.get((p, f)) for f in range(t)]
        if any(frame is not None for frame in frames):
            one_each = torch.ones(1, n, dtype=torch.long, device=own.device)
            whole = [keep_all(part[None], one_each) for part in own.split(n)]
            one = concatenate([frame or all_ for frame, all_ in zip(frames, whole, strict=True)])
            source = one.source[0]
            info.tokens, info.sizes = source.shape[0], one.sizes[0]
            info.identity = info.slot = identity[source]
            info.score = None if one.score is None else one.score[0]
            parts = one.target[0], one.contextual[0]
            info.stage = StageTrace(method.before, None, 0, identity, source, *parts)
            own = torch.full_like(own, float("nan"))
            own[: info.tokens] = one.features[0].to(own.dtype)
        info.key, info.shape = keys[p], shape
        info.share = inside.tiles.share_of_parts(t, rows, geometry.num_patches)
        out.append(own)
        pictures.append(info)
    return Encoded(pooler_output=out, pictures=pictures)  # type: ignore[arg-type]


def reduce_frames(
    encoding: Encoding, tower: PackedTower, pixels: list[Tensor]
) -> dict[Frame, Reduction]:
    """What each reduced frame keeps (G = 1 each)."""
    part = encoding.method.before_part
    groups: dict[tuple[Any, ...], list[Frame]] = defaultdict(list)
    kept: dict[Frame, Reduction] = {}
    for p, (t, h, w) in enumerate(tower.shapes):
        share = part.tiles.share_of_parts(t, t * h * w, encoding.geometry.num_patches)
        total = part.scaled(share).entry_tokens()
        if total is not None and total > t * h * w:
            continue
        budgets = [None] * t if total is None else frame_budgets(total, t)
        for f, budget in enumerate(budgets):
            if budget == 0:
                kept[p, f] = nothing_of(tower.tokens[tower.places((p, f))])
            else:
                groups[(h, w), budget, share].append((p, f))
    heads = tower.key.shape[1]
    for (grid, budget, share), frames in groups.items():
        method = part.scaled(share)
        method = method if budget is None else method.with_entry(budget)
        patches = grid[0] * grid[1] * tower.per_token
        most = max(1, CHUNK_ELEMENTS // (heads * patches * ROWS_AT_ONCE))
        for first in range(0, len(frames), most):
            some = frames[first : first + most]
            view = view_of(encoding, tower, pixels, some, grid)
            if encoding.method.before == "encoder":
                reductions = method.encoder_stage(view)
            else:
                reductions = method.projected_stage(ProjectedView(view.features, view))
            each = per_picture(reductions, len(some))
            kept |= {frame: own for frame, own in zip(some, each, strict=True) if own is not None}
    return kept


def view_of(
    encoding: Encoding,
    tower: PackedTower,
    pixels: list[Tensor],
    frames: list[Frame],
    grid: tuple[int, int],
) -> MergedView:
    """Frames of one size as a method sees them."""
    k, trace = tower.per_token, encoding.trace
    places = [tower.places(frame) for frame in frames]

    def heads(packed: Tensor) -> Tensor:
        """[G, H, k n, d]."""
        own = [packed[place.start * k : place.stop * k] for place in places]
        return torch.stack(own).transpose(1, 2)

    def keys() -> list[str]:
        names = picture_keys(pixels, trace)
        several = [tower.shapes[p][0] > 1 for p, _ in frames]
        pairs = zip(frames, several, strict=True)
        return [f"{names[p]}/{f}" if many else names[p] for (p, f), many in pairs]

    def questions() -> list[str]:
        names = picture_questions(pixels, trace)
        return [names[p] for p, _ in frames]

    features = torch.stack([tower.tokens[place] for place in places])
    whole = (grid[0], grid[1] * k)
    patches = EncoderView(
        features,
        heads(tower.query),
        heads(tower.key),
        tower.scale,
        False,
        whole,
        make_keys=keys,
        make_questions=questions,
    )
    # Frames of one size are reordered alike.
    order = tower.order[places[0]] - places[0].start
    groups = order[:, None] * k + torch.arange(k)
    return MergedView(features, patches, groups, grid)


def nothing_of(tokens: Tensor) -> Reduction:
    """A frame [n, D'] dropped."""
    every = torch.arange(tokens.shape[0], device=tokens.device)[None]
    return keep_only(tokens[None], torch.ones_like(every), every[:, :0])
