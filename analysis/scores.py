"""The scores that methods judge visual tokens by, each as a function of a view.

Rows are computed in chunks from queries and keys; no attention map of a layer is formed, so that a
picture of 2,880 tokens costs a few rows of memory on a model of any size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from visiondrop.scoring import CHUNK_ELEMENTS, column_mean
from visiondrop.views import DecoderView, EncoderView

__all__ = ["ENCODER_SCORES", "LLM_SCORES", "SCORE_NAMES", "mean_row", "visual_columns"]


def visual_columns(view: DecoderView) -> Tensor:
    """[n], places of the visual tokens among the row's tokens."""
    if view.places is not None:
        return view.places
    return torch.arange(view.start, view.end, device=view.hidden.device)


def mean_row(view: DecoderView, places: Tensor, columns: Tensor) -> Tensor:
    """[G, c], attention of the query rows at `places` [r] to the tokens at `columns` [c].

    Softmax over the whole row under the causal mask, mean over heads and over the r rows.
    """
    length, heads = view.length, view.this.key.shape[1]
    group = view.hidden.shape[0]
    query_heads = view.this.query(places[:1]).shape[1] if len(places) else heads
    chunk = max(1, CHUNK_ELEMENTS // max(1, group * query_heads * length))
    total = torch.zeros(group, len(columns), device=view.hidden.device, dtype=torch.float64)
    for first in range(0, len(places), chunk):
        rows = view.this.rows(places[first : first + chunk])
        total += rows[..., columns].mean(1).sum(1, dtype=torch.float64)
    return total / max(1, len(places))


def last_text(view: DecoderView) -> Tensor:
    """FastV's and PyramidDrop's: attention of the prompt's last token."""
    last = torch.tensor([view.length - 1], device=view.hidden.device)
    return mean_row(view, last, visual_columns(view))


def all_text(view: DecoderView) -> Tensor:
    """Mean attention of all text tokens after the picture.

    Raises `ValueError` where no text follows.
    """
    if not len(view.text_places):
        raise ValueError("no text follows the picture, so no text can be asked what matters")
    return mean_row(view, view.text_places, visual_columns(view))


def visual(view: DecoderView) -> Tensor:
    """VisionDrop's: mean attention of the visual tokens, causal, as released."""
    return column_mean(view.query, view.key, view.scale, places=view.places)


def visual_corrected(view: DecoderView) -> Tensor:
    """The same over what uniform attention would give (`causal=expectation`)."""
    return column_mean(
        view.query, view.key, view.scale, correction="expectation", places=view.places
    )


def visual_no_mask(view: DecoderView) -> Tensor:
    """The same without the causal mask (`causal=no_mask`)."""
    return column_mean(view.query, view.key, view.scale, correction="no_mask", places=view.places)


LLM_SCORES: dict[str, Callable[[DecoderView], Tensor]] = {
    "last_text": last_text,
    "all_text": all_text,
    "visual": visual,
    "visual_corrected": visual_corrected,
    "visual_no_mask": visual_no_mask,
}
"""Name -> score [G, n] of the visual tokens before a decoder layer."""


def cls(view: EncoderView) -> Tensor:
    """Attention of CLS, in the tower's layer that is read. `ValueError` where there is no CLS."""
    return view.cls_attention


def patches(view: EncoderView) -> Tensor:
    """Mean attention of the patches, in the same layer."""
    return view.patch_attention


ENCODER_SCORES: dict[str, Callable[[EncoderView], Tensor]] = {"cls": cls, "patches": patches}
"""Name -> score [G, n] of the patches at the vision tower's output."""

SCORE_NAMES = {
    "last_text": "last text token",
    "all_text": "all text tokens",
    "visual": "visual tokens",
    "visual_corrected": "visual, corrected",
    "visual_no_mask": "visual, no mask",
    "cls": "CLS (vision tower)",
    "patches": "patches (vision tower)",
    "random": "random",
    "uniform": "uniform",
    "oracle": "oracle",
    "truth": "where the objects are",
}
"""As tables and plots write them."""
