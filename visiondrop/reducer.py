"""A method of visual-token reduction, and how it is applied to one model object.

    with method(model) as trace:
        model.generate(...)

Nothing is patched globally: hooks are set on that model and removed on exit, also after an
exception.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal, Self
from weakref import WeakKeyDictionary

from torch import nn

from visiondrop.adapters.base import Geometry
from visiondrop.engine.engine import Engine
from visiondrop.extensions.base import Extension
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.merging import Reduction
from visiondrop.pictures import Pictures, check_pictures
from visiondrop.registry import _REGISTRY, NEEDS, check_parts, plain, working
from visiondrop.schedule import mean_tokens
from visiondrop.tiles import PictureChoice, Tiles
from visiondrop.tower_cache import TowerCache
from visiondrop.trace import Trace
from visiondrop.views import DecoderView, EncoderView, ProjectedView, PromptView, TowerBlockView

__all__ = ["Positions", "Reducer", "Reductions"]

Positions = Literal["renumbered", "original"]
Before = Literal["encoder", "projected", "tower", "prompt"]
Reductions = Reduction | list[Reduction | None] | None
"""What a stage returns for G pictures: one reduction of all, one each (with G = 1), or none."""

_ACTIVE: WeakKeyDictionary[nn.Module, Reducer] = WeakKeyDictionary()


class Reducer(ABC):
    """Base of all methods. A subclass is a dataclass whose fields are its hyper-parameters.

    It overrides one stage before the LLM (and sets `before_llm`, `before`), or `llm_layers` and
    `llm_stage` (and sets `inside_llm`), or both, and `ledger`; or `extension`.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    """The name as papers write it."""
    paper: ClassVar[str] = ""
    where: ClassVar[str] = ""
    """Where it acts, in a few words."""
    signal: ClassVar[str] = ""
    """What it judges tokens by, in a few words."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What must be there: "cls", "crops", "patches" (of the model), "frames" (of the prompt), "text
    encoder" (beside the model).
    """
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings of papers and released codes under their own names."""

    before_llm: bool = False
    """Whether the method reduces before the LLM."""
    before: ClassVar[Before] = "encoder"
    """Which stage does: `encoder_stage`, `projected_stage`, `tower_block` or `prompt_stage`."""
    inside_llm: bool = False
    """Whether the method reduces inside the LLM."""
    reads_text: ClassVar[bool] = False
    """Whether `llm_stage` looks at the row beyond the picture's end."""
    looks_back: ClassVar[bool] = False
    """Whether `llm_stage` looks at the attention of the layer that just ran."""
    uses_input: ClassVar[bool] = False
    """Whether `llm_stage` looks at the prompt's input embeddings."""

    flops_by_ledger: ClassVar[bool] = True
    """Whether the tokens of each decoder layer say what a prefill costs; if not, no FLOPs are
    reported.
    """
    seeded: ClassVar[bool] = False
    """Whether `llm_stage` draws by `view.keys`; pictures without a key are then named by a hash."""
    draws: bool = True
    """Whether a field `seed`, if there is one, decides what is kept: runs are then one a seed."""
    reads_questions: ClassVar[bool] = False
    """Whether a stage before the LLM reads `view.questions`."""

    positions: Positions = "renumbered"
    """Positions of what is kept: numbered anew from 0, or those of the unpruned sequence."""

    tiled: ClassVar[bool] = False
    """Whether pictures of several tiles (any resolution) and videos can be reduced."""
    tiles: Tiles = Tiles()
    """How such pictures are treated, see `on_tiles`."""
    pictures: Pictures = Pictures()
    """What counts mean where a prompt has several pictures, see `on_pictures`."""
    released_tiles: ClassVar[Mapping[str, str]] = {}
    """Options of `on_tiles` that act as the method's released code does."""
    video_options: ClassVar[Mapping[str, Any]] = {}
    """Options of `from_average` for a model whose budgets are those of a video."""
    counts_cls: ClassVar[bool] = False
    """Whether a CLS token may be among those that `entry_tokens` counts."""
    in_place: bool = False
    """Whether merged tokens stand where their reference stood, and not behind all others."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            _REGISTRY[cls.name] = cls

    # ------------------------------------------------------------------ what a method decides

    def encoder_stage(self, view: EncoderView) -> Reductions:
        """Reduce at the vision encoder's output; None leaves the pictures whole."""
        return None

    def projected_stage(self, view: ProjectedView) -> Reductions:
        """Reduce after the projector; the new features are decoder embeddings."""
        return None

    def tower_block(self, view: TowerBlockView) -> Reduction | None:
        """Merge inside the vision tower, in each block between attention and MLP."""
        return None

    def prompt_stage(self, view: PromptView) -> list[Reduction | None] | None:
        """Reduce all pictures of one prompt together, as decoder embeddings."""
        return None

    def picture_stage(
        self, view: EncoderView, grid: TileGrid, tiles: Tiles
    ) -> PictureChoice | None:
        """Reduce all tiles of one any-resolution picture together, G = tiles, the thumbnail first.
        Counts are those of the picture. None: tile by tile, by `encoder_stage` or
        `projected_stage` of `with_entry`.
        """
        return None

    def entry_tokens(self) -> int | None:
        """Tokens of a picture that the stage before the LLM keeps; None where it finds out."""
        return None

    def with_entry(self, tokens: int) -> Reducer:
        """The same method whose stage before the LLM keeps `tokens` >= 1 (see `entry_tokens`)."""
        raise TypeError(f"{self.name} has no number of tokens before the LLM")

    def counted(self, count: Callable[[int], int]) -> Reducer:
        """The same method with count(n) for each of its counts n (not its ratios)."""
        return self

    def scaled(self, share: float) -> Reducer:
        """The same method with all its counts multiplied by `share`, at least 1."""
        return self.counted(lambda n: max(1, round(n * share)))

    @property
    def has_counts(self) -> bool:
        """Whether `counted` makes another method of it."""
        return type(self).counted is not Reducer.counted

    def llm_layers(self) -> tuple[int, ...]:
        """Decoder layers before which `llm_stage` is called, rising."""
        return ()

    def llm_stage(self, view: DecoderView) -> Reductions:
        """Reduce before decoder layer `view.layer`; None skips the stage for these pictures."""
        return None

    def extension(self) -> Extension | None:
        """What the method does beside reducing, with hooks of its own."""
        return None

    def check(self, geometry: Geometry) -> None:
        """Raise `ValueError`, before any compute, on what cannot be done at these sizes."""
        for need in self.needs:
            if need in geometry.lacks:
                raise ValueError(
                    f"{self.name!r} needs {NEEDS[need]}, which this model has not; methods that "
                    f"work here: {', '.join(working(geometry))}"
                )
        if geometry.crops or geometry.frames > 1:
            check_parts(self, geometry)
        check_pictures(self)

    def ledger(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> list[int]:
        """Visual tokens that each decoder layer sees for one picture, by plan."""
        return [num_patches] * num_layers

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
        """The setting whose true mean of visual tokens over the decoder layers is `tokens`.

        Raises `ValueError` where there is none.
        """
        raise ValueError(f"{cls.name!r} takes no token budget; set its own fields")

    @classmethod
    def from_nominal(
        cls,
        tokens: float,
        *,
        num_layers: int,
        num_patches: int = 576,
        has_cls: bool = True,
        **options: Any,
    ) -> Self:
        """The setting that the method's paper calls `tokens`: by default the true mean."""
        return cls.from_average(
            tokens, num_layers=num_layers, num_patches=num_patches, has_cls=has_cls, **options
        )

    @classmethod
    def budgeted(cls) -> bool:
        """Whether the method can be asked for a number of tokens."""
        return cls.from_average.__func__ is not Reducer.from_average.__func__  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ what every method gets

    def mean_tokens(self, num_layers: int, num_patches: int = 576, has_cls: bool = True) -> float:
        """True mean of the ledger."""
        return mean_tokens(self.ledger(num_layers, num_patches, has_cls))

    @property
    def entry_positions(self) -> Positions:
        """Positions of what enters the decoder."""
        return self.positions

    @property
    def before_part(self) -> Reducer:
        """The part that may reduce before the LLM; `inside_part` inside it."""
        return self

    inside_part = before_part

    def on_tiles(self, **options: Any) -> Self:
        """The same method with other options for any-resolution pictures (`tiles.Tiles`).

        Raises `ValueError` on a value that there is not.
        """
        other = copy.copy(self)
        other.tiles = dataclasses.replace(self.tiles, **options)
        return other

    def on_pictures(self, **options: Any) -> Self:
        """The same method with other options for several pictures in a prompt
        (`pictures.Pictures`).

        Raises `ValueError` on a value that there is not.
        """
        other = copy.copy(self)
        other.pictures = dataclasses.replace(self.pictures, **options)
        return other

    def extensions(self) -> list[Extension]:
        """Those of all parts."""
        own = self.extension()
        return [] if own is None else [own]

    def to_dict(self) -> dict[str, Any]:
        """The method whole, for JSON: its name and every field."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        out = {"name": self.name, **{k: plain(v) for k, v in fields.items()}}
        if self.tiles != type(self).tiles:
            out["tiles"] = self.tiles.to_dict()
        if self.pictures != type(self).pictures:
            out["pictures"] = self.pictures.to_dict()
        return out

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Reducer:
        """The inverse of `to_dict`. Raises `ValueError` on an unknown name or field."""
        data = dict(data)
        name = data.pop("name", None)
        if name == "composed":
            first, second = (Reducer.from_dict(part) for part in data["parts"])
            return first + second
        tiles, pictures = data.pop("tiles", {}), data.pop("pictures", {})
        if name not in _REGISTRY:
            raise ValueError(f"unknown method {name!r}; known: {', '.join(sorted(_REGISTRY))}")
        cls = _REGISTRY[name]
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if extra := sorted(set(data) - known):
            raise ValueError(
                f"{name} has no field {extra[0]!r}; it has: {', '.join(sorted(known))}"
            )
        method = cls(**data).on_tiles(**tiles) if tiles else cls(**data)
        return method.on_pictures(**pictures) if pictures else method

    def __add__(self, other: Reducer) -> Reducer:
        """One method before the LLM and one inside it; see `visiondrop.composed.Composed`."""
        from visiondrop.composed import Composed

        return Composed(self, other)

    @contextmanager
    def __call__(
        self,
        model: nn.Module,
        keys: list[str] | None = None,
        tower_cache: TowerCache | None = None,
        questions: list[str] | None = None,
        engine: Engine | None = None,
    ) -> Iterator[Trace]:
        """Apply the method to `model` for the length of a `with` block.

        Args:
            model: a supported transformers model (`visiondrop.adapters`).
            keys: sample keys for seeded methods, see `Trace.set_keys`.
            tower_cache: where tower outputs are kept for pictures named by `Trace.set_pictures`.
            questions: the raw question on each picture, see `Trace.set_questions`.
            engine: records or compiles what runs again and again, see `visiondrop.engine`.

        Raises `TypeError` on an unknown model family, `ValueError` on a budget that the model
        cannot meet or an engine that cannot serve here, `RuntimeError` where the model has a method
        already.
        """
        from visiondrop.adapters import adapter_of
        from visiondrop.decoder import Mechanism
        from visiondrop.mrope import keeping_positions

        adapter = adapter_of(model)
        geometry = adapter.geometry(model.config)
        method = keeping_positions(self) if geometry.mrope else self
        method.check(geometry)
        if model in _ACTIVE:
            raise RuntimeError(
                f"this model runs {_ACTIVE[model].name!r} already, {self.name!r} cannot be entered "
                "on top; leave the first `with` block, or compose: `with (a + b)(model)`"
            )
        trace = Trace(method.to_dict(), geometry.grid)
        trace.set_keys(keys)
        trace.set_questions(questions)
        if tower_cache is not None:
            trace.towers = tower_cache
        _ACTIVE[model] = self
        with ExitStack() as last_first:
            last_first.callback(_ACTIVE.pop, model, None)
            mechanism = Mechanism(model, adapter, geometry, method, trace, engine)
            last_first.callback(mechanism.detach)
            mechanism.attach()
            yield trace
