"""PruMerge and PruMerge+ against their released code: every setting, every picture."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import GOLDEN
from tests.visiondrop import golden_runs
from visiondrop.functional.neighbours import left_over, nearest
from visiondrop.merging import Reduction
from visiondrop.methods.prumerge import PruMerge
from visiondrop.methods.prumerge_plus import PruMergePlus
from visiondrop.scoring import attention_row, outlier_shares
from visiondrop.views import EncoderView

VISION = json.loads((GOLDEN / "tiny-clip-vit-336" / "config.json").read_text(encoding="utf-8"))
SIDE = VISION["image_size"] // VISION["patch_size"]
STEMS: dict[str, type[PruMerge]] = {"PruMerge": PruMerge, "PruMergePlus": PruMergePlus}
CASES = [
    pytest.param(stem, *p.values, id=p.id) for stem in STEMS for p in golden_runs.settings(stem)
]


def method_of(stem: str, name: str) -> PruMerge:
    """The setting in the method's own fields; a forced share stands in the setting's name."""
    numbers = golden_runs.setting(stem, name)["hyperparameters"]
    fields: dict[str, Any] = {"neighbours": numbers["k neighbours"]}
    if " forced to " in name:
        above, below = name.rsplit(" ", 1)[1].split("/")
        fields["ratio"] = int(above) / int(below)
    elif not numbers["if_adaptive"]:
        fields["ratio"] = numbers["reduction_ratio"]
    if stem == "PruMergePlus":
        fields["adaptive"] = numbers["if_adaptive"]
    return STEMS[stem](**fields)


@pytest.mark.parametrize("stem, name", CASES)
def test_released_run(stem: str, name: str) -> None:
    """Kept patches in their order, count, first-step logits, ids, lengths and positions."""
    run = golden_runs.run(stem, name, method_of(stem, name))
    for row, picture in enumerate(run.pictures):
        kept = picture["kept_patch_indices_in_output_order"]
        assert run.kept(row) == kept
        stage = run.stage(row)
        assert stage.tokens_out == picture["n_visual_tokens_to_llm"] == len(kept) + 1
        assert stage.contextual is not None and stage.contextual.tolist() == [False] * len(kept) + [
            True
        ]
    run.check()


@functools.cache
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "intermediates.safetensors")


def view(pictures: list[int]) -> EncoderView:
    """What the tower gives for these pictures, from tensors of the released model."""

    def stack(name: str) -> Tensor:
        return torch.stack([tensors()[f"picture{p}.{name}"] for p in pictures])

    def heads(name: str) -> Tensor:
        return stack(name).unflatten(2, (VISION["num_attention_heads"], -1)).transpose(1, 2)

    return EncoderView(
        stack("vision_hidden_states_minus2"),
        heads("layer22.q_proj_output"),
        heads("layer22.k_proj_output"),
        (VISION["hidden_size"] // VISION["num_attention_heads"]) ** -0.5,
        True,
        (SIDE, SIDE),
        make_keys=lambda: ["" for _ in pictures],
        make_following=lambda: (heads("layer23.q_proj_output"), heads("layer23.k_proj_output")),
    )


@pytest.mark.parametrize("stem, name", CASES)
def test_scores_neighbours_and_sums(stem: str, name: str) -> None:
    """Scores, share of outliers, what is left over, the 32 neighbours as sets, the sums of rows."""
    pictures = [
        p
        for p in golden_runs.setting(stem, name)["pictures"]
        if f"picture{p['picture']}.layer23.k_proj_output" in tensors()
    ]
    assert pictures
    method = method_of(stem, name)
    seen = view([p["picture"] for p in pictures])
    out = method.encoder_stage(seen)
    query, key = (x.transpose(1, 2).flatten(2) for x in seen.following)
    scores = attention_row(query[:, :1], key[:, None], VISION["hidden_size"] ** -0.5)[:, 1:]
    for g, picture in enumerate(pictures):
        expected = torch.tensor(picture["scores"])
        torch.testing.assert_close(scores[g], expected, atol=1e-8, rtol=2e-5)
        if name == "adaptive (official)":
            assert outlier_shares(scores)[g] == picture["adaptive_ratio"]
        kept = torch.tensor([picture["kept_patch_indices_in_output_order"]])
        rest = left_over(kept, SIDE * SIDE)
        free = sorted(set(range(SIDE * SIDE)) - set(kept[0].tolist()))
        assert rest.shape[1] == picture["n_rest"]
        assert (rest[0].tolist() == free) == picture["rest_equals_complement"]
        near = nearest(key[g : g + 1, 1:], kept, rest, method.neighbours)
        wanted = picture["neighbours_32_per_kept_token"]
        assert [sorted(row) for row in near[0].tolist()] == [sorted(row) for row in wanted]
        features = (out.features[g] if isinstance(out, Reduction) else out[g].features[0]).sum(-1)
        sums = torch.tensor(picture["tower_output_row_sums"])
        torch.testing.assert_close(features, sums, atol=5e-5, rtol=1e-5)
