"""How close a greedy answer came to being another one.

The same question in another batch, on another machine or in another dtype gives logits that differ
in their last bits.  Where the two best tokens are closer than that, the text may differ; which
answers these are is known from the logits themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from llava.eval.samples import Sample

NEAR = 1e-4
"""In logits; float32 runs in different batches differ by less."""


class Margins(LogitsProcessor):
    """Notes the distance between the two best tokens at each step, and changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    # transformers reads this signature and takes every further name for a required argument.
    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        best = scores.topk(2, dim=-1).values
        self.steps.append(best[:, 0] - best[:, 1])
        return scores

    def least(self, new_tokens: Sequence[int]) -> list[float | None]:
        """The least distance over the first so many steps of each row."""
        if not self.steps:
            return [None] * len(new_tokens)
        steps = torch.stack(self.steps, 1).float().cpu()
        return [
            float(f"{row[:count].min().item():.6g}") if count else None
            for row, count in zip(steps, new_tokens)
        ]


def near_ties(samples: Sequence[Sample], margins: Sequence[float | None]) -> dict[str, Any]:
    """The answers whose margin is below `NEAR`, for the result json.

    ``checked`` counts those whose margin is known: sampling and beams have none, a failed sample
    neither."""
    found = [
        {"line": sample.line, "question_id": sample.question_id, "margin": margin}
        for sample, margin in zip(samples, margins, strict=True)
        if margin is not None and margin < NEAR
    ]
    checked = sum(margin is not None for margin in margins)
    return {"below": NEAR, "checked": checked, "count": len(found), "samples": found}


def all_near_ties(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those of several runs of the same questions."""
    return {
        "below": NEAR,
        "checked": sum(one["checked"] for one in found),
        "count": sum(one["count"] for one in found),
        "samples": [sample for one in found for sample in one["samples"]],
    }
