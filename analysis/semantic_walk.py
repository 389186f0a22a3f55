"""What each question's prefill shows of text, picture and the region asked for.

One case is reduced as it is read: scores to how well they find the region and to their top tokens,
states to means and to a few tokens. States wider than `WIDTH` are projected on that many random
orthonormal directions (seeded), which keeps angles and what is linear in them up to noise.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from analysis.asked import Tokens
from analysis.overlap import overlap, top
from analysis.probe import Probe
from analysis.scores import ENCODER_SCORES, LLM_SCORES
from analysis.setting import Case, Look, Setting, Unknown
from visiondrop.scoring import uniform_column_mean
from visiondrop.views import DecoderView, EncoderView

__all__ = ["ASKED", "BACKGROUND", "OBJECT", "SCORES", "Seen", "see", "text_states"]

SCORES = ("last_text", "all_text", "visual", "visual_corrected")
BACKGROUND, OBJECT, ASKED = 0, 1, 2
"""Roles of tokens: they show no object, one that is not asked for, what is asked for."""
WIDTH = 256


@dataclass
class Seen:
    """What is kept of one case; L layers, S scores, k tokens.

    Attributes:
        total: visual tokens that show a part of the picture; asked: ids of those that show what is
            asked for, None where nobody knows.
        found: [L, S, 8], see `overlap.overlap`; None where nobody knows what is asked for.
        encoder: [8], the same of CLS in the vision tower, None where there is none.
        tops: [L, S, k], ids of the tokens with the highest scores.
        pooled: name -> [L, p], means of states: of the text after the picture ("text"), its last
            token ("last"), all visual tokens ("visual"), those asked for ("asked") and the others
            ("rest").
        cosine: [L], between the means of all visual and of all later text tokens' states.
        roles: [t], of the tokens whose states [L, t, p] are kept.
    """

    case: Case
    total: int
    asked: np.ndarray | None
    found: np.ndarray | None
    encoder: np.ndarray | None
    tops: np.ndarray
    pooled: dict[str, np.ndarray]
    cosine: np.ndarray
    roles: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    states: np.ndarray | None = None


class Directions:
    """[D, min(D, WIDTH)], what states are projected on; the identity for narrow ones."""

    def __init__(self, seed: int):
        self.seed = seed
        self.basis: Tensor | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., at most WIDTH], in float32."""
        width = states.shape[-1]
        if width <= WIDTH:
            return states.float()
        if self.basis is None:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randn(width, WIDTH, generator=generator)
            self.basis = torch.linalg.qr(drawn)[0].to(states.device)
        return states.float() @ self.basis


def read_scores(view: DecoderView) -> dict[str, Tensor]:
    """`SCORES`; the corrected one is made from the other, which costs most."""
    found = {name: LLM_SCORES[name](view) for name in SCORES[:3]}
    if view.places is None:
        even = uniform_column_mean(view.end - view.start, view.start, view.hidden.device)
        found["visual_corrected"] = found["visual"] / even
    else:
        found["visual_corrected"] = LLM_SCORES["visual_corrected"](view)
    return found


def read_states(view: DecoderView, project: Directions) -> dict[str, Tensor]:
    """States of the visual tokens, their means and those of the text behind."""
    visual = view.row_hidden[:, view.start : view.end]
    means = visual.mean(1, dtype=torch.float32)
    text = view.row_hidden[:, view.text_places].mean(1, dtype=torch.float32)
    return {
        "states": project(visual),
        "state_visual": project(means),
        "state_text": project(text),
        "state_last": project(view.row_hidden[:, -1]),
        "cosine": torch.cosine_similarity(means, text, dim=-1),
    }


def see(
    setting: Setting,
    layers: Sequence[int],
    tokens: int,
    each: int,
    seed: int,
    cases: Sequence[Case] | None = None,
) -> list[Seen]:
    """Read all cases, one prefill each.

    Args:
        tokens: size of the top sets; each: tokens of each role whose states are kept.
    """
    project = Directions(seed)
    encoder = _read_encoder if setting.geometry.has_cls else None
    probe = Probe(tuple(layers), lambda v: read_scores(v) | read_states(v, project), encoder)
    seen = []
    cls: dict[str, np.ndarray] = {}  # tiles of one picture are read once for all its questions
    for look in setting.walk(probe, cases, label="text and picture"):
        if look.readings[0].layer is None:
            cls[look.case.picture] = look.readings[0].values["cls"]
        own = cls.get(look.case.picture)
        seen.append(_reduce(look, own, setting, layers, tokens, each, seed))
    return seen


def _read_encoder(view: EncoderView) -> dict[str, Tensor]:
    return {"cls": ENCODER_SCORES["cls"](view)}


def _reduce(
    look: Look, cls: np.ndarray | None, setting: Setting, layers: Sequence[int],
    tokens: int, each: int, seed: int,
) -> Seen:  # fmt: skip
    case, readings = look.case, [look.at(layer) for layer in layers]
    shown = Tokens.of(readings[0].identity, look.trace, setting.geometry.grid)
    at = shown.places
    scores = np.stack([[r.values[name][at] for name in SCORES] for r in readings])
    pooled = {
        name: np.stack([r.values[f"state_{name}"] for r in readings])
        for name in ("text", "last", "visual")
    }
    cosine = np.array([float(r.values["cosine"]) for r in readings])
    tops = shown.ids[top(scores, tokens)]
    seen = Seen(case, len(at), None, None, None, tops, pooled, cosine)
    try:
        asked = shown.asked(case)
    except Unknown:
        return seen
    if not asked.any():
        return seen
    seen.asked, seen.found = shown.ids[asked], overlap(scores, asked, tokens)
    if cls is not None:
        seen.encoder = overlap(cls[shown.ids], asked, tokens)
    states = np.stack([r.values["states"][at] for r in readings])
    pooled["asked"] = states[:, asked].mean(1)
    pooled["rest"] = states[:, ~asked].mean(1)
    roles = np.where(asked, ASKED, BACKGROUND)
    try:
        known = setting.objects(case)
    except Unknown:
        pass  # then no reader learns what an object is
    else:
        squares = sorted({p for thing in known.objects for p in thing.patches})
        roles[~asked & shown.showing(squares, known.grid)] = OBJECT
    rng = np.random.default_rng([seed, zlib.crc32(case.sample.key.encode())])
    kept = np.concatenate(
        [rng.permutation(np.flatnonzero(roles == role))[:each] for role in range(3)]
    )
    seen.roles, seen.states = roles[kept], states[:, kept].astype(np.float16)
    return seen


def text_states(
    setting: Setting, layers: Sequence[int], seed: int, cases: Sequence[Case] | None = None
) -> list[dict[str, np.ndarray]]:
    """`Seen.pooled["text"]` and ["last"] with a plain grey picture in place of each."""
    project = Directions(seed)

    def read(view: DecoderView) -> dict[str, Tensor]:
        text = view.row_hidden[:, view.text_places].mean(1, dtype=torch.float32)
        return {"text": project(text), "last": project(view.row_hidden[:, -1])}

    probe = Probe(tuple(layers), read)
    return [
        {name: np.stack([r.values[name] for r in look.readings]) for name in ("text", "last")}
        for look in setting.walk(probe, cases, label="grey pictures", blank=True)
    ]
