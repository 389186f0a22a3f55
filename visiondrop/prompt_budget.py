"""The pictures of a prompt split one budget: nothing is encoded before the prompt is read.

How many pictures stand in a prompt is not known where they are encoded (generate() encodes them
before it calls the model). So the stock code gets feature rows that are all NaN, and the vision
tower runs once the prompt is read, on all pictures of the batch at once, as it would have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visiondrop.adapters.base import Adapter
from visiondrop.encoder import Encoded, Encoding, Picture
from visiondrop.pictures import Portion

__all__ = ["Waiting", "encode_or_wait", "encode_waiting", "share_stages"]


@dataclass
class Call:
    """One call of a base model's `get_image_features` that is put off.

    Attributes:
        encode: makes what it gives, from the portion of each picture.
        made: what was made, by portions: generation without a cache asks again for every token.
    """

    encode: Callable[[tuple[Portion | None, ...]], Encoded]
    made: dict[tuple[Portion | None, ...], list[Picture]] = field(default_factory=dict)


@dataclass
class Waiting:
    """A picture that waits for its prompt.

    Attributes:
        rows: placeholders in the prompt; patches: visual tokens of the unpruned model that are no
            newlines; index: its place in its call.
    """

    rows: int
    patches: int
    call: Call
    index: int


def encode_or_wait(
    adapter: Adapter,
    modality: str,
    model: nn.Module,
    encoding: Encoding,
    embeddings: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Encoded:
    """What the adapter's `features` gives; where pictures split the counts, rows of NaN and the
    pictures that they stand for.

    Args:
        embeddings: [V, D'], of whose width, type and device such rows are.
        args, kwargs: of the pictures, as the stock function takes them.
    """
    method = encoding.method
    if not (method.before_llm and method.before_part.pictures.split):
        return adapter.features(modality, model, encoding, *args, **kwargs)

    def encode(portions: tuple[Portion | None, ...]) -> Encoded:
        own = dataclasses.replace(encoding, portions=portions)
        return adapter.features(modality, model, own, *args, **kwargs)

    extents, call = adapter.extents(modality, model, *args, **kwargs), Call(encode)
    rows = [embeddings.new_full((n, embeddings.shape[-1]), float("nan")) for n, _ in extents]
    pictures = [Waiting(n, patches, call, i) for i, (n, patches) in enumerate(extents)]
    return Encoded(pooler_output=rows, pictures=pictures)  # type: ignore[arg-type]


def encode_waiting(method: Any, rows: list[list[Any]]) -> list[list[Picture]]:
    """The pictures of each prompt, those that waited encoded with their portions."""
    given: dict[int, dict[int, Portion | None]] = {}
    calls: dict[int, Call] = {}
    for own in rows:
        patches = [patches_of(picture) for picture in own]
        portions = method.before_part.pictures.portions(patches)
        for picture, portion in zip(own, portions, strict=True):
            if isinstance(picture, Waiting):
                # A prompt that stands in several rows (beams) has the same portions in each.
                calls[id(picture.call)] = picture.call
                given.setdefault(id(picture.call), {})[picture.index] = portion
    for key, call in calls.items():
        portions = tuple(given[key][i] for i in sorted(given[key]))
        if portions not in call.made:
            call.made[portions] = unpacked(call.encode(portions))
    done = {k: call.made[tuple(given[k][i] for i in sorted(given[k]))] for k, call in calls.items()}
    return [
        [done[id(p.call)][p.index] if isinstance(p, Waiting) else p for p in own] for own in rows
    ]


def unpacked(encoded: Encoded) -> list[Picture]:
    """The pictures with all their embeddings in `overflow`: the rows of stock code hold none."""
    assert encoded.pictures is not None and encoded.pooler_output is not None
    out = []
    for rows, picture in zip(encoded.pooler_output, encoded.pictures, strict=True):
        own = rows[: picture.tokens - picture.spill]
        if picture.overflow is not None:
            own = torch.cat([own, picture.overflow])
        out.append(dataclasses.replace(picture, overflow=own))
    return out


def patches_of(picture: Any) -> int:
    """Visual tokens of a picture in the unpruned model that are no newlines."""
    if isinstance(picture, Waiting):
        return picture.patches
    return int(getattr(picture.grid, "patches", picture.rows))


def share_stages(method: Any, rows: list[list[Picture]]) -> list[list[Picture]]:
    """The pictures of each prompt, with their portions of the counts of LLM stages."""
    pictures = method.inside_part.pictures
    if not (pictures.split and method.inside_llm):
        return rows
    return [
        [
            dataclasses.replace(picture, portion=portion)
            for picture, portion in zip(
                own, pictures.portions([patches_of(p) for p in own]), strict=True
            )
        ]
        for own in rows
    ]
