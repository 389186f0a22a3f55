"""FastV, PyramidDrop, SparseVLM, SparseVLM+ and DART against their released codes: every setting
and picture, from the prompt to the eighth token.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.visiondrop import golden_runs
from visiondrop.methods.dart import DART
from visiondrop.methods.fastv import FastV
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.sparsevlm_plus import SparseVLMPlus


def hyper(stem: str, name: str) -> dict[str, Any]:
    return golden_runs.setting(stem, name)["hyperparameters"]


@pytest.mark.parametrize("name", golden_runs.settings("FastV"))
def test_fastv(name: str) -> None:
    """With a KV cache (`fastv_kvcache.py`); its doubled cache layer counts once."""
    given = hyper("FastV", name)
    method = FastV(
        layer=given["K (fast_v_agg_layer / fastv_k)"], tokens=given["fast_v_attention_rank"]
    )
    run = golden_runs.run("FastV", name, method)
    for row, picture in enumerate(run.pictures):
        assert run.stage(row).layer == picture["pruning_before_layer_index"]
        assert run.kept(row) == picture["kept_patch_indices"]
    run.check()


@pytest.mark.parametrize("name", golden_runs.settings("PyramidDrop"))
def test_pyramiddrop(name: str) -> None:
    given = hyper("PyramidDrop", name)
    method = PyramidDrop(given["layer_list"], given["image_token_ratio_list"])
    run = golden_runs.run("PyramidDrop", name, method)
    for row, picture in enumerate(run.pictures):
        for index, expected in enumerate(picture["stages"]):
            stage = run.stage(row, index)
            assert stage.layer == expected["scored_with_weights_of_layer_index"]
            assert stage.tokens_in == expected["n_visual_in"]
            assert stage.source.tolist() == expected["kept_indices_in_current_visual_sequence"]
            assert run.kept(row, index) == expected["kept_patch_indices"]
    run.check()


def check_sparse_stages(
    run: golden_runs.GoldenRun, row: int, stages: list[dict], noise: str
) -> None:
    """Kept tokens, candidates, clusters and their order at each pruning point."""
    assert len(run.sample(row).stages) == len(stages)
    for index, expected in enumerate(stages):
        stage = run.stage(row, index)
        assert stage.layer == expected["after_layer_index"] + 1
        assert stage.tokens_in == expected["n_visual_in"]
        plain = stage.source[~stage.contextual].tolist()
        assert plain == expected["kept_indices_in_current_visual_sequence"]
        assert len(stage.source) == expected["n_visual_after"]
        if "n_clusters" not in expected:
            assert not stage.contextual.any()
            continue
        candidates = expected["recycled_candidate_indices_in_current_visual_sequence"]
        went = stage.target.tolist()
        assert [went[c] - len(plain) for c in candidates] == (
            expected["cluster_assignment_of_candidates"]
        )
        assert {i for i, w in enumerate(went) if w < 0} == (
            set(range(stage.tokens_in)) - set(plain) - set(candidates)
        )
        if noise == "zero" and expected["n_clusters"] == 1:
            continue  # each is its own nearest one: all densities are 1, any token may be centre
        centres = expected["cluster_centre_positions_in_candidate_list"]
        assert stage.source[stage.contextual].tolist() == [candidates[c] for c in centres]


@pytest.mark.parametrize("name", golden_runs.settings("SparseVLM"))
@pytest.mark.parametrize("noise", ["zero", "golden-ratio"])
def test_sparsevlm(name: str, noise: str) -> None:
    given = hyper("SparseVLM", name)
    method = SparseVLM(given["pruning_loc"], given["sparse_token_list"], noise=noise)
    pictures = golden_runs.setting("SparseVLM", name)["pictures"]
    if noise == "golden-ratio":
        pictures = [{**picture, **picture["with_golden_ratio_noise"]} for picture in pictures]
    run = golden_runs.run("SparseVLM", name, method, pictures=pictures)
    for row, picture in enumerate(run.pictures):
        check_sparse_stages(run, row, picture["stages"], noise)
    # The released code ignores the position that it is given in decoding and takes the layer's
    # cache length, which renumbered positions are.
    run.check(skip={"decode positions"})
    for step in (1, 2):
        for row, picture in enumerate(run.pictures):
            lengths = picture["prefill_sequence_length_by_layer"]
            spans = [[first, last, [length + step - 1]] for first, last, length in lengths]
            run.check_rope(row, step, spans)


@pytest.mark.parametrize("name", golden_runs.settings("SparseVLM_plus_V2"))
def test_sparsevlm_plus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = hyper("SparseVLM_plus_V2", name)
    method = SparseVLMPlus(given["pruning_loc"], given["sparse_token_list"])
    run = golden_runs.run("SparseVLM_plus_V2", name, method)
    for row, picture in enumerate(run.pictures):
        check_sparse_stages(run, row, picture["stages"], "none")
    run.check()


@pytest.mark.parametrize("name", golden_runs.settings("DART"))
def test_dart(name: str) -> None:
    given = hyper("DART", name)
    method = DART(given["K"], reduction_ratio=given["reduction_ratio"])
    run = golden_runs.run("DART", name, method)
    for row, picture in enumerate(run.pictures):
        assert run.stage(row).layer == picture["pruning_before_layer_index"]
        assert run.kept(row) == picture["kept_patch_indices"]
    run.check()


@pytest.mark.parametrize(
    "stem, method",
    [
        ("FastV", FastV),
        ("PyramidDrop", PyramidDrop),
        ("SparseVLM", SparseVLM),
        ("SparseVLM_plus_V2", SparseVLMPlus),
        ("DART", DART),
    ],
)
def test_golden_presets_are_the_released_settings(stem: str, method: Any) -> None:
    """Each golden setting that has a preset's name, or its values, is that preset."""
    ledgers = {
        json.dumps(method(**fields).ledger(32, 576)): name
        for name, fields in method.presets.items()
    }
    found = set()
    for setting in golden_runs.data(stem)["settings"]:
        picture = setting["pictures"][0]
        lengths = golden_runs.by_layer(picture["prefill_sequence_length_by_layer"])
        text = golden_runs.data(stem)["input"]
        text_tokens = text["text_before"] + text["text_after"]
        key = json.dumps([length - text_tokens for length in lengths])
        if key in ledgers:
            found.add(ledgers[key])
    assert found == set(method.presets) - {"lmms-eval_K3"} | (found & {"lmms-eval_K3"})
    assert torch.tensor(len(found)) > 0
