"""VisPruner against its released code: whole in float64, in float32 what does not hang on the last
bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.visiondrop import golden_runs
from visiondrop.methods.vispruner import VisPruner

FLOAT64, FLOAT32 = "VisPruner_float64", "VisPruner"


def method_of(stem: str, name: str) -> VisPruner:
    numbers = golden_runs.setting(stem, name)["hyperparameters"]
    return VisPruner(numbers["visual_token_num"], important_ratio=numbers["important_ratio"])


def important(method: VisPruner, picture: dict[str, Any], kept: list[int]) -> None:
    """The important set as expected, and all of it kept."""
    expected = picture["important_patch_indices_in_score_order"]
    count = int(method.tokens * method.important_ratio)
    assert len(expected) == count and set(expected) <= set(kept)
    assert len(kept) == method.tokens and kept == sorted(set(kept))


@pytest.mark.parametrize("name", golden_runs.settings(FLOAT64))
def test_float64_run(name: str) -> None:
    """Kept patches, important ones, first-step logits, ids, lengths and positions."""
    method = method_of(FLOAT64, name)
    run = golden_runs.run(FLOAT64, name, method, dtype=torch.float64)
    for row, picture in enumerate(run.pictures):
        assert run.kept(row) == picture["kept_patch_indices"]
        important(method, picture, run.kept(row))
    run.check()


@pytest.mark.parametrize("name", golden_runs.settings(FLOAT32))
def test_float32_run(name: str) -> None:
    """The important set of every picture; all of it where float64 chooses the same."""
    method = method_of(FLOAT32, name)
    run = golden_runs.run(FLOAT32, name, method)
    for row, picture in enumerate(run.pictures):
        important(method, picture, run.kept(row))
        if picture["float64_rerun"]["same_selection"]:
            assert run.kept(row) == picture["kept_patch_indices"]
    stable = [p for p in run.pictures if p["float64_rerun"]["same_selection"]]
    if stable:
        golden_runs.run(FLOAT32, name, method, pictures=stable).check()
