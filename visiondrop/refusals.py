"""Calls that a shortened sequence cannot answer, refused before any compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from visiondrop.adapters.base import Geometry, VisualInput
from visiondrop.reducer import Reducer
from visiondrop.registry import NEEDS, working

__all__ = ["refuse_foreign_features", "refuse_lost_logits", "refuse_single_frames"]


def refuse_foreign_features(method: Reducer, geometry: Geometry) -> None:
    """Raise `ValueError` on features made outside the block where a method would have made them,
    or must know which tiles and newlines they are.
    """
    packed = geometry.crops and not geometry.single
    if packed or (geometry.crops and method.inside_part.tiles.budget != "picture"):
        raise ValueError(
            f"{method.name!r} was handed features of any-resolution pictures encoded elsewhere "
            "(mm_encoder_outputs from outside the `with` block, or prefill_chunk_size), which do "
            "not say where tiles and newlines are; give pixel_values, leave prefill_chunk_size "
            "unset"
        )
    if method.before_llm:
        raise ValueError(
            f"{method.name!r} reduces at the encoder but was handed features encoded elsewhere "
            "(mm_encoder_outputs from outside the `with` block, or prefill_chunk_size); give "
            "pixel_values, leave prefill_chunk_size unset"
        )


def refuse_lost_logits(
    method: Reducer, inputs: Sequence[VisualInput], kwargs: dict[str, Any]
) -> None:
    """Refuse a forward that asks for logits of tokens that may be dropped.

    Args:
        inputs: the model's kinds of visual input; kwargs: of its forward.

    Raises `ValueError` with the remedy.
    """
    if kwargs.get("labels") is not None:
        raise ValueError(
            "labels were given, but dropped tokens have no logits to compare them with; train "
            "or score losses outside the `with` block"
        )
    whole = isinstance(keep := kwargs.get("logits_to_keep", 0), int) and keep == 0
    raw = any(kind.given(kwargs) for kind in inputs)
    with_pictures = raw or kwargs.get("mm_encoder_outputs")
    if whole and with_pictures and (method.before_llm or method.inside_llm):
        raise ValueError(
            "logits of all positions were asked for, but dropped tokens have none; pass "
            "logits_to_keep=n for the last n positions (1 for the next token)"
        )


def refuse_single_frames(
    method: Reducer, geometry: Geometry, kind: VisualInput, input_ids: Tensor
) -> None:
    """Refuse prompts with one picture where the method compares the frames of a prompt. A video
    has its own.

    Args:
        input_ids: [B, S].

    Raises `ValueError` naming the methods that work there.
    """
    if "frames" not in method.needs or kind.modality == "video":
        return
    rows = geometry.grid[0] * geometry.grid[1] + int(geometry.cls_in_prompt)
    for r, count in enumerate((input_ids == kind.token_id).sum(-1).tolist()):
        tiled = geometry.crops and not geometry.single
        if 0 < count <= rows or (count and tiled):
            has = "pictures of several tiles" if tiled else "one"
            raise ValueError(
                f"{method.name!r} needs {NEEDS['frames']}, and prompt {r} has {has}; methods that "
                f"work here: {', '.join(working(geometry, 'frames'))}"
            )
