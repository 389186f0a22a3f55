"""Controls that stand beside every method: nothing dropped, random tokens, evenly spaced tokens."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass

import torch

from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions, Reducer
from visiondrop.views import EncoderView


@dataclass
class Full(Reducer):
    """The unpruned model, run by the same code as every method."""

    name = "full"
    title = "unpruned"
    where = "nowhere"
    signal = "control"


class _KeepPatches(PictureBudget):
    """Keep `tokens` of the patches before the LLM; CLS is not kept, as in the unpruned model."""

    @abstractmethod
    def patches(self, view: EncoderView) -> torch.Tensor:
        """[G, tokens] patches to keep, rising, counted without CLS."""

    def encoder_stage(self, view: EncoderView) -> Reduction | None:
        """Drop the others."""
        kept = self.patches(view).to(view.features.device) + int(view.has_cls)
        return keep_only(view.features, view.sizes, kept)


@dataclass
class Random(_KeepPatches):
    """Patches drawn at random, without replacement, seeded by (seed, sample key).

    The draw does not depend on batch size, order or device.
    """

    name = "random"
    title = "random"
    where = "before the LLM"
    signal = "control, seeded by (seed, sample)"

    tokens: int = 64
    seed: int = 0
    positions: Positions = "renumbered"

    def patches(self, view: EncoderView) -> torch.Tensor:
        """A seeded permutation's head for each picture."""
        rows = []
        for key in view.keys:
            digest = hashlib.sha256(f"{self.seed}/{key}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            drawn = torch.randperm(view.num_patches, generator=generator)[: self.tokens]
            rows.append(drawn.sort().values)
        return torch.stack(rows)


@dataclass
class Uniform(_KeepPatches):
    """Evenly spaced patches in raster order: floor((i + 1/2) N / tokens)."""

    name = "uniform"
    title = "uniform"
    where = "before the LLM"
    signal = "control, evenly spaced"

    tokens: int = 64
    positions: Positions = "renumbered"

    def patches(self, view: EncoderView) -> torch.Tensor:
        """The same patches for every picture."""
        n = view.num_patches
        kept = torch.tensor([(2 * i + 1) * n // (2 * self.tokens) for i in range(self.tokens)])
        return kept.expand(view.features.shape[0], -1)
