"""Positions with several planes (M-RoPE of the Qwen2-VL families: time, row, column).

There a token's position is no count of the tokens before it: a picture of h x w tokens takes
max(h, w) steps, and each of its tokens says where it stood in the picture. Renumbering what is kept
would take that away, so the positions of the unpruned sequence stay: a contextual token has its
reference's, and decoding goes on where the unpruned sequence ended, by the model's own count.

P is the number of planes (3).
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor

from visiondrop.cache import cache_name, is_pruned
from visiondrop.reducer import Reducer

__all__ = [
    "PLANES",
    "KeptCount",
    "keeping_positions",
    "new_planes",
    "note_deltas",
    "prompt_planes",
    "resume_deltas",
]

PLANES = 3


def keeping_positions(method: Reducer) -> Reducer:
    """The same method with original positions, which M-RoPE needs.

    A method whose own default is "renumbered" (which only stands for what its authors did on other
    models) keeps them without a word.

    Raises `ValueError` where renumbering was asked for against the method's default.
    """
    parts = getattr(method, "parts", None)
    if parts is not None:
        return type(method)(*map(keeping_positions, parts))  # type: ignore[call-arg]
    if method.positions == "original":
        return method
    if type(method).positions == "original":
        raise ValueError(
            f"{method.name}: positions='renumbered' on a model with M-RoPE, whose tokens carry "
            "their row and column in their positions: leave out positions='renumbered' (or say "
            "'original')"
        )
    method = copy.copy(method)
    method.positions = "original"
    return method


def prompt_planes(given: Tensor | None, mask: Tensor | None, embeds: Tensor) -> Tensor:
    """[P, B, S] positions of each row's real tokens, moved to the left: plane value i of a row is
    that of its i-th real token.

    Args:
        given: what the model computed: [P or 1 + P, B, S] (the first of 1 + P only tells packed
            sequences apart), [B, S] for the same in all planes, None for columns.
        mask: [B, S] of padding, or None; embeds: [B, S, D].
    """
    planes = as_planes(given, embeds, 0)
    if mask is None:
        return planes
    order = (~mask.bool()).to(torch.uint8).sort(dim=1, stable=True).indices
    return planes.gather(2, order.to(planes.device).expand_as(planes))


def new_planes(given: Tensor | None, embeds: Tensor, past: int) -> Tensor:
    """[P, B, n] positions of n new tokens while decoding.

    Args:
        given: as in `prompt_planes`; of more than n columns the last are meant.
        embeds: [B, n, D]; past: tokens of the unpruned sequence before them.
    """
    return as_planes(given, embeds, past)[..., -embeds.shape[1] :]


def note_deltas(base: Any, cache: Any, batch: int) -> None:
    """Keep on the cache by how much the positions of the new tokens differ from their count.

    The stock model keeps this on itself (`rope_deltas`), where the next prompt overwrites it.

    Args:
        base: the model with `rope_deltas`; cache: a pruned one, or None; batch: rows of the prompt.
    """
    deltas = base.rope_deltas
    if cache is not None and deltas is not None and batch % deltas.shape[0] == 0:
        cache.state["rope_deltas"] = deltas.repeat_interleave(batch // deltas.shape[0], 0)


def resume_deltas(base: Any, cache: Any, batch: int | None = None) -> None:
    """Give the model back what `note_deltas` kept, before it counts the positions of new tokens.

    Args:
        batch: prompts, where each stands in several rows of the cache (beams, samples); None for as
            many as there are rows.
    """
    deltas = cache.state.get("rope_deltas")
    if deltas is not None:
        base.rope_deltas = deltas if batch is None else deltas[:: max(1, len(deltas) // batch)]


class KeptCount:
    """While it is there, generate() that goes on from a kept cache counts from that cache's own
    prompt (`resume_deltas`), and not from the prompt that the model saw last.
    """

    function = "_prepare_position_ids_for_generation"

    def __init__(self, model: Any, base: Any) -> None:
        self.model, self.saved = model, model.__dict__.get(self.function)
        stock = getattr(model, self.function)

        @functools.wraps(stock)
        def prepare(inputs: Any, model_kwargs: Any) -> Any:
            if is_pruned(cache := model_kwargs.get(cache_name(model_kwargs))):
                resume_deltas(base, cache, inputs.shape[0])
            return stock(inputs, model_kwargs)

        setattr(model, self.function, prepare)

    def remove(self) -> None:
        """The model is as before."""
        if self.saved is not None:
            setattr(self.model, self.function, self.saved)
        else:
            self.model.__dict__.pop(self.function, None)


def as_planes(given: Tensor | None, embeds: Tensor, past: int) -> Tensor:
    """[P, B, S] of whatever the model gives its decoder, as the decoder itself reads it."""
    batch, length = embeds.shape[:2]
    if given is None:
        given = torch.arange(past, past + length, device=embeds.device)[None]
    if given.dim() == 2:
        given = given[None]
    if given.shape[0] == 1 + PLANES:
        given = given[1:]
    return given.expand(PLANES, batch, -1)
