"""The oracle at PyramidDrop's stages, in the model: what is asked for stays while there is room."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.eval.errors import EvalError
from llava.eval.loading import ModelChoice, load_model
from llava.eval.oracle import OraclePyramid
from llava.eval.planning import plan_runs
from visiondrop.adapters import Geometry
from visiondrop.methods import METHODS
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.reuse import reads_keys

PATCHES, LAYERS = 36, 8
STAGES: tuple[Any, Any] = ((2, 4, 6), (0.5, 0.25, 0.125))
KEPT = [18, 9, 4]
GEOMETRY = Geometry(LAYERS, PATCHES, True, (6, 6))


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(ModelChoice(str(tiny_model), device="cpu")).model


def present(model: Any, method: PyramidDrop, keys: list[str]) -> list[list[list[int]]]:
    """For each picture the patches left after each stage."""
    ids = torch.tensor([[1, 5, -200, 7, 8, 9]] * len(keys))
    pixels = torch.rand(len(keys), 3, 84, 84)
    with torch.inference_mode(), method(model, keys=keys) as trace:
        model.generate(ids, images=pixels, max_new_tokens=1, do_sample=False)
    out = []
    for sample in trace.samples:
        assert sample.tokens_per_layer == method.ledger(LAYERS, PATCHES)
        left, stages = list(range(PATCHES)), []
        for stage in sample.stages:
            left = [left[i] for i in stage.source.tolist()]
            stages.append(left)
        out.append(stages)
    return out


def test_recall_is_one_where_the_budget_allows(model: Any) -> None:
    """Regions of 1 to 36 patches in one batch: below a stage's count all of one stays, above it
    nothing else does."""
    draw = random.Random(0)
    sizes = [1, 3, 4, 5, 9, 12, 18, 25, 36]
    regions = {f"q{n}": draw.sample(range(PATCHES), n) for n in sizes}
    oracle = OraclePyramid(*STAGES, regions=regions)
    for key, stages in zip(regions, present(model, oracle, list(regions)), strict=True):
        region = set(regions[key])
        for left, count in zip(stages, KEPT, strict=True):
            assert len(left) == count == len(set(left)) and left == sorted(left)
            recall = len(region & set(left)) / len(region)
            if len(region) <= count:
                assert recall == 1
            else:
                assert set(left) <= region


def test_without_a_region_it_is_the_uniform_score(model: Any) -> None:
    uniform = PyramidDrop(*STAGES, score="uniform")
    oracle = OraclePyramid(*STAGES, regions={"k": []})
    assert present(model, oracle, ["k"]) == present(model, uniform, ["k"])


def test_a_sample_that_nobody_knows_is_an_error(model: Any) -> None:
    with pytest.raises(EvalError, match="region of sample k"):
        present(model, OraclePyramid(*STAGES, regions={"other": []}), ["k"])


def test_it_is_no_method_by_name_and_not_shared_between_questions() -> None:
    oracle = OraclePyramid(*STAGES, regions={"k": [1]})
    assert oracle.name not in METHODS
    assert reads_keys(oracle) and not oracle.reads_text
    with pytest.raises(ValueError, match="tiles"):
        oracle.check(Geometry(LAYERS, PATCHES, True, (6, 6), crops=True))
    with pytest.raises(ValueError, match="leave it 'uniform'"):
        OraclePyramid(*STAGES, score="text").check(GEOMETRY)
    other = OraclePyramid(*STAGES, regions={"k": [2]})
    assert oracle.to_dict() != other.to_dict()
    assert "regions" not in oracle.to_dict()


def test_only_a_score_that_draws_runs_with_every_seed() -> None:
    """`--methods pyramiddrop --seeds 0,1,2` is one run, as before; with score=random it is three;
    a seed beside another score names no other cell."""

    def cells(**args: str) -> list[tuple[str, int]]:
        runs = plan_runs(["pyramiddrop", "random"], [14], [0, 1, 2], GEOMETRY, args)
        return [(run.cell, run.seed) for run in runs if run.method.name == "pyramiddrop"]

    assert cells() == [("pyramiddrop-14", 0)]
    assert cells(score="visual") == [("pyramiddrop-14+score=visual", 0)]
    assert cells(score="random") == [("pyramiddrop-14+score=random", s) for s in (0, 1, 2)]
    assert cells(seed="7") == [("pyramiddrop-14", 0)]
    assert cells(score="random", seed="7") == [("pyramiddrop-14+score=random+seed=7", 0)]
