"""FastV, PyramidDrop, SparseVLM, SparseVLM+ and DART against their released codes: every setting
and picture, from the prompt to the eighth token.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.visiondrop import golden_runs
from visiondrop.methods import dart, sparsevlm, sparsevlm_plus
from visiondrop.methods.dart import DART
from visiondrop.methods.fastv import FastV
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.sparsevlm_plus import SparseVLMPlus
from visiondrop.reducer import Reducer

LENSES = [
    pytest.param(torch.float32, "sdpa", id="float32"),
    pytest.param(torch.float32, "eager", id="eager"),
    pytest.param(torch.float64, "sdpa", id="float64"),
]


def hyper(stem: str, name: str) -> dict[str, Any]:
    return golden_runs.setting(stem, name)["hyperparameters"]


def watch(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """What a function of a module returns, call by call."""
    seen, real = [], getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        seen.append(real(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(module, name, call)
    return seen


# ------------------------------------------------------------------ FastV, PyramidDrop


@pytest.mark.parametrize("name", golden_runs.settings("FastV"))
def test_fastv(name: str) -> None:
    """With a KV cache (`fastv_kvcache.py`); its doubled cache layer counts once."""
    given = hyper("FastV", name)
    method = FastV(
        layer=given["K (fast_v_agg_layer / fastv_k)"], tokens=given["fast_v_attention_rank"]
    )
    check_fastv(golden_runs.run("FastV", name, method))


def check_fastv(run: golden_runs.GoldenRun) -> None:
    for row, picture in enumerate(run.pictures):
        assert run.stage(row).layer == picture["pruning_before_layer_index"]
        assert run.kept(row) == picture["kept_patch_indices"]
    run.check()


@pytest.mark.parametrize("name", golden_runs.settings("PyramidDrop"))
def test_pyramiddrop(name: str) -> None:
    given = hyper("PyramidDrop", name)
    method = PyramidDrop(given["layer_list"], given["image_token_ratio_list"])
    check_pyramiddrop(golden_runs.run("PyramidDrop", name, method))


def check_pyramiddrop(run: golden_runs.GoldenRun) -> None:
    for row, picture in enumerate(run.pictures):
        assert len(run.sample(row).stages) == len(picture["stages"])
        for index, expected in enumerate(picture["stages"]):
            stage = run.stage(row, index)
            assert stage.layer == expected["scored_with_weights_of_layer_index"]
            assert stage.tokens_in == expected["n_visual_in"]
            assert stage.source.tolist() == expected["kept_indices_in_current_visual_sequence"]
            assert run.kept(row, index) == expected["kept_patch_indices"]
    run.check()


# ------------------------------------------------------------------ SparseVLM


def check_sparse(run: golden_runs.GoldenRun, raters: list[Tensor], noise: str = "none") -> None:
    """Raters, kept tokens, candidates, clusters and their order at each pruning point."""
    for row, picture in enumerate(run.pictures):
        for chosen in raters:
            assert (
                chosen[row].nonzero().squeeze(1).tolist()
                == (picture["text_rater_positions_after_image"])
            )
        assert len(run.sample(row).stages) == len(picture["stages"])
        for index, expected in enumerate(picture["stages"]):
            stage = run.stage(row, index)
            assert stage.layer == expected["after_layer_index"] + 1
            assert stage.tokens_in == expected["n_visual_in"]
            plain = stage.source[~stage.contextual].tolist()
            assert plain == expected["kept_indices_in_current_visual_sequence"]
            assert len(stage.source) == expected["n_visual_after"]
            if "n_clusters" in expected:
                check_clusters(stage, plain, expected, noise)
            else:
                assert not stage.contextual.any()


def check_clusters(stage: Any, plain: list[int], expected: dict[str, Any], noise: str) -> None:
    candidates = expected["recycled_candidate_indices_in_current_visual_sequence"]
    went = stage.target.tolist()
    assigned = [went[candidate] - len(plain) for candidate in candidates]
    assert assigned == expected["cluster_assignment_of_candidates"]
    dropped = {place for place, slot in enumerate(went) if slot < 0}
    assert dropped == set(range(stage.tokens_in)) - set(plain) - set(candidates)
    if noise != "golden-ratio" and expected["n_clusters"] == 1:
        return  # each token is its own nearest one: noise apart, all densities are 1
    centres = expected["cluster_centre_positions_in_candidate_list"]
    assert stage.source[stage.contextual].tolist() == [candidates[c] for c in centres]


@pytest.mark.parametrize("name", golden_runs.settings("SparseVLM"))
@pytest.mark.parametrize("noise", ["zero", "golden-ratio"])
def test_sparsevlm(name: str, noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sparsevlm(name, noise, monkeypatch)


def noise_is_idle(picture: dict[str, Any]) -> bool:
    """Whether no seed of the released random noise changed anything for this picture."""
    return all(
        all(seed["same_kept_tokens"]) and all(seed["same_clusters"])
        for seed in picture["with_official_random_density_noise"]
    )


NOISY = [  # 64 of 576: the released code's own noise decides its clusters
    setting["name"]
    for setting in golden_runs.data("SparseVLM")["settings"]
    if not any(map(noise_is_idle, setting["pictures"]))
]


@pytest.mark.parametrize("name", golden_runs.settings("SparseVLM", skip=NOISY))
def test_sparsevlm_with_random_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the released noise never mattered, ours does not either."""
    pictures = filter(noise_is_idle, golden_runs.setting("SparseVLM", name)["pictures"])
    run_sparsevlm(name, "random", monkeypatch, pictures=list(pictures))


def run_sparsevlm(name: str, noise: str, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> None:
    given = hyper("SparseVLM", name)
    method = SparseVLM(given["pruning_loc"], given["sparse_token_list"], noise=noise)
    pictures = kwargs.pop("pictures", golden_runs.setting("SparseVLM", name)["pictures"])
    if noise == "golden-ratio":
        pictures = [{**picture, **picture["with_golden_ratio_noise"]} for picture in pictures]
    raters = watch(monkeypatch, sparsevlm, "text_raters")
    reductions = watch(monkeypatch, sparsevlm, "recycle")
    run = golden_runs.run("SparseVLM", name, method, pictures=pictures, **kwargs)
    check_sparse(run, raters, noise)
    for row, picture in enumerate(run.pictures):
        for expected, reduction in zip(picture["stages"], reductions, strict=True):
            merged = reduction.features[row, expected["n_kept"] :].sum(-1)
            sums = torch.tensor(expected["merged_token_row_sums"], dtype=merged.dtype)
            torch.testing.assert_close(merged, sums, atol=1e-3, rtol=1e-4)
    # The released code ignores the position that it is given in decoding and takes the layer's
    # cache length; that is what renumbered positions are.
    run.check(skip={"decode positions"})
    for row, picture in enumerate(run.pictures):
        for step in (1, 2):
            lengths = picture["prefill_sequence_length_by_layer"]
            spans = [[first, last, [length + step - 1]] for first, last, length in lengths]
            run.check_rope(row, step, spans)


@pytest.mark.parametrize("name", golden_runs.settings("SparseVLM_plus_V2"))
def test_sparsevlm_plus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sparsevlm_plus(name, monkeypatch)


def run_sparsevlm_plus(name: str, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> None:
    given = hyper("SparseVLM_plus_V2", name)
    method = SparseVLMPlus(given["pruning_loc"], given["sparse_token_list"])
    raters = watch(monkeypatch, sparsevlm_plus, "text_raters")
    rated = watch(monkeypatch, sparsevlm_plus, "rated_by_heads")
    run = golden_runs.run("SparseVLM_plus_V2", name, method, **kwargs)
    check_sparse(run, raters)
    for row, picture in enumerate(run.pictures):
        for expected, (scores, heads) in zip(picture["stages"], rated, strict=True):
            assert sorted(heads[row].tolist()) == sorted(expected["selected_heads"])
            wanted = torch.tensor(expected["scores"], dtype=scores.dtype)
            torch.testing.assert_close(scores[row], wanted, atol=1e-6, rtol=1e-3)
    run.check()


# ------------------------------------------------------------------ DART


@pytest.mark.parametrize("name", golden_runs.settings("DART"))
def test_dart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dart(name, monkeypatch)


def run_dart(name: str, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> None:
    given = hyper("DART", name)
    method = DART(given["K"], reduction_ratio=given["reduction_ratio"])
    found = watch(monkeypatch, DART, "pivots")
    order = watch(monkeypatch, dart, "set_order")
    run = golden_runs.run("DART", name, method, **kwargs)
    layout = golden_runs.data("DART")["input"]
    start, end = layout["image_start"], layout["image_start"] + layout["n_patches"]
    for row, picture in enumerate(run.pictures):
        places = found[0][0][row].tolist()
        labels = [
            f"patch {p - start}" if p < end else f"text_after_image {p - end}" for p in places
        ]
        assert labels == [f"patch {p}" for p in picture["pivot_image_patches_by_key_norm"]] + [
            f"text_after_image {p}" for p in picture["pivot_text_positions_after_image_by_key_norm"]
        ]
        assert [labels[i] for i in order[0][row]] == picture["pivot_processing_order"]
        assert run.stage(row).layer == picture["pruning_before_layer_index"]
        assert run.kept(row) == picture["kept_patch_indices"]
    run.check()


# ------------------------------------------------------------------ other precision, presets


@pytest.mark.parametrize("dtype, attention", LENSES[1:])
def test_golden_llm_methods_eager_and_float64(
    dtype: torch.dtype, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One setting of each file, with eager attention and in float64."""
    lens = {"dtype": dtype, "attention": attention}
    check_fastv(golden_runs.run("FastV", "K2_keep64", FastV(2, tokens=64), **lens))
    check_pyramiddrop(golden_runs.run("PyramidDrop", "official_default", PyramidDrop(), **lens))
    with monkeypatch.context() as patch:
        run_sparsevlm("64", "golden-ratio", patch, **lens)
    with monkeypatch.context() as patch:
        run_sparsevlm_plus("64", patch, **lens)
    with monkeypatch.context() as patch:
        run_dart("64", patch, **lens)


PRESETS = [
    ("FastV", "K2_keep288", FastV, "K2_R50"),
    ("FastV", "K2_keep144", FastV, "K2_R75"),
    ("FastV", "K3_keep288", FastV, "lmms-eval_K3"),
    ("FastV", "K2_keep64", FastV, "64"),
    ("PyramidDrop", "official_default", PyramidDrop, "official"),
    *(("SparseVLM", name, SparseVLM, name) for name in ("192", "128", "96", "64")),
    *(("SparseVLM_plus_V2", name, SparseVLMPlus, name) for name in ("192", "128", "96", "64")),
    ("DART", "ratio0.778_as_in_README", DART, "0.778"),
    *(("DART", name, DART, name) for name in ("192", "128", "64")),
]


@pytest.mark.parametrize(
    "stem, name, method, preset",
    [pytest.param(*p, id=f"golden-{p[0]}-{p[3]}") for p in PRESETS],
)
def test_presets_are_the_released_settings(
    stem: str, name: str, method: type[Reducer], preset: str
) -> None:
    """Visual tokens by layer as in the file; and the papers' nominal budgets are these presets."""
    built = method(**method.presets[preset])
    given = golden_runs.data(stem)["input"]
    text = given["text_before"] + given["text_after"]
    picture = golden_runs.setting(stem, name)["pictures"][0]
    lengths = golden_runs.by_layer(picture["prefill_sequence_length_by_layer"])
    assert built.ledger(32, 576) == [length - text for length in lengths]
    if preset.isdigit():
        nominal = method.from_nominal(int(preset), num_layers=32)
        assert nominal.ledger(32, 576) == built.ledger(32, 576)
