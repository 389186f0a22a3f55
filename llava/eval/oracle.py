"""A control that knows the answer's place: it keeps the patches that the question asks for.

Only the bundled sample data says which patches those are (``regions.json``).  What an oracle loses
is lost to dropping as such, not to choosing badly: no method that keeps as many tokens can be
expected to do better by choice alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava.eval.errors import EvalError
from llava.eval.samples import Sample
from llava.eval.settings import digest_of_json
from visiondrop import Geometry, Reducer, Reduction
from visiondrop.merging import keep_only
from visiondrop.reducer import Positions
from visiondrop.views import EncoderView

Regions = Mapping[str, Sequence[int]]


def even(count: int, total: int) -> list[int]:
    """``count`` whole numbers evenly spaced in 0 .. total - 1."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


@dataclass
class Oracle(Reducer):
    """Keep the asked-for patches, and others evenly spaced up to the budget.

    Args:
        tokens: patches to keep; of a region with more, evenly spaced ones stay.
        regions: sample key -> patch ids that the question asks for.
    """

    name = "oracle"
    before_llm = reads_keys = True

    tokens: int = 64
    regions: Regions = field(default_factory=dict, repr=False)
    positions: Positions = "renumbered"

    def check(self, geometry: Geometry) -> None:
        """Refuse budgets beyond the picture, and pictures in tiles."""
        if geometry.crops:
            raise ValueError(
                "oracle: regions.json names squares of the whole picture, this model reads tiles; "
                "python -m llava.train.evaluate_next has an oracle for it"
            )
        if not 1 <= self.tokens <= geometry.num_patches:
            raise ValueError(
                f"oracle: tokens={self.tokens} asked for where a picture has "
                f"{geometry.num_patches}; give 1 to {geometry.num_patches}"
            )

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """The same count in every layer."""
        return [min(self.tokens, num_patches)] * num_layers

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the regions by their hash."""
        regions = {key: list(patches) for key, patches in self.regions.items()}
        return {
            "name": self.name,
            "tokens": self.tokens,
            "positions": self.positions,
            "regions_sha256": digest_of_json(regions),
        }

    def patches(self, key: str, num_patches: int) -> list[int]:
        """Patches kept for one sample, rising."""
        if key not in self.regions:
            raise EvalError(f"the oracle does not know the region of sample {key}")
        region = sorted(self.regions[key])
        if len(region) >= self.tokens:
            return [region[i] for i in even(self.tokens, len(region))]
        others = sorted(set(range(num_patches)) - set(region))
        return sorted(region + [others[i] for i in even(self.tokens - len(region), len(others))])

    def encoder_stage(self, view: EncoderView) -> Reduction:
        """Drop the others."""
        kept = torch.tensor([self.patches(key, view.num_patches) for key in view.keys])
        kept = kept.to(view.features.device) + int(view.has_cls)
        return keep_only(view.features, view.sizes, kept)


def without_placeholder(prompt: str) -> str:
    """A prompt as ``regions.json`` has it."""
    return prompt.replace("<image>", "").strip()


def read_regions(path: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The bundled data's ``regions.json``, a list of ``{"question_id", "prompt", "type", "region":
    [patch ids]}``, by id (as text) and prompt; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        return {(str(e["question_id"]), e["prompt"]): e for e in json.loads(path.read_bytes())}
    except (ValueError, KeyError, TypeError) as error:
        raise EvalError(
            f"{path} does not say which patches questions ask for ({error!r}); make it again with "
            "scripts/data/make_samples.sh, or remove it"
        ) from None


def regions_of(
    samples: Sequence[Sample], known: Mapping[tuple[str, str], Mapping[str, Any]], questions: Any
) -> Regions:
    """Regions by sample key; ``questions`` takes the question out of a prompt.

    Raises EvalError where the data does not say what a question asks for."""
    out = {}
    for sample in samples:
        entry = known.get((str(sample.question_id), questions(sample.prompt)))
        if entry is None or "region" not in entry:
            raise EvalError(
                "the method 'oracle' needs to know which patches a question asks for, which only "
                "the bundled data says (regions.json)"
            )
        out[sample.key] = entry["region"]
    return out
