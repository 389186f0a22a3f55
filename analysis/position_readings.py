"""What positional bias is measured on: scores with the places of their tokens, pictures upside down
or with their tokens in another order, and which tokens show an object.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from analysis import position_stats as stats
from analysis.places import centres, is_patch, patches_under
from analysis.probe import Probe, Reading
from analysis.scores import ENCODER_SCORES, LLM_SCORES
from analysis.setting import Case, Setting
from llava.eval.loading import default_aspect_ratio
from llava.eval.pictures import Pictures
from llava.eval.preparing import load_picture
from llava.eval.samples import Sample
from llava.eval.truth import SIDE, Objects
from visiondrop.merging import Reduction, gather
from visiondrop.scoring import uniform_column_mean
from visiondrop.trace import SampleTrace
from visiondrop.views import DecoderView, EncoderView, ProjectedView

__all__ = [
    "BINS",
    "TOWER",
    "Scored",
    "Shuffled",
    "first_identity",
    "place_measures",
    "probe_of",
    "read",
    "score_measures",
    "share_below",
    "show_objects",
    "upside_down",
]

TOWER = "tower"
"""The layer of scores that are read at the vision tower's output."""
BINS = 24
"""Parts of the sequence in curves by position; in LLaVA-1.5 each is a row of the picture."""


@dataclass
class Scored:
    """One score of one picture.

    Attributes:
        layer: of the decoder, as text, or `TOWER`.
        values: [n] float64, in the order of the sequence.
        places: [n, 2], see `places.centres`; squares: [n], see `places.patches_under`.
        identity: [n], ids of the tokens.
        even: [n], what `scoring.uniform_column_mean` expects of the visual score under uniform
            attention; None at the tower.
    """

    name: str
    layer: str
    values: np.ndarray
    places: np.ndarray
    squares: np.ndarray
    identity: np.ndarray
    even: np.ndarray | None = None


def probe_of(
    layers: Sequence[int], encoder: Sequence[str], kind: type[Probe] = Probe, **more: Any
) -> Probe:
    """A probe that reads all `LLM_SCORES` before each of the layers, and some `ENCODER_SCORES`."""

    def llm(view: DecoderView) -> dict[str, Tensor]:
        group, n = view.hidden.shape[:2]
        even = uniform_column_mean(n, view.start, view.hidden.device)
        return {
            **{name: score(view) for name, score in LLM_SCORES.items()},
            "even": even.expand(group, -1),
        }

    def tower(view: EncoderView) -> dict[str, Tensor]:
        return {name: ENCODER_SCORES[name](view) for name in encoder}

    return kind(tuple(layers), llm, tower if encoder else None, **more)


def read(
    setting: Setting, probe: Probe, cases: Sequence[Case], label: str, **walk: Any
) -> Iterator[list[Scored]]:
    """All scores of each case, in one order for all; `walk` goes to `Setting.walk`."""
    grid = setting.geometry.grid
    for look in setting.walk(probe, cases, label=label, **walk):
        found: list[Scored] = []
        held: tuple[np.ndarray, np.ndarray] | None = None
        for reading in look.readings:
            if held is None or not np.array_equal(held[0], reading.identity):
                held = reading.identity, centres(reading.identity, look.trace, grid)
            found += _scored(reading, held[1], grid)
        yield found


def _scored(reading: Reading, places: np.ndarray, grid: tuple[int, int]) -> list[Scored]:
    layer = TOWER if reading.layer is None else str(reading.layer)
    even = reading.values.get("even")
    # The tower sees the border around a picture, too, which no choice can want.
    shown = is_patch(places) if reading.layer is None else np.ones(len(places), dtype=bool)
    squares = patches_under(places, grid)
    return [
        Scored(
            name, layer, value.astype(np.float64)[shown], places[shown], squares[shown],
            reading.identity[shown], even,
        )
        for name, value in reading.values.items()
        if name != "even"
    ]  # fmt: skip


@dataclass
class Shuffled(Probe):
    """A probe of a model that reads each picture's visual tokens in a random order, seeded by
    (`seed`, sample key); they are numbered anew, so that content and place come apart.
    """

    before = "projected"  # type: ignore[misc]
    before_llm = True

    seed: int = 0

    def projected_stage(self, view: ProjectedView) -> Reduction:
        """All tokens, each at a random place."""
        n = view.features.shape[1]
        source = torch.stack([_order(f"{self.seed}/{key}", n) for key in view.keys])
        source = source.to(view.features.device)
        return Reduction(
            gather(view.features, source),
            source,
            source.argsort(1),
            view.sizes,
            torch.zeros_like(source, dtype=torch.bool),
        )


def _order(name: str, n: int) -> Tensor:
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(n, generator=generator)


class _Flipped:
    """Pictures, each upside down; so are their tiles, wherever they are cut."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def check(self, samples: Sequence[Sample]) -> None:
        self.pictures.check(samples)

    def find(self, name: str) -> Path | BinaryIO:
        out = io.BytesIO()
        ImageOps.flip(load_picture(self.pictures.find(name))).save(out, "PNG", compress_level=1)
        out.seek(0)
        return out


def upside_down(setting: Setting) -> Setting:
    """The same questions about the pictures turned upside down."""
    # Tower outputs are held by the picture's name, which stays.
    return dataclasses.replace(setting, pictures=_Flipped(setting.pictures), towers=None)


def show_objects(setting: Setting, places: np.ndarray, things: Objects) -> np.ndarray:
    """[n] bool, whether an object lies where each token looks (`objects.json`'s squares).

    Args:
        places: [n, 2] in 0..1 of what the model sees: the whole picture where it is read in tiles
            or at its own size, else the square that it is padded, or cropped, to.
    """
    width, height = things.size
    frame: tuple[float, float] = (width, height)
    if not (setting.geometry.crops or setting.geometry.native):
        padded = default_aspect_ratio(setting.model.config) == "pad"
        frame = (max(things.size),) * 2 if padded else (min(things.size),) * 2
    shown = is_patch(places)
    y = np.where(shown, places[:, 0], 0) * frame[1] + (height - frame[1]) / 2
    x = np.where(shown, places[:, 1], 0) * frame[0] + (width - frame[0]) / 2
    shown &= (x >= 0) & (x < width) & (y >= 0) & (y < height)
    square = (y // SIDE).astype(int) * things.grid[1] + (x // SIDE).astype(int)
    on = sorted({patch for thing in things.objects for patch in thing.patches})
    return shown & np.isin(square, on)


def first_identity(sample: SampleTrace, picture: int = 0) -> np.ndarray:
    """[n], ids of the tokens that a picture's first stage chose among; CLS left out."""
    stage = next(s for s in sample.stages if s.picture == picture)
    identity = stage.identity.cpu().numpy()
    return identity[identity >= 0]


def score_measures(score: Scored) -> dict[str, tuple[float, float]]:
    """A score along the sequence and over the picture, each beside what no bias would give.

    first_last_ratio: `stats.first_to_last`; token_ratio: first token over last; position_rank: rank
    correlation with the place in the sequence, above 0 for late; uniform_r: Pearson's r of the
    curve by position with that of the visual score under uniform attention; centre_y, centre_x.
    """
    order = np.arange(len(score.values), dtype=np.float64)
    measures = {
        "first_last_ratio": (stats.first_to_last(score.values), 1.0),
        "token_ratio": (stats.end_to_end(score.values), 1.0),
        "position_rank": (stats.correlation(stats.ranks(score.values), order), 0.0),
    }
    if score.even is not None:
        curves = stats.binned(score.values, BINS), stats.binned(score.even, BINS)
        measures["uniform_r"] = stats.correlation(*curves), 0.0
    even = stats.centre_of_mass(score.places)
    found = stats.centre_of_mass(score.places, score.values)
    return measures | {
        "centre_y": (found[0], even[0]),
        "centre_x": (found[1], even[1]),
    }


def place_measures(
    places: np.ndarray, kept: np.ndarray, prefix: str
) -> dict[str, tuple[float, float]]:
    """Centre of mass of the kept tokens, and the share of them in the picture's lower half."""
    even = stats.centre_of_mass(places)
    found = stats.centre_of_mass(places[kept])
    return {
        f"{prefix}centre_y": (found[0], even[0]),
        f"{prefix}centre_x": (found[1], even[1]),
        f"{prefix}lower_half": (share_below(places[kept]), share_below(places)),
    }


def share_below(places: np.ndarray) -> float:
    """Of the places that show a part of the picture, the share in its lower half."""
    shown = places[is_patch(places)]
    return float((shown[:, 0] > 0.5).mean()) if len(shown) else float("nan")
