"""Calls that a shortened sequence cannot answer, refused before any compute."""

from __future__ import annotations

from typing import Any

from visiondrop.reducer import Reducer

__all__ = ["refuse_lost_logits"]


def refuse_lost_logits(method: Reducer, kwargs: dict[str, Any]) -> None:
    """Refuse a forward that asks for logits of tokens that may be dropped.

    Args:
        kwargs: of the model's forward.

    Raises `ValueError` with the remedy.
    """
    if kwargs.get("labels") is not None:
        raise ValueError(
            "labels were given, but dropped tokens have no logits to compare them with; train "
            "or score losses outside the `with` block"
        )
    whole = isinstance(keep := kwargs.get("logits_to_keep", 0), int) and keep == 0
    with_pictures = kwargs.get("pixel_values") is not None or kwargs.get("mm_encoder_outputs")
    if whole and with_pictures and (method.before_llm or method.inside_llm):
        raise ValueError(
            "logits of all positions were asked for, but dropped tokens have none; pass "
            "logits_to_keep=n for the last n positions (1 for the next token)"
        )
