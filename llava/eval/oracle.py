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
from visiondrop.methods.controls import evenly as even
from visiondrop.methods.pyramiddrop import PyramidDrop, Score
from visiondrop.reducer import Positions
from visiondrop.views import DecoderView, EncoderView

Regions = Mapping[str, Sequence[int]]


def asked_first(region: Sequence[int], tokens: int, there: Sequence[int]) -> list[int]:
    """``tokens`` of the patches ``there``, rising: those of ``region``, then others evenly spaced;
    of a region with more than that, evenly spaced ones."""
    wanted = sorted(set(region) & set(there))
    if len(wanted) >= tokens:
        return [wanted[i] for i in even(tokens, len(wanted))]
    others = sorted(set(there) - set(wanted))
    return sorted(wanted + [others[i] for i in even(tokens - len(wanted), len(others))])


def region_of(regions: Regions, key: str) -> Sequence[int]:
    """Of a sample; EvalError where it is not known."""
    if key not in regions:
        raise EvalError(f"the oracle does not know the region of sample {key}")
    return regions[key]


def described(regions: Regions) -> str:
    """Their hash, for JSON."""
    return digest_of_json({key: list(patches) for key, patches in regions.items()})


def refuse_tiles(geometry: Geometry) -> None:
    """ValueError for a model that reads pictures in tiles."""
    if geometry.crops:
        raise ValueError(
            "oracle: regions.json names squares of the whole picture, this model reads tiles; "
            "python -m llava.train.evaluate_next has an oracle for it"
        )


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
        refuse_tiles(geometry)
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
        return {
            "name": self.name,
            "tokens": self.tokens,
            "positions": self.positions,
            "regions_sha256": described(self.regions),
        }

    def patches(self, key: str, num_patches: int) -> list[int]:
        """Patches kept for one sample, rising."""
        return asked_first(region_of(self.regions, key), self.tokens, range(num_patches))

    def encoder_stage(self, view: EncoderView) -> Reduction:
        """Drop the others."""
        kept = torch.tensor([self.patches(key, view.num_patches) for key in view.keys])
        kept = kept.to(view.features.device) + int(view.has_cls)
        return keep_only(view.features, view.sizes, kept)


@dataclass
class OraclePyramid(PyramidDrop):
    """The same at PyramidDrop's stages: of what is left before each, the asked-for patches stay,
    and others evenly spaced up to the stage's count.

    Args:
        layers, ratios, positions: as `PyramidDrop` has them; score: of the others, "uniform" only.
        regions: sample key -> patch ids that the question asks for.
    """

    name = "oracle_pyramid"
    tiled = False

    score: Score = "uniform"
    regions: Regions = field(default_factory=dict, repr=False)

    @property
    def reads_keys(self) -> bool:
        """Always."""
        return True

    def check(self, geometry: Geometry) -> None:
        """Refuse what PyramidDrop refuses, other scores, and pictures in tiles."""
        refuse_tiles(geometry)
        super().check(geometry)
        if self.score != "uniform":
            raise ValueError(f"oracle_pyramid: score={self.score!r}; leave it 'uniform'")

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the regions by their hash."""
        out = super().to_dict()
        out.pop("regions")
        return {**out, "regions_sha256": described(self.regions)}

    def choose(self, view: DecoderView, kept: int) -> torch.Tensor:
        """[G, kept], places of what stays, rising."""
        chosen = []
        for key, there in zip(view.keys, view.identity.tolist(), strict=True):
            place = {patch: i for i, patch in enumerate(there)}
            patches = asked_first(region_of(self.regions, key), kept, there)
            chosen.append(sorted(place[patch] for patch in patches))
        return torch.tensor(chosen, device=view.hidden.device)


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
