"""Controls that stand beside every method: nothing dropped, random tokens, evenly spaced tokens."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from visiondrop.adapters.base import Geometry
from visiondrop.budgets import check_layers, single_drop, stepwise
from visiondrop.merging import Reduction, keep_only
from visiondrop.methods.base import PictureBudget
from visiondrop.reducer import Positions, Reducer
from visiondrop.views import DecoderView, EncoderView


def permutation(name: str, total: int) -> torch.Tensor:
    """[total], a random order of 0 .. total - 1 that depends on `name` only: not on batch size,
    order or device.
    """
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(total, generator=generator)


def evenly(count: int, total: int) -> list[int]:
    """`count` of 0 .. total - 1, evenly spaced: floor((i + 1/2) total / count)."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


@dataclass
class Full(Reducer):
    """The unpruned model, run by the same code as every method."""

    name = "full"
    tiled = True
    title = "unpruned"
    where = "nowhere"
    signal = "control"


class _KeepSome(PictureBudget):
    """Keep `tokens` of a picture's visual tokens, before the LLM or before decoder layer `layer`.

    Before the LLM these are patches; CLS is not kept, as in the unpruned model.
    """

    tiled = True
    layer: int | None

    @property
    def before_llm(self) -> bool:  # type: ignore[override]
        """Unless a decoder layer was given."""
        return self.layer is None

    @property
    def inside_llm(self) -> bool:  # type: ignore[override]
        """Where a decoder layer was given."""
        return self.layer is not None

    @classmethod
    def from_average(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """`tokens` of each picture, or with `layer` as many from it on as make this mean."""
        if options.get("layer") is not None:
            layer = options["layer"]
            _, tokens = single_drop(
                tokens, layer, num_layers, num_patches, given=layer, name=cls.name
            )
        return cls(tokens=tokens, **options)  # type: ignore[call-arg]

    def check(self, geometry: Geometry) -> None:
        """Refuse budgets beyond the picture and layers beyond the decoder."""
        super().check(geometry)
        if self.layer is not None:
            check_layers((self.layer,), geometry.num_layers, f"{self.name}'s drop")

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Everything up to `layer`, then `tokens`."""
        return stepwise((self.layer or 0,), (self.tokens,), num_layers, num_patches)

    @abstractmethod
    def choose(self, keys: Callable[[], list[str]], count: int, total: int) -> torch.Tensor:
        """[count, tokens] or [1, tokens], what to keep of `total` tokens, rising.

        Args:
            keys: gives the samples' keys, one for each of the `count` pictures.
        """

    def encoder_stage(self, view: EncoderView) -> Reduction:
        """Drop the other patches."""
        kept = self.choose(lambda: view.keys, view.features.shape[0], view.num_patches)
        kept = kept.to(view.features.device).expand(view.features.shape[0], -1)
        return keep_only(view.features, view.sizes, kept + int(view.has_cls))

    def llm_layers(self) -> tuple[int, ...]:
        """Before `layer`."""
        return () if self.layer is None else (self.layer,)

    def llm_stage(self, view: DecoderView) -> Reduction | None:
        """Drop the other tokens."""
        count, total = view.hidden.shape[:2]
        if self.tokens >= total:
            return None
        kept = self.choose(lambda: view.keys, count, total)
        return keep_only(view.hidden, view.sizes, kept.to(view.hidden.device).expand(count, -1))


@dataclass
class Random(_KeepSome):
    """Tokens drawn at random, without replacement, seeded by (seed, sample key).

    The draw does not depend on batch size, order or device.

    Args:
        tokens: how many stay; layer: decoder layer before which the rest is dropped, None for
            before the LLM; seed: of the draw.
    """

    name = "random"
    title = "random"
    where = "before the LLM, or any layer"
    signal = "control, seeded by (seed, sample)"
    seeded = reads_keys = True

    tokens: int = 64
    seed: int = 0
    layer: int | None = None
    positions: Positions = "renumbered"

    def choose(self, keys: Callable[[], list[str]], count: int, total: int) -> torch.Tensor:
        """A seeded permutation's head for each picture."""
        rows = []
        for key in keys():
            drawn = permutation(f"{self.seed}/{key}", total)[: self.tokens]
            rows.append(drawn.sort().values)
        return torch.stack(rows)


@dataclass
class Uniform(_KeepSome):
    """Evenly spaced tokens in raster order: floor((i + 1/2) N / tokens).

    Args:
        tokens: how many stay; layer: decoder layer before which the rest is dropped, None for
            before the LLM.
    """

    name = "uniform"
    title = "uniform"
    where = "before the LLM, or any layer"
    signal = "control, evenly spaced"

    tokens: int = 64
    layer: int | None = None
    positions: Positions = "renumbered"

    def choose(self, keys: Callable[[], list[str]], count: int, total: int) -> torch.Tensor:
        """The same places for every picture."""
        return torch.tensor(evenly(self.tokens, total))[None]
