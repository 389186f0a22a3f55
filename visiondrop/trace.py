"""What a reduction did, in original patch coordinates.

Indices stay on the device until somebody reads them, so that tracing does not stall a prefill.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.frame_layout import FrameGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.kernels import CALLS
from visiondrop.tower_cache import TowerCache

__all__ = ["CLS", "SampleTrace", "StageTrace", "Trace"]

CLS = -1
"""Patch id of the CLS token."""

Grid = TileGrid | FrameGrid | PackedGrid
"""What the token ids of an any-resolution picture or a video mean: `locate(id)` says."""

Names = Sequence[str] | Mapping[str, Sequence[str]] | None
"""One per picture, in reading order, or such a list for each kind of visual input."""


@dataclass
class StageTrace:
    """One stage on one picture.

    Attributes:
        place: "encoder", "projected", "tower" or "prompt" (all before the LLM), or "llm".
        layer: decoder layer before which the stage acted; None before the LLM.
        picture: index of the picture in its prompt.
        skipped: true where the picture held fewer tokens than the stage's budget.
        identity: [n], patch id of each token that came in (a merged token has its reference's).
        source, target, contextual: as in `visiondrop.merging.Reduction`, for this picture alone.
    """

    place: Literal["encoder", "projected", "tower", "prompt", "llm"]
    layer: int | None
    picture: int
    identity: Tensor
    source: Tensor | None = None
    target: Tensor | None = None
    contextual: Tensor | None = None

    @property
    def skipped(self) -> bool:
        """Whether nothing was done here."""
        return self.source is None

    @property
    def tokens_in(self) -> int:
        """Visual tokens before the stage."""
        return int(self.identity.shape[0])

    @property
    def tokens_out(self) -> int:
        """Visual tokens after the stage."""
        return self.tokens_in if self.source is None else int(self.source.shape[0])

    @property
    def kept(self) -> list[int]:
        """Patch ids of the tokens kept as they were (CLS is -1), in their order."""
        if self.source is None or self.contextual is None:
            return self.identity.tolist()
        return self.identity.to(self.source.device)[self.source[~self.contextual]].tolist()

    @property
    def merged(self) -> list[dict[str, Any]]:
        """Each contextual token: `{"reference": patch id, "members": [patch ids]}`."""
        if self.source is None or self.target is None or self.contextual is None:
            return []
        identity, target = self.identity.tolist(), self.target.tolist()
        out = []
        for slot, (source, flag) in enumerate(
            zip(self.source.tolist(), self.contextual.tolist(), strict=True)
        ):
            if flag:
                members = [identity[i] for i, t in enumerate(target) if t == slot and i != source]
                out.append({"reference": identity[source], "members": members})
        return out

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "place": self.place,
            "layer": self.layer,
            "picture": self.picture,
            "skipped": self.skipped,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "kept": self.kept,
            "merged": self.merged,
        }


@dataclass
class SampleTrace:
    """One row of one prefill.

    Attributes:
        key: the sample's key where one was given.
        tokens_per_layer: visual tokens that each decoder layer saw.
        lengths: all tokens that each decoder layer saw, text included.
        bytes_per_token: KV bytes of one token in one layer, in the type that attention reads; a
            cache that quantises holds fewer.
        stages: stage by stage, picture by picture.
        newlines_per_layer: how many of `tokens_per_layer` are newlines of any-resolution pictures.
        grids: how the tiles or frames of each picture or video lie, which says what its token ids
            mean (their `locate`); None for a picture of one tile.
        tokens_by_picture: `tokens_per_layer` of each picture.
        shapes: (frames, rows, columns) of each picture or video of native resolution, whose token
            (f, r, c) has the id (f * rows + r) * columns + c; None for others.
        tiles: pictures or tiles that passed the vision tower; projected: tokens that passed the
            projector. Both say what the prefill cost, for `profiling.prefill_flops`.
    """

    key: str | None
    tokens_per_layer: list[int]
    lengths: list[int]
    bytes_per_token: int
    stages: list[StageTrace] = field(default_factory=list)
    newlines_per_layer: list[int] = field(default_factory=list)
    grids: list[Grid | None] = field(default_factory=list)
    tokens_by_picture: list[list[int]] = field(default_factory=list)
    shapes: list[tuple[int, int, int] | None] = field(default_factory=list)
    tiles: int = 1
    projected: int = 0

    @property
    def mean_tokens(self) -> float:
        """True mean of visual tokens over the decoder layers, newlines included."""
        return sum(self.tokens_per_layer) / len(self.tokens_per_layer)

    @property
    def mean_newlines(self) -> float:
        """True mean of newlines over the decoder layers."""
        return sum(self.newlines_per_layer) / max(1, len(self.newlines_per_layer))

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values after the prefill, padding not counted."""
        return sum(self.lengths) * self.bytes_per_token

    def fates(self, picture: int = 0) -> list[tuple[str, dict[int, tuple[str, int]]]]:
        """What became of every patch, stage by stage.

        Returns: for each stage its name and a map from patch id to ("kept" | "merged" | "dropped",
        patch id of the token that now stands for it).
        """
        out: list[tuple[str, dict[int, tuple[str, int]]]] = []
        place: dict[int, int] = {}
        for stage in (s for s in self.stages if s.picture == picture):
            identity = stage.identity.tolist()
            if not place:
                place = {patch: i for i, patch in enumerate(identity)}
            source, target = stage.source, stage.target
            if source is not None and target is not None:
                went, identity = target.tolist(), [identity[i] for i in source.tolist()]
                place = {p: (went[i] if i >= 0 else -1) for p, i in place.items()}
            fate = {
                patch: (
                    ("dropped", patch)
                    if i < 0
                    else ("kept" if identity[i] == patch else "merged", identity[i])
                )
                for patch, i in place.items()
            }
            name = stage.place if stage.layer is None else f"layer {stage.layer}"
            out.append((name, fate))
        return out

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        out: dict[str, Any] = {
            "key": self.key,
            "tokens_per_layer": self.tokens_per_layer,
            "mean_tokens": self.mean_tokens,
            "kv_bytes": self.kv_bytes,
            "stages": [stage.to_dict() for stage in self.stages],
        }
        if any(self.grids):
            out["newlines_per_layer"] = self.newlines_per_layer
            out["tokens_by_picture"] = self.tokens_by_picture
            out["grids"] = [grid and dataclasses.asdict(grid) for grid in self.grids]
        if any(self.shapes):
            out["tokens_by_picture"] = self.tokens_by_picture
            out["shapes"] = [shape and list(shape) for shape in self.shapes]
        return out


class Trace:
    """The record of a `with method(model) as trace:` block.

    `samples` holds one entry per row of every prefill, in order. Rows of text-only prefills are not
    in it.
    """

    def __init__(self, method: dict[str, Any] | None = None, grid: tuple[int, int] = (24, 24)):
        self.method = method or {}
        self.grid = grid
        self.samples: list[SampleTrace] = []
        self.keys: list[str] | None = None
        self.pictures: list[str] | None = None
        self.questions: list[str] | None = None
        self.by_kind: dict[str, dict[str, list[str]]] = {}
        self.towers = TowerCache()
        self._calls = CALLS.copy()

    @property
    def paths(self) -> Counter[str]:
        """Which of the ways to compute the same were taken how often since this block was entered,
        as in "column_mean:triton" (`visiondrop.kernels`). All models of the process count.
        """
        return CALLS - self._calls

    def of(self, modality: str) -> Trace:
        """This record with the names of one kind of visual input, "image" or "video"."""
        named = copy.copy(self)
        for what, lists in self.by_kind.items():
            setattr(named, what, lists.get(modality))
        return named

    def _name(self, what: str, names: Names) -> None:
        """Set `keys`, `questions` or `pictures`, for all kinds of visual input or for each."""
        self.by_kind.pop(what, None)
        if isinstance(names, Mapping):
            lists = {kind: [str(name) for name in own] for kind, own in names.items()}
            self.by_kind[what], names = lists, None
        setattr(self, what, None if names is None else [str(name) for name in names])

    def set_keys(self, keys: Names) -> None:
        """Name the pictures of the batches to come (one key per picture, in reading order).

        Seeded methods draw by (seed, key), so that what they keep does not depend on batching.
        Without keys a picture is named by a hash of its pixels. A list names the pictures, or the
        videos, of batches that hold one kind; for batches with both give `{"image": [...],
        "video": [...]}`, here and to `set_questions` and `set_pictures`.
        """
        self._name("keys", keys)

    def set_questions(self, questions: Names) -> None:
        """Give the raw question on each picture of the batches to come, in reading order.

        Only methods with a text encoder of their own read them (CDPruner, TRIM); no template and no
        answer hint belong into them.
        """
        self._name("questions", questions)

    def set_pictures(self, names: Names) -> None:
        """Tell equal pictures of the batches to come (one name per picture, in reading order).

        Pictures of one name are encoded once: within a batch always, across batches and methods
        where a `TowerCache` was given. None encodes every picture as it comes.
        """
        self._name("pictures", names)

    def clear(self) -> None:
        """Forget the samples (long runs)."""
        self.samples.clear()

    @property
    def mean_tokens(self) -> float:
        """Mean over samples of the true mean of visual tokens over decoder layers."""
        if not self.samples:
            raise ValueError("nothing was generated inside this context yet")
        return sum(s.mean_tokens for s in self.samples) / len(self.samples)

    @property
    def mean_newlines(self) -> float:
        """How much of `mean_tokens` is newlines of any-resolution pictures."""
        return sum(s.mean_newlines for s in self.samples) / max(1, len(self.samples))

    @property
    def kv_bytes(self) -> list[int]:
        """KV bytes of each sample after its prefill."""
        return [sample.kv_bytes for sample in self.samples]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "grid": list(self.grid),
            "samples": [sample.to_dict() for sample in self.samples],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.to_dict()), encoding="utf-8")
        os.replace(part, path)

    def draw(self, image: Any, path: str | os.PathLike[str], sample: int = 0) -> None:
        """Draw what was kept, merged and dropped at each stage to a PNG.

        `image`: the picture (PIL), or a list of those of the prompt in reading order; pictures of
        any resolution as they were before they were cut into tiles. A video is the list of its
        frames.
        """
        from visiondrop.draw import draw_sample

        sheet = draw_sample(self.samples[sample], image, self.grid)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
