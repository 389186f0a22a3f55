"""One LLM stage on a batch: group pictures that look alike, let the method reduce them, pack
again.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visiondrop.adapters.base import Adapter
from visiondrop.decoder_views import RowAttention, RowView
from visiondrop.layout import Row, Segment, pack
from visiondrop.merging import Reduction, per_picture
from visiondrop.newlines import restore, visible
from visiondrop.reducer import Reducer
from visiondrop.trace import StageTrace
from visiondrop.transfer import to_device
from visiondrop.views import DecoderView

__all__ = ["LayerInput", "StageInput", "StageOutcome", "run_stage"]


@dataclass
class LayerInput:
    """What a decoder layer reads.

    Attributes:
        layer: the module.
        hidden: [B, S, D], left-padded; cos, sin: [B or 1, S, d], RoPE of the present positions.
    """

    layer: Any
    hidden: Tensor
    cos: Tensor
    sin: Tensor


@dataclass
class StageInput:
    """A batch before a stage.

    Attributes:
        index: 0-based decoder layer before which the stage acts.
        now: what that layer is about to read; before: what the layer before it read, for methods
            that look back.
        rows: the layout; places: [B, S] original positions, None where positions are renumbered.
        entry: input embeddings [B, S0, D] and their layout, for methods that use them.
        tail: tokens at each row's end that were generated (only without a cache).
        grid: (rows, columns) of a whole picture.
        norm: the decoder's last norm.
    """

    index: int
    now: LayerInput
    rows: list[Row]
    places: Tensor | None
    before: LayerInput | None
    entry: tuple[Tensor, list[Row]] | None
    tail: int
    grid: tuple[int, int]
    norm: Callable[[Tensor], Tensor]


@dataclass
class StageOutcome:
    """A batch after a stage: hidden states [B, S', D], original positions, layout, records per
    row.
    """

    hidden: Tensor
    places: Tensor | None
    rows: list[Row]
    stages: list[list[StageTrace]]


def sample_keys(segments: list[Segment]) -> list[str]:
    """The key of each picture's sample, empty where none was given."""
    return [segment.key or "" for segment in segments]


def shape_of(row: Row, tail: int = 0) -> tuple[Any, ...]:
    """What two rows share whose tokens mean the same place by place."""
    return row.length - tail, *((s.start, s.length) for s in row.segments)


def score_after(reduction: Reduction, before: Tensor | None) -> Tensor | None:
    """What each token carries on: as the reduction says, else what its source carried."""
    if reduction.score is not None:
        return reduction.score[0]
    return None if before is None else before[reduction.source[0]]


def text_after(row: Row, segment: Segment, tail: int = 0) -> list[int]:
    """Places of the row's text tokens after a picture."""
    visual = {p for s in row.segments for p in range(s.start, s.start + s.length)}
    first = segment.start + segment.length
    return [p for p in range(first, row.length - tail) if p not in visual]


def grid_of(segment: Segment) -> tuple[int, int] | None:
    """(rows, columns) of a picture of native resolution, a video's frames below each other."""
    if segment.shape is None:
        return None
    frames, rows, columns = segment.shape
    return frames * rows, columns


def run_stage(adapter: Adapter, method: Reducer, stage: StageInput) -> StageOutcome:
    """Reduce before decoder layer `stage.index`."""
    hidden, rows = stage.now.hidden, stage.rows
    batch, width, _ = hidden.shape
    whole = method.reads_text or method.looks_back or method.uses_input
    groups: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for r, row in enumerate(rows):
        for s, segment in enumerate(row.segments):
            if segment.length == 0:
                continue
            key: tuple[Any, ...] = (segment.start, segment.length)
            if whole:
                key = (*key, s, shape_of(row, stage.tail))
            if stage.entry is not None:
                key = (*key, shape_of(stage.entry[1][r], stage.tail))
            if segment.newlines is not None:
                key = (*key, segment.newlines.tobytes())
            key = (*key, segment.full, segment.share, segment.portion)
            groups[(*key, segment.shape)].append((r, s))

    pool, place_pool, size = [hidden.reshape(batch * width, -1)], [], batch * width
    places = stage.places
    if places is not None:
        places = places.to(hidden.device)
        place_pool.append(places.reshape(-1))
    fresh: dict[tuple[int, int], tuple[int, Segment]] = {}
    records: list[list[StageTrace]] = [[] for _ in rows]
    for members in groups.values():
        segments = [rows[r].segments[s] for r, s in members]
        view = make_view(adapter, stage, members, segments, whole)
        share, portion, inside = segments[0].share, segments[0].portion, method.inside_part
        acting = method if share == 1 else inside.scaled(share)
        acting = acting if portion is None else inside.counted(portion)
        reductions = per_picture(acting.llm_stage(view), len(members))
        for (r, s), segment, reduction in zip(members, segments, reductions, strict=True):
            record = StageTrace("llm", stage.index, segment.picture, segment.identity)
            records[r].append(record)
            if reduction is None:
                continue
            newlines = None
            if segment.newlines is not None:
                first = width - rows[r].length + segment.start
                states = hidden[r, first : first + segment.length]
                reduction, newlines = restore(
                    segment, reduction, states, inside.tiles.newlines, inside.in_place
                )
            source = record.source = reduction.source[0]
            record.target, record.contextual = reduction.target[0], reduction.contextual[0]
            count = source.shape[0]
            fresh[r, s] = (
                size,
                Segment(
                    0,
                    count,
                    segment.picture,
                    segment.identity.index_select(0, source),
                    reduction.sizes[0],
                    segment.key,
                    segment.full,
                    score_after(reduction, segment.score),
                    segment.grid,
                    newlines,
                    segment.share,
                    segment.shape,
                    segment.portion,
                ),
            )
            pool.append(reduction.features[0].to(hidden.dtype))
            size += count
            if places is not None:
                first = width - rows[r].length + segment.start
                place_pool.append(places[r, first : first + segment.length][source])

    for own in records:  # groups may come in any order, pictures are told in theirs
        own.sort(key=lambda record: record.picture)
    picks, new_rows = zip(
        *(repack(row, r * width + width - row.length, fresh, r) for r, row in enumerate(rows)),
        strict=True,
    )
    packed = pack(torch.cat(pool), list(picks))
    new_places = pack(torch.cat(place_pool), list(picks)) if places is not None else None
    return StageOutcome(packed, new_places, list(new_rows), records)


def make_view(
    adapter: Adapter,
    stage: StageInput,
    members: list[tuple[int, int]],
    segments: list[Segment],
    whole: bool,
) -> DecoderView:
    """What the method sees of pictures (row, segment) that look alike."""
    now, rows = stage.now, stage.rows
    width = now.hidden.shape[1]
    offsets = [(r, width - rows[r].length) for r, _ in members]
    start, end = segments[0].start, segments[0].start + segments[0].length

    def cut(tensor: Tensor, first: int, last: int) -> Tensor:
        """Places `first` to `last` of the members' rows; one row of RoPE may stand for all."""
        shared = tensor.shape[0] == 1
        if len(offsets) == 1:
            r, o = offsets[0]
            return tensor[0 if shared else r, o + first : o + last][None]
        return torch.stack([tensor[0 if shared else r, o + first : o + last] for r, o in offsets])

    def project() -> tuple[Tensor, Tensor]:
        tensors = (cut(t, 0, end) for t in (now.hidden, now.cos, now.sin))
        query, key = adapter.attention_inputs(now.layer, *tensors, visual=end - start)
        return query if seen is None else query[:, :, seen], key

    def attention(layer: LayerInput, length: int) -> RowAttention:
        parts = (t.to(now.hidden.device) for t in (layer.hidden, layer.cos, layer.sin))
        states, cos, sin = (cut(part, 0, length) for part in parts)
        part_of = functools.partial(adapter.attention_part, layer.layer)
        return RowAttention(states, cos, sin, part_of, adapter.scaling(layer.layer))

    seen = visible(segments[0], now.hidden.device)

    def of_tokens(tensors: list[Tensor]) -> Tensor:
        """[G, n, ...] of what the method sees, from [length, ...] of each picture."""
        whole = tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
        return whole if seen is None else whole[:, seen.to(whole.device)]

    scores = [segment.score for segment in segments]
    states = cut(now.hidden, start, end)
    view = DecoderView(
        stage.index,
        states if seen is None else states[:, seen],
        of_tokens([segment.sizes for segment in segments]),
        project,
        adapter.scaling(now.layer),
        make_keys=functools.partial(sample_keys, segments),
        identity=of_tokens([segment.identity for segment in segments]),
        grid=grid_of(segments[0]) or stage.grid,
        full=segments[0].full,
        score=None if any(s is None for s in scores) else of_tokens(scores),  # type: ignore[arg-type]
        places=None if seen is None else start + seen,
    )
    if whole:
        first_row = rows[members[0][0]]
        length = first_row.length - stage.tail
        this = attention(now, length)
        after = text_after(first_row, segments[0], stage.tail)
        view.row = RowView(
            start,
            this.hidden,
            to_device(torch.tensor(after, dtype=torch.long), now.hidden.device),
            this,
            attention(stage.before, length) if stage.before is not None else None,
            entry_of(stage, members) if stage.entry is not None else None,
            stage.norm,
        )
    return view


def entry_of(stage: StageInput, members: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Input embeddings of the members' pictures [G, n0, D] and of the text after them [G, a, D]."""
    assert stage.entry is not None
    embeds, rows = stage.entry
    visual, text = [], []
    for r, s in members:
        segment, offset = rows[r].segments[s], embeds.shape[1] - rows[r].length
        visual.append(embeds[r, offset + segment.start :][: segment.length])
        after = text_after(rows[r], segment, stage.tail)
        text.append(
            embeds[r, to_device(offset + torch.tensor(after, dtype=torch.long), embeds.device)]
        )
    return torch.stack(visual), torch.stack(text)


def repack(
    row: Row, base: int, fresh: dict[tuple[int, int], tuple[int, Segment]], r: int
) -> tuple[np.ndarray, Row]:
    """Which rows of the pool make up row `r` now, and its new layout; `base` is its first place."""
    at, parts, new_row = 0, [], Row(0)
    for s, segment in enumerate(row.segments):
        parts.append(np.arange(base + at, base + segment.start))
        start = sum(map(len, parts))
        first, moved = fresh.get((r, s), (base + segment.start, segment))
        parts.append(np.arange(first, first + moved.length))
        new_row.segments.append(replace(moved, start=start))
        at = segment.start + segment.length
    parts.append(np.arange(base + at, base + row.length))
    picked = np.concatenate(parts)
    new_row.length = len(picked)
    return picked, new_row
