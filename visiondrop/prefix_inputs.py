"""The arguments of a prompt's beginning: read, hashed, put together to a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["digest_of", "merge_inputs", "one_row", "picture_names", "rows_of"]

PIXELS = ("pixel_values", "images", "pixel_values_images", "pixel_values_videos")
"""What names of pictures stand for."""


BY_TOKEN = ("mm_token_type_ids", "token_type_ids")
"""Arguments with one value per id, which the ids themselves tell."""


def rows_of(ids: Any) -> list[Tensor]:
    """Rows of ids on the host: of [n], [B, n], or a list of rows.

    Raises `ValueError` where there is none, or an empty one.
    """
    if isinstance(ids, Tensor):
        rows = [ids] if ids.dim() == 1 else list(ids)
    else:
        items = [torch.as_tensor(row) for row in ids]
        rows = [torch.stack(items)] if items and items[0].dim() == 0 else items
    if not rows or any(row.dim() != 1 or not len(row) for row in rows):
        raise ValueError(
            f"ids of {len(rows)} rows, shapes {[tuple(row.shape) for row in rows]}: give at least "
            "one row, [n] with n > 0 each"
        )
    return [row.long().cpu() for row in rows]


def one_row(ids: Any, attention_mask: Any = None) -> Tensor:
    """[S] ids on the host, of [S] or [1, S], without padding.

    Raises `ValueError` on more rows than one.
    """
    rows = rows_of(ids)
    if len(rows) > 1:
        raise ValueError(f"{len(rows)} prompts at once: build each, or all with build_all")
    if attention_mask is None:
        return rows[0]
    return rows[0][torch.as_tensor(attention_mask).reshape(-1).cpu().bool()]


def digest_of(prompt: Mapping[str, Any], method: Mapping[str, Any]) -> str:
    """SHA-256 of a beginning and a method.

    Args:
        prompt: `input_ids`, `attention_mask` or None, and whatever the pictures are given by; with
            `names`, the pixels do not count.
        method: as JSON.
    """
    whole = hashlib.sha256(json.dumps(method, sort_keys=True).encode())
    ids = one_row(prompt["input_ids"], prompt.get("attention_mask"))
    whole.update(ids.numpy().tobytes())
    named = prompt.get("names") is not None
    for name in sorted(prompt):
        if name in ("input_ids", "attention_mask", *BY_TOKEN) or prompt[name] is None:
            continue
        whole.update(f"\0{name}\0".encode())
        if not (named and name in PIXELS):
            _add(whole, prompt[name])
    return whole.hexdigest()


def picture_names(prompt: Mapping[str, Any], tiled: bool) -> list[str] | None:
    """A hash of each picture's pixels; None where it is not known which pixels are whose.

    Args:
        tiled: whether a picture of the model has several tiles.
    """
    given = prompt.get("pixel_values", prompt.get("images"))
    pictures = [] if given is None else pictures_of(given)
    wanted = 4 if tiled else 3
    if not pictures or any(not isinstance(p, Tensor) or p.dim() != wanted for p in pictures):
        return None
    return [content_of(picture) for picture in pictures]


def content_of(picture: Tensor) -> str:
    """A picture's hash."""
    whole = hashlib.sha256()
    _add(whole, picture)
    return whole.hexdigest()


def _add(whole: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        whole.update(f"{value.dtype}{tuple(value.shape)}".encode())
        whole.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        whole.update(f"[{len(value)}".encode())
        for item in value:
            _add(whole, item)
    else:
        whole.update(f"{type(value).__name__}:{value}".encode())


def merge_inputs(prompts: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], dict[str, Any]]:
    """Rows of ids, and everything else of all prompts in their order.

    Tensors are joined along the first axis (pictures of fewer tiles get empty ones), lists end to
    end, `images` become one list of pictures, and what has one value per id is left out.

    Raises `ValueError` where arguments cannot be put together.
    """
    given = [{k: v for k, v in p.items() if v is not None} for p in prompts]
    names = {name for own in given for name in own} - {"input_ids", "attention_mask", *BY_TOKEN}
    rows = [one_row(p["input_ids"], p.get("attention_mask")) for p in given]
    out: dict[str, Any] = {}
    for name in sorted(names):
        values = [own[name] for own in given if name in own]
        if name in ("names", "keys") and any(isinstance(value, Mapping) for value in values):
            raise ValueError(f"{name} by kind ({values[0]}): give one list, in reading order")
        if name == "images":
            out[name] = [picture for value in values for picture in pictures_of(value)]
        elif all(isinstance(value, Tensor) for value in values):
            out[name] = join(values)
        elif all(isinstance(value, (list, tuple)) for value in values):
            out[name] = [item for value in values for item in value]
        elif all(value == values[0] for value in values):
            out[name] = values[0]
        else:
            raise ValueError(f"{name} differs in kind between the prompts of a batch")
    return rows, out


def pictures_of(images: Any) -> list[Tensor]:
    """LLaVA's `images` of one prompt as a list: [3, H, W], or [tiles, 3, H, W] in a list."""
    if isinstance(images, Tensor):
        return [images] if images.dim() == 3 else list(images)
    return list(images)


def join(tensors: list[Tensor]) -> Tensor:
    """Along the first axis; a second axis of pictures' tiles is filled up with zeros."""
    if tensors[0].dim() == 5:
        most = max(t.shape[1] for t in tensors)
        tensors = [
            torch.cat([t, t.new_zeros(len(t), most - t.shape[1], *t.shape[2:])], 1) for t in tensors
        ]
    return torch.cat(tensors)
