"""Attention planted at known patches, followed to bias, overlap, what a method keeps, and coverage.

The tiny model's weights are set by hand: every query looks for a mark that the planted patches
carry, at all layers alike, so that what each number has to be is known.
"""

import copy

import numpy as np
import pytest
import torch

from analysis import overlap
from analysis.coverage import measures
from analysis.places import centres
from analysis.position_stats import centre_of_mass, first_to_last, hits, kept_at_the_end
from analysis.probe import Probe
from analysis.scores import LLM_SCORES
from tests.visiondrop import models
from tests.visiondrop.models import LAYERS, PATCHES
from visiondrop.methods.fastv import FastV
from visiondrop.methods.pyramiddrop import PyramidDrop

SIDE = 6
HEAD = 8
SLOWEST = HEAD // 2 - 1  # of a head's pairs the one that RoPE hardly turns over fifty places
LOGIT = 4.0


class Marked(torch.nn.Module):
    """A projector that gives every patch one embedding, and the planted ones a mark."""

    def __init__(self, planted):
        super().__init__()
        self.planted = planted

    def forward(self, features):
        out = torch.zeros(*features.shape[:-1], 32)
        out[..., 0] = 1
        out[..., self.planted, 1] = 1
        return out


def planted_model(planted):
    model = copy.deepcopy(models.tiny())
    model.model.multi_modal_projector = Marked(list(planted))
    decoder = model.model.language_model
    with torch.no_grad():
        decoder.embed_tokens.weight.zero_()[:, 0] = 1
        for layer in decoder.layers:
            layer.input_layernorm.weight.fill_(1)
            for weight in (
                layer.self_attn.q_proj.weight,
                layer.self_attn.k_proj.weight,
                layer.self_attn.o_proj.weight,  # nothing is written: all layers read the same
                layer.mlp.down_proj.weight,
            ):
                weight.zero_()
            for head in range(4):
                layer.self_attn.q_proj.weight[head * HEAD + SLOWEST, 0] = LOGIT
                layer.self_attn.k_proj.weight[head * HEAD + SLOWEST, 1] = 1
    return model


def run(model, method, **more):
    rows = [models.prompt(4, 6, seed=1)]
    with method(model, keys=["one"], **more) as trace, torch.inference_mode():
        model(**models.batch(rows), pixel_values=models.pixels(1), logits_to_keep=1)
    return trace.samples[0]


def read(planted):
    model = planted_model(planted)
    names = ("last_text", "all_text", "visual", "visual_corrected")
    probe = Probe((0, LAYERS - 1), lambda view: {name: LLM_SCORES[name](view) for name in names})
    sample = run(model, probe)
    places = centres(np.arange(PATCHES), sample, (SIDE, SIDE))
    return probe.take(), places


REGIONS = {
    "a square": (7, 8, 13, 14),
    "the last row": tuple(range(30, 36)),
    "apart": (0, 17, 35),
}


@pytest.mark.parametrize("planted", REGIONS.values(), ids=REGIONS)
def test_text_that_looks_at_planted_patches_finds_them(planted):
    readings, places = read(planted)
    wanted = np.isin(np.arange(PATCHES), planted)
    for reading in readings:
        for name in ("last_text", "all_text"):
            score = reading.values[name]
            assert score[wanted] == pytest.approx(1 / len(planted), rel=2e-2)
            found = dict(
                zip(overlap.names(12), overlap.overlap(score[None], wanted, 12)[0], strict=True)
            )
            assert found["auc"] == found["recall"] == found["iou"] == found["recall_12"] == 1
            assert found["precision_12"] == pytest.approx(len(planted) / 12)
            middle = places[list(planted)].mean(0)
            assert centre_of_mass(places, score) == pytest.approx(tuple(middle), abs=1e-2)


def test_the_planted_end_is_the_bias_that_is_found():
    for half, early in ((range(18), True), (range(18, 36), False)):
        readings, _ = read(tuple(half))
        for reading in readings:
            ratio = first_to_last(reading.values["last_text"])
            assert ratio > 1e3 if early else ratio < 1e-3


def test_the_corrected_visual_score_finds_planted_patches_that_the_causal_one_discounts():
    """The last row is seen by the fewest queries: the released score is too low by what uniform
    attention says."""
    last = REGIONS["the last row"]
    readings, _ = read((*range(6), *last))
    for reading in readings:
        visual, corrected = reading.values["visual"], reading.values["visual_corrected"]
        assert set(np.argsort(-visual)[:6]) == set(range(6))
        assert visual[0] > 10 * visual[35]
        assert set(np.argsort(-corrected)[:12]) == {*range(6), *last}


@pytest.mark.parametrize("planted", REGIONS.values(), ids=REGIONS)
def test_methods_that_ask_the_text_keep_planted_patches_and_cover_as_these_do(planted):
    model = planted_model(planted)
    count = len(planted)
    for method in (
        PyramidDrop(layers=(2,), ratios=((count + 0.5) / PATCHES,)),
        FastV(layer=2, tokens=count),
    ):
        sample = run(model, method)
        kept, merged = kept_at_the_end(sample)
        assert sorted(kept.tolist()) == sorted(planted) and not len(merged)
        flags = np.isin(np.arange(PATCHES), kept)
        assert hits(flags, np.isin(np.arange(PATCHES), planted)) == (1, 1)
        places = centres(np.arange(PATCHES), sample, (SIDE, SIDE))
        found = measures(places, places[flags], flags, (SIDE, SIDE))
        rows, columns = np.divmod(np.arange(PATCHES), SIDE)
        nearest = [
            min(np.hypot(r - p // SIDE, c - p % SIDE) for p in planted) / SIDE
            for r, c in zip(rows, columns, strict=True)
        ]
        assert found["mean"] == pytest.approx(np.mean(nearest))
        assert found["far"] == pytest.approx(max(nearest))
        largest = max(
            size
            for size in range(SIDE + 1)
            for r in range(SIDE - size + 1)
            for c in range(SIDE - size + 1)
            if not flags.reshape(SIDE, SIDE)[r : r + size, c : c + size].any()
        )
        assert found["hole"] == pytest.approx(largest / SIDE)
