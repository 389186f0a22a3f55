"""The modified encoder: vision tower, one reduction at its end, projector.

The number of feature rows stays what the placeholders in the prompt expect: rows that were dropped
are NaN, so that stock code carries them and nothing wrong can come of one that slips through. What
the rows mean travels as an attribute of each picture's tensor; stock beam expansion repeats the
same objects.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visiondrop.adapters.base import Adapter, Geometry
from visiondrop.merging import Reduction
from visiondrop.reducer import Reducer
from visiondrop.trace import CLS, StageTrace, Trace
from visiondrop.views import EncoderView

__all__ = ["Picture", "encode_pictures", "picture_of"]

_ATTRIBUTE = "_visiondrop_picture"


@dataclass
class Picture:
    """One encoded picture.

    Attributes:
        rows: feature rows that stock code sees (placeholders of the picture in the prompt).
        tokens: visual tokens that enter the decoder, `tokens` <= `rows` unless all and CLS are
            kept.
        identity: [tokens] patch id of each (CLS is -1).
        slot: [tokens] place of each in the unpruned run of placeholders.
        sizes: [tokens] patches that each stands for.
        overflow: [tokens - rows, D'] embeddings beyond `rows`; usually none.
        stage: record of the encoder stage, None where there was none.
        key: makes the sample key.
    """

    rows: int
    tokens: int
    identity: Tensor
    slot: Tensor
    sizes: Tensor
    overflow: Tensor | None
    stage: StageTrace | None
    key: str | None


def picture_of(features: Tensor) -> Picture | None:
    """What the rows of a picture's features mean; None where they were made elsewhere."""
    return getattr(features, _ATTRIBUTE, None)


def pixel_key(pixels: Tensor) -> str:
    """A picture's name where none was given: a hash of its pixels."""
    data = pixels.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def picture_keys(pixel_values: Tensor, trace: Trace) -> list[str]:
    """One key per picture; each is repeated where generate() repeated pictures for beams or
    samples.

    Raises `ValueError` where the number of keys fits neither.
    """
    count = pixel_values.shape[0]
    if trace.keys is None:
        return [pixel_key(pixels) for pixels in pixel_values]
    if not trace.keys or count % len(trace.keys):
        raise ValueError(
            f"{len(trace.keys)} sample keys for {count} pictures: give one key per picture, in "
            "reading order (trace.set_keys), or none"
        )
    repeat = count // len(trace.keys)
    return [key for key in trace.keys for _ in range(repeat)]


def encode_pictures(
    model: nn.Module,
    adapter: Adapter,
    geometry: Geometry,
    method: Reducer,
    trace: Trace,
    pixel_values: Tensor,
    **kwargs: Any,
) -> list[Tensor]:
    """Encode pictures [B, 3, h, w], reduce, project.

    Returns: B tensors [rows, D']; each knows its `Picture` (`picture_of`).
    """
    if trace.pictures is None:
        tower = adapter.encode(model, pixel_values, **kwargs)
    else:
        run = functools.partial(adapter.encode, model, **kwargs)
        tower = trace.towers.encode(trace.pictures, pixel_values, run)
    has_cls, batch = geometry.has_cls, tower.features.shape[0]
    rows = geometry.num_patches + int(geometry.cls_in_prompt)
    tokens_in = tower.features.shape[1]
    device = tower.features.device
    identity = torch.arange(tokens_in, device=device) - (1 if has_cls else 0)

    reduction: Reduction | None = None
    if method.before_llm:
        view = EncoderView(
            tower.features,
            tower.query,
            tower.key,
            tower.scale,
            has_cls,
            geometry.grid,
            make_keys=lambda: picture_keys(pixel_values, trace),
        )
        reduction = method.encoder_stage(view)

    if reduction is None:
        first = tokens_in - rows
        features = tower.features[:, first:]
        ids = identity[first:].expand(batch, -1)
        sizes = torch.ones_like(ids)
    else:
        features, sizes = reduction.features, reduction.sizes
        ids = identity[reduction.source]

    embeddings = adapter.project(model, features)
    tokens = embeddings.shape[1]
    out = embeddings.new_full((batch, rows, embeddings.shape[2]), float("nan"))
    out[:, : min(tokens, rows)] = embeddings[:, :rows]
    # CLS takes the place of the first patch where the unpruned prompt has no row for it.
    slots = (ids + int(geometry.cls_in_prompt)).clamp(min=0)
    names: list[str | None] = [None] * batch
    if trace.keys is not None:
        names = list(picture_keys(pixel_values, trace))

    pictures = []
    for i, picture in enumerate(out.unbind(0)):
        stage = None
        if reduction is not None:
            stage = StageTrace(
                "encoder",
                None,
                0,
                identity,
                reduction.source[i],
                reduction.target[i],
                reduction.contextual[i],
            )
        overflow = embeddings[i, rows:] if tokens > rows else None
        info = Picture(rows, tokens, ids[i], slots[i], sizes[i], overflow, stage, names[i])
        setattr(picture, _ATTRIBUTE, info)
        pictures.append(picture)
    return pictures


def whole_picture(rows: int, geometry: Geometry, device: torch.device) -> Picture:
    """A picture whose features were made outside: all its rows, unpruned."""
    identity = torch.arange(rows, device=device)
    slot = identity
    if geometry.cls_in_prompt:
        identity = identity - 1
    assert CLS == -1
    return Picture(rows, rows, identity, slot, torch.ones_like(slot), None, None, None)
