"""One LLM stage on a batch: group pictures that look alike, let the method reduce them, pack
again.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visiondrop.adapters.base import Adapter
from visiondrop.layout import Row, Segment, pack
from visiondrop.merging import gather
from visiondrop.reducer import Reducer
from visiondrop.trace import StageTrace
from visiondrop.views import DecoderView

__all__ = ["StageOutcome", "run_stage"]


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


def run_stage(
    adapter: Adapter,
    layer: Any,
    method: Reducer,
    index: int,
    hidden: Tensor,
    cos_sin: tuple[Tensor, Tensor],
    rows: list[Row],
    places: Tensor | None,
) -> StageOutcome:
    """Reduce before decoder layer `index`.

    Args:
        hidden: [B, S, D], left-padded, what the layer is about to read.
        cos_sin: RoPE of the present positions, [B or 1, S, d] each.
        rows: the batch's layout.
        places: [B, S] original positions, or None where positions are renumbered.
    """
    batch, width, _ = hidden.shape
    cos, sin = (t.expand(batch, -1, -1) for t in cos_sin)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for r, row in enumerate(rows):
        for s, segment in enumerate(row.segments):
            groups[segment.start, segment.length].append((r, s))

    pool, place_pool, size = [hidden.reshape(batch * width, -1)], [], batch * width
    if places is not None:
        places = places.to(hidden.device)
        place_pool.append(places.reshape(-1))
    fresh: dict[tuple[int, int], tuple[int, Segment]] = {}
    records: list[list[StageTrace]] = [[] for _ in rows]
    for (start, length), members in groups.items():
        end = start + length
        offsets = [(r, width - rows[r].length) for r, _ in members]

        def cut(
            tensor: Tensor, first: int, last: int, at: list[tuple[int, int]] = offsets
        ) -> Tensor:
            return torch.stack([tensor[r, o + first : o + last] for r, o in at])

        def project(
            last: int = end, visual: int = length, at: list[tuple[int, int]] = offsets
        ) -> tuple[Tensor, Tensor]:
            tensors = [torch.stack([t[r, o : o + last] for r, o in at]) for t in (hidden, cos, sin)]
            return adapter.attention_inputs(layer, *tensors, visual=visual)

        segments = [rows[r].segments[s] for r, s in members]
        view = DecoderView(
            index,
            cut(hidden, start, end),
            torch.stack([segment.sizes for segment in segments]),
            project,
            adapter.scaling(layer),
            make_keys=functools.partial(sample_keys, segments),
        )
        reduction = method.llm_stage(view)
        for g, ((r, s), segment) in enumerate(zip(members, segments, strict=True)):
            if reduction is None:
                records[r].append(StageTrace("llm", index, segment.picture, segment.identity))
                continue
            source = reduction.source[g]
            count = source.shape[0]
            new = Segment(
                0, count, segment.picture, segment.identity[source], reduction.sizes[g], segment.key
            )
            fresh[r, s] = (size + g * count, new)
            records[r].append(
                StageTrace(
                    "llm",
                    index,
                    segment.picture,
                    segment.identity,
                    source,
                    reduction.target[g],
                    reduction.contextual[g],
                )
            )
        if reduction is not None:
            pool.append(reduction.features.flatten(0, 1).to(hidden.dtype))
            size += pool[-1].shape[0]
            if places is not None:
                place_pool.append(gather(cut(places, start, end), reduction.source).flatten())

    picks, new_rows = [], []
    for r, row in enumerate(rows):
        base, at, parts, new_row = r * width + width - row.length, 0, [], Row(0)
        for s, segment in enumerate(row.segments):
            parts.append(np.arange(base + at, base + segment.start))
            length = sum(map(len, parts))
            if (r, s) in fresh:
                first, moved = fresh[r, s]
                parts.append(np.arange(first, first + moved.length))
            else:
                moved = segment
                parts.append(np.arange(base + segment.start, base + segment.start + segment.length))
            new_row.segments.append(
                Segment(length, moved.length, moved.picture, moved.identity, moved.sizes, moved.key)
            )
            at = segment.start + segment.length
        parts.append(np.arange(base + at, base + row.length))
        picks.append(np.concatenate(parts))
        new_row.length = len(picks[-1])
        new_rows.append(new_row)
    packed = pack(torch.cat(pool), picks)
    new_places = pack(torch.cat(place_pool), picks) if places is not None else None
    return StageOutcome(packed, new_places, new_rows, records)
