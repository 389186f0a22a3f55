"""The modified encoder: vision tower, one reduction at its end, projector.

The number of feature rows stays what the placeholders in the prompt expect: rows that were dropped
are NaN, so that stock code carries them and nothing wrong can come of one that slips through. What
the rows mean travels beside them, see `Encoded`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from visiondrop.adapters.base import Adapter, Geometry, TowerOutput, following_projections
from visiondrop.kernels import CALLS
from visiondrop.merging import Reduction, per_picture
from visiondrop.pictures import Portion
from visiondrop.reducer import Reducer
from visiondrop.tower_blocks import run_merging_vit
from visiondrop.trace import CLS, Grid, StageTrace, Trace
from visiondrop.views import EncoderView, ProjectedView

__all__ = ["Encoded", "Encoding", "Picture", "encode_pictures"]


@dataclass
class Picture:
    """One encoded picture.

    Attributes:
        rows: feature rows that stock code sees (placeholders of the picture in the prompt).
        tokens: visual tokens that enter the decoder, `tokens` <= `rows` unless all and CLS are
            kept.
        identity: [tokens] patch id of each (CLS is -1).
        slot: [tokens] place of each in the unpruned run of placeholders.
        sizes: [tokens] patches that each stands for.
        overflow: [spill, D'] embeddings of the last tokens, which are not among the feature rows:
            those beyond `rows`, or all where a prompt stage made them; None where there are none.
        stage: record of the stage before the LLM, None where there was none.
        key: the sample's key, None where none was given.
        features, pixels: [rows, D'] and [3, h, w] (of a video [F, 3, h, w]), where a prompt stage
            is to come.
        score: [tokens], as in `Reduction`.
        grid: the tiles of an any-resolution picture or the frames of a video; None for one tile.
        newlines: [tokens] bool on the host, the newlines that LLM stages do not see; None without.
        share: by what the counts of LLM stages are multiplied, see `Tiles.share_of`; portion: its
            part of them where the pictures of a prompt split them.
        shape: (frames, rows, columns) of its tokens where pictures differ in them; None where the
            model's geometry says them.
        tiles: how many passed the vision tower; projected: tokens that passed the projector, -1
            where as many as `tokens`.
    """

    rows: int
    tokens: int
    identity: Tensor
    slot: Tensor
    sizes: Tensor
    overflow: Tensor | None
    stage: StageTrace | None
    key: str | None
    features: Tensor | None = None
    pixels: Tensor | None = None
    score: Tensor | None = None
    grid: Grid | None = None
    newlines: np.ndarray | None = None
    share: float = 1.0
    shape: tuple[int, int, int] | None = None
    tiles: int = 1
    projected: int = -1
    portion: Portion | None = None

    @property
    def passed(self) -> tuple[int, int]:
        """Tiles that passed the tower, tokens that passed the projector."""
        return self.tiles, self.tokens if self.projected < 0 else self.projected

    @property
    def full(self) -> int:
        """Visual tokens that enter the decoder, without newlines that no method sees."""
        return self.tokens - (0 if self.newlines is None else int(self.newlines.sum()))

    @property
    def spill(self) -> int:
        """Tokens whose embeddings are in `overflow`."""
        return 0 if self.overflow is None else self.overflow.shape[0]


@dataclass
class Encoded(BaseModelOutputWithPooling):
    """What `get_image_features` gives inside a `with` block.

    Attributes:
        pooler_output: feature rows, one tensor [rows, D'] a picture or all in one [B, rows, D'], as
            the stock function has them. generate() repeats them for beams.
        pictures: what they mean. A field of the output, so that whatever moves or copies it takes
            them along; never repeated, see `prompt.repeated`.
    """

    pictures: list[Picture] | None = None


@dataclass(frozen=True)
class Encoding:
    """What every encoder needs to know beside the pictures: sizes, the method, the record.

    Attributes:
        fits: false where these pictures have fewer tokens than the stage before the LLM is to keep,
            which leaves them whole.
        portions: of each picture, where those of a prompt split the method's counts.
    """

    geometry: Geometry
    method: Any
    trace: Trace
    fits: bool = True
    portions: tuple[Portion | None, ...] | None = None

    def of(self, modality: str) -> Encoding:
        """With the names of one kind of visual input, see `Trace.of`."""
        return replace(self, trace=self.trace.of(modality))

    def groups(self, count: int) -> list[tuple[Any, list[int]]]:
        """The method as it acts on each of `count` pictures, and which these are."""
        part = self.method.before_part
        if self.portions is None:
            return [(part, list(range(count)))]
        found: dict[Any, tuple[Any, list[int]]] = {}
        for i, portion in enumerate(self.portions):
            own = part if portion is None else part.counted(portion)
            key = portion if own.entry_tokens() is None else own.entry_tokens()
            found.setdefault(key, (own, []))[1].append(i)
        return list(found.values())


def pixel_key(pixels: Tensor) -> str:
    """A picture's name where none was given: a hash of its pixels."""
    data = pixels.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def picture_keys(pixel_values: Sequence[Tensor] | Tensor, trace: Trace) -> list[str]:
    """One key per picture: those given, or hashes of the pixels."""
    if trace.keys is None:
        return [pixel_key(pixels) for pixels in pixel_values]
    return one_each(trace.keys, len(pixel_values), "sample keys", "trace.set_keys")


def picture_questions(pixel_values: Sequence[Tensor] | Tensor, trace: Trace) -> list[str]:
    """The raw question on each picture. Raises `ValueError` where none was given."""
    if trace.questions is None:
        raise ValueError(
            "this method reads the question with a text encoder of its own: call "
            "trace.set_questions([...]) before generate(), one raw question per picture, or enter "
            "it with questions=[...]"
        )
    return one_each(trace.questions, len(pixel_values), "questions", "trace.set_questions")


def one_each(given: list[str], count: int, what: str, call: str) -> list[str]:
    """One per picture; each is repeated where generate() repeated pictures for beams or samples.

    Raises `ValueError` where the number given fits neither.
    """
    if not given or count % len(given):
        raise ValueError(
            f"{len(given)} {what} for {count} pictures: give one per picture, in reading order "
            f"({call}), or none"
        )
    return [item for item in given for _ in range(count // len(given))]


def encode_pictures(
    model: nn.Module,
    adapter: Adapter,
    encoding: Encoding,
    pixel_values: Tensor,
    **kwargs: Any,
) -> Encoded:
    """Encode pictures [B, 3, h, w], reduce, project."""
    geometry, method, trace = encoding.geometry, encoding.method, encoding.trace
    place = method.before if method.before_llm and encoding.fits else None
    if "text encoder" in method.needs:
        picture_questions(
            pixel_values, trace
        )  # a missing question is refused before the tower runs
    batch = pixel_values.shape[0]
    rows = geometry.num_patches + int(geometry.cls_in_prompt)
    reductions: list[Reduction | None] = [None] * batch
    if place == "tower":
        tower, reductions = merge_in_tower(model, adapter, geometry, method, pixel_values, **kwargs)
    elif trace.pictures is None:
        tower = adapter.encode(model, pixel_values, **kwargs)
    else:
        run = functools.partial(adapter.encode, model, **kwargs)
        tower = trace.towers.encode(trace.pictures, pixel_values, run)
    identity = torch.arange(
        geometry.num_patches + int(geometry.has_cls), device=tower.features.device
    ) - int(geometry.has_cls)
    features = tower.features

    def view_of(members: list[int]) -> EncoderView:
        whole = len(members) == batch
        pick = (lambda t: t) if whole else (lambda t: t[members])

        def each(items: list[str]) -> list[str]:
            return [items[i] for i in members]

        return EncoderView(
            pick(tower.features),
            pick(tower.query),
            pick(tower.key),
            tower.scale,
            geometry.has_cls,
            geometry.grid,
            make_keys=lambda: each(picture_keys(pixel_values, trace)),
            make_following=lambda: following_projections(
                *adapter.tower(model, **kwargs), pick(tower.features)
            ),
            pixels=pick(pixel_values),
            make_questions=lambda: each(picture_questions(pixel_values, trace)),
        )

    if place in ("encoder", "projected"):
        if place == "projected":
            identity = identity[int(geometry.has_cls) :]
            features = adapter.project(model, tower.features[:, int(geometry.has_cls) :])
        for part, members in encoding.groups(batch):
            view = view_of(members)
            if place == "encoder":
                made = part.encoder_stage(view)
            else:
                own = features if len(members) == batch else features[members]
                made = part.projected_stage(ProjectedView(own, view))
            for i, reduction in zip(members, per_picture(made, len(members)), strict=True):
                reductions[i] = reduction

    first = features.shape[1] - rows
    kept = [
        features[i : i + 1, max(first, 0) :] if reduction is None else reduction.features
        for i, reduction in enumerate(reductions)
    ]
    counts = [tokens.shape[1] for tokens in kept]
    if place == "projected":
        embeddings = list(torch.cat(kept, 1)[0].split(counts))
    elif len(set(counts)) == 1:
        embeddings = list(adapter.project(model, torch.cat(kept)))
    else:
        embeddings = list(adapter.project(model, torch.cat(kept, 1))[0].split(counts))

    names: list[str | None] = [None] * batch
    if trace.keys is not None or method.seeded:
        names = list(picture_keys(pixel_values, trace))
    out = embeddings[0].new_full((batch, rows, embeddings[0].shape[-1]), float("nan"))
    pictures = []
    for i, reduction in enumerate(reductions):
        own, stage = embeddings[i], None
        tokens = own.shape[0]
        if reduction is None:
            ids = identity[max(first, 0) :]
            sizes = torch.ones_like(ids)
        else:
            source = reduction.source[0]
            ids, sizes = identity[source], reduction.sizes[0]
            stage = StageTrace(
                method.before,
                None,
                0,
                identity,
                source,
                reduction.target[0],
                reduction.contextual[0],
            )
        out[i, : min(tokens, rows)] = own[:rows]
        # CLS takes the place of the first patch where the unpruned prompt has no row for it.
        slot = (ids + int(geometry.cls_in_prompt)).clamp(min=0)
        overflow = own[rows:] if tokens > rows else None
        info = Picture(rows, tokens, ids, slot, sizes, overflow, stage, names[i])
        if reduction is not None and reduction.score is not None:
            info.score = reduction.score[0]
        if place == "projected":
            info.projected = features.shape[1]
        if place == "prompt":
            info.features, info.pixels = own, pixel_values[i]
        pictures.append(info)
    return Encoded(pooler_output=list(out), pictures=pictures)  # type: ignore[arg-type]


def merge_in_tower(
    model: nn.Module,
    adapter: Adapter,
    geometry: Geometry,
    method: Reducer,
    pixel_values: Tensor,
    **kwargs: Any,
) -> tuple[TowerOutput, list[Reduction | None]]:
    """Run the tower with the method's merges between its blocks.

    CLS goes no further than in the unpruned model: to the decoder only where it has a row there.
    """
    tower, num_layers = adapter.tower(model, **kwargs)
    if adapter.engine is not None:
        CALLS["tower:plain"] += 1  # how many tokens a block holds is the method's affair
    merged = run_merging_vit(tower, pixel_values, num_layers, geometry.has_cls, method.tower_block)
    cls = int(geometry.has_cls and not geometry.cls_in_prompt)
    target = merged.target - cls
    reduction = Reduction(
        merged.output.features[:, cls:],
        merged.source[:, cls:],
        target,
        merged.sizes[:, cls:],
        merged.sizes[:, cls:] > 1,
    )
    return merged.output, per_picture(reduction, pixel_values.shape[0])


def whole_picture(rows: int, geometry: Geometry, device: torch.device) -> Picture:
    """A picture whose features were made outside: all its rows, unpruned."""
    identity = torch.arange(rows, device=device)
    slot = identity
    if geometry.cls_in_prompt:
        identity = identity - 1
    assert CLS == -1
    return Picture(rows, rows, identity, slot, torch.ones_like(slot), None, None, None)
