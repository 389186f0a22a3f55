"""VisionZip, FasterVLM and HiRED on single tiles: golden figures, options, budgets, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.visiondrop import golden_runs
from tests.visiondrop.models import PATCHES, generate, pixels, prompt, tiny
from visiondrop.methods import build_method
from visiondrop.methods.fastervlm import FasterVLM
from visiondrop.methods.hired import HiRED
from visiondrop.methods.visionzip import VisionZip
from visiondrop.views import EncoderView


def method_of(stem: str, hyper: dict[str, Any]) -> Any:
    if stem == "VisionZip":
        return VisionZip(hyper["dominant"], hyper["contextual"])
    if stem == "FasterVLM":
        return FasterVLM(hyper["visual_token_num"])
    return HiRED.from_rate(hyper["token_budget_rate"], golden_runs.geometry())


def run(stem: str, name: str, **kwargs: Any) -> golden_runs.GoldenRun:
    hyper = golden_runs.setting(stem, name)["hyperparameters"]
    return golden_runs.run(stem, name, method_of(stem, hyper), **kwargs)


def check_merges(stage: Any, expected: dict[str, Any]) -> None:
    """Targets, members and who went where, in patch numbers."""
    assert [m["reference"] for m in stage.merged] == expected["contextual_target_patch_indices"]
    slots = {p: i for i, merged in enumerate(stage.merged) for p in merged["members"]}
    assert sorted(slots) == expected["merged_patch_indices"]
    went = [slots[patch] for patch in expected["merged_patch_indices"]]
    assert went == expected["merged_assignment_to_contextual_slot"]


@pytest.mark.parametrize("name", golden_runs.settings("VisionZip"))
def test_visionzip(name: str) -> None:
    done = run("VisionZip", name)
    for row, expected in enumerate(done.pictures):
        stage = done.stage(row)
        assert stage.kept == [-1, *expected["dominant_patch_indices"]]
        check_merges(stage, expected)
        assert stage.tokens_out == expected["n_visual_tokens_to_llm"]
    done.check()


@pytest.mark.parametrize(
    "stem, name",
    [
        pytest.param(stem, *param.values, id=param.id)
        for stem in ("FasterVLM", "HiRED_llava15")
        for param in golden_runs.settings(stem)
    ],
)
def test_top_of_cls_attention(stem: str, name: str) -> None:
    done = run(stem, name)
    for row, expected in enumerate(done.pictures):
        assert done.kept(row) == expected["kept_patch_indices"]
        assert done.stage(row).tokens_out == expected["n_visual_tokens_to_llm"]
    done.check()


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param(s, id=f"golden-{s}-float64-eager")
        for s in ("VisionZip", "FasterVLM", "HiRED_llava15")
    ],
)
def test_float64_and_eager(stem: str) -> None:
    """The selections do not hang on rounding or on the attention's implementation."""
    name = golden_runs.data(stem)["settings"][-1]["name"]
    done = run(stem, name, dtype=torch.float64, attention="eager")
    key = "dominant_patch_indices" if stem == "VisionZip" else "kept_patch_indices"
    assert [done.kept(row) for row in range(len(done.pictures))] == [p[key] for p in done.pictures]
    done.check()


# ------------------------------------------------------------------ single steps


@pytest.mark.parametrize("name", golden_runs.settings("VisionZip"))
def test_visionzip_merged_features(name: str) -> None:
    """Row sums of what goes into the projector, so that a wrong merge rule shows by itself."""
    pictures = golden_runs.setting("VisionZip", name)["pictures"]
    hyper = golden_runs.setting("VisionZip", name)["hyperparameters"]
    view = golden_runs.encoder_view([p["picture"] for p in pictures])
    features = method_of("VisionZip", hyper).encoder_stage(view).features
    for got, picture in zip(features, pictures, strict=True):
        expected = torch.tensor(picture["tower_output_row_sums"])
        torch.testing.assert_close(got.sum(-1), expected, atol=1e-3, rtol=1e-4)
        assert float(got.abs().sum()) == pytest.approx(picture["tower_output_abs_sum"], rel=1e-5)


@pytest.mark.parametrize(
    "stem",
    [pytest.param(s, id=f"golden-{s}-scores") for s in ("FasterVLM", "HiRED_llava15")],
)
def test_scores(stem: str) -> None:
    """FasterVLM averages CLS attention over heads, HiRED sums it."""
    pictures = golden_runs.data(stem)["settings"][0]["pictures"]
    view = golden_runs.encoder_view([p["picture"] for p in pictures])
    expected = torch.tensor([p["scores"] for p in pictures])
    factor = 1 if stem == "FasterVLM" else view.query.shape[1]
    torch.testing.assert_close(factor * view.cls_attention, expected, atol=1e-6, rtol=1e-4)


def random_view(seed: int, groups: int = 2, patches: int = 30) -> EncoderView:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    query, key = draw(groups, 3, 1 + patches, 4), draw(groups, 3, 1 + patches, 4)
    return EncoderView(
        draw(groups, 1 + patches, 8), query, key, 0.5, True, (5, 6), make_keys=lambda: []
    )


def visionzip_by_loop(view: EncoderView, g: int, method: VisionZip) -> torch.Tensor:
    """Token by token, without any function of the library."""
    x, tokens = view.features[g].tolist(), view.features.shape[1]
    score = [0.0] * tokens
    for head in range(view.query.shape[1]):
        logits = [float(view.query[g, head, 0] @ view.key[g, head, j]) / 2 for j in range(tokens)]
        total = sum(2.718281828459045**z for z in logits)
        score = [s + 2.718281828459045**z / total for s, z in zip(score, logits, strict=True)]
    best = sorted(range(1, tokens), key=lambda j: -score[j])[: method.dominant - 1]
    kept = [0, *sorted(best)]
    rest = [j for j in range(tokens) if j not in kept]
    out = [x[j] for j in kept]
    if not method.contextual:
        return torch.tensor(out)
    metric = [
        [sum(h) for h in zip(*view.key[g, :, j].tolist(), strict=True)] for j in range(tokens)
    ]
    norm = lambda v: sum(a * a for a in v) ** 0.5  # noqa: E731
    step = max(1, len(rest) // method.contextual)
    targets = rest[::step][: method.contextual]
    members: dict[int, list[int]] = {t: [] for t in targets}
    for j in (j for j in rest if j not in targets):
        cosine = [
            sum(a * b for a, b in zip(metric[j], metric[t], strict=True)) / norm(metric[t])
            for t in targets
        ]
        members[targets[cosine.index(max(cosine))]].append(j)
    for t in targets:
        columns = list(zip(*(x[j] for j in members[t]), strict=True))
        if not columns:
            out.append(x[t])
        elif method.merge == "sum":
            out.append([a + sum(c) / len(c) for a, c in zip(x[t], columns, strict=True)])
        else:
            out.append([(a + sum(c)) / (1 + len(c)) for a, c in zip(x[t], columns, strict=True)])
    return torch.tensor(out)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "method",
    [
        VisionZip(7, 4),
        VisionZip(7, 4, merge="mean"),
        VisionZip(9, 0),
        VisionZip(1, 30),
        VisionZip(20, 9),
    ],
    ids=["sum", "mean", "none-merged", "all-targets", "few-left"],
)
def test_visionzip_equals_loop(method: VisionZip, seed: int) -> None:
    view = random_view(seed)
    out = method.encoder_stage(view)
    for g in range(2):
        expected = visionzip_by_loop(view, g, method)
        torch.testing.assert_close(out.features[g], expected, atol=1e-5, rtol=1e-4)
    # No patch is lost where there are merged tokens, and only the kept stay where there are none.
    stands_for = out.sizes.sum(1).tolist()
    assert stands_for == [31 if method.contextual else method.dominant] * 2


def test_visionzip_without_merged_tokens_is_fastervlm_and_cls() -> None:
    """Their scores are the same, so dominant - 1 patches are FasterVLM's."""
    view = random_view(11)
    zipped = VisionZip(9, 0).encoder_stage(view)
    assert zipped.source[:, 0].tolist() == [0, 0]
    assert torch.equal(zipped.source[:, 1:], FasterVLM(8).encoder_stage(view).source)


# ------------------------------------------------------------------ budgets and refusals


@pytest.mark.parametrize("tokens", [192, 128, 64, 32])
def test_visionzip_budgets_are_the_released_settings(tokens: int) -> None:
    method = VisionZip.from_average(tokens, num_layers=32)
    assert method == VisionZip(**VisionZip.presets[str(tokens)])
    assert method.ledger(32) == [tokens] * 32


@pytest.mark.parametrize("tokens", [1, 2, 3, 17, 576, 577])
def test_visionzip_any_budget(tokens: int) -> None:
    geometry = golden_runs.geometry()
    for options in ({}, {"contextual": 0}):
        method = VisionZip.from_average(tokens, num_layers=32, **options)
        method.check(geometry)
        assert method.dominant >= 1 and method.ledger(32) == [tokens] * 32


@pytest.mark.parametrize(
    "method, message",
    [
        (VisionZip(500, 80), "80 contextual tokens asked for where 77"),
        (VisionZip(600, 0), "600 dominant tokens asked for where 577"),
        (VisionZip(0, 4), "at least 1"),
        (FasterVLM(577), "577.*576 at most"),
        (HiRED(0), "give 1 to 576"),
    ],
)
def test_impossible_budgets(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method.check(golden_runs.geometry())


@pytest.mark.parametrize("method", [FasterVLM(9), HiRED(9)])
def test_tower_without_cls_is_refused(method: Any) -> None:
    model = tiny(tower="siglip", decoder="qwen2", kv_heads=2)
    with pytest.raises(ValueError, match=rf"{method.name}.*CLS.*visiondrop"):
        with method(model):
            raise AssertionError("not refused")


def test_hired_rate_and_presets() -> None:
    geometry = golden_runs.geometry()
    assert HiRED.from_rate(0.2, geometry) == HiRED() == build_method("hired", geometry=geometry)
    assert build_method("hired@rate0.4", geometry=geometry) == HiRED(230)
    assert build_method("fastervlm@R90", geometry=geometry) == FasterVLM(58)
    assert build_method("visionzip@default", geometry=geometry) == VisionZip(191, 30)


def test_all_patches_are_the_unpruned_model() -> None:
    model, rows = tiny(), [prompt(3, 6, 1), prompt(5, 4, 2)]
    plain = generate(model, rows, pixels(2))
    for method in (FasterVLM(PATCHES), HiRED(PATCHES)):
        with method(model):
            out = generate(model, rows, pixels(2))
        torch.testing.assert_close(torch.stack(out.logits), torch.stack(plain.logits))
