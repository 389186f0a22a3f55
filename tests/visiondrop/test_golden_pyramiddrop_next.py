"""PyramidDrop on packed any-resolution pictures against its released code.

The mechanism does not encode such pictures yet: the test packs the tiles by LLaVA's rule and hands
the packed run in as one picture of that many tokens. From there on everything is the library's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.visiondrop import golden_runs
from tests.visiondrop.test_golden_tiles import cases, grid_of, newline, side, tiles_of
from visiondrop import decoder
from visiondrop.functional.anyres_layout import assemble, row_order, tile_order
from visiondrop.methods.pyramiddrop import PyramidDrop

STEM = "PyramidDrop_next"


@torch.no_grad()
def packed(picture: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """Tokens as unpruned LLaVA packs them: thumbnail, rows without padding, newlines."""
    grid, patches = grid_of(picture), torch.arange(side() ** 2)
    rows = row_order([patches] * grid.crops, grid, unpad=True, newlines="window")
    order = torch.cat([tile_order(0, patches), rows])
    projector = golden_runs.model(dtype).model.multi_modal_projector
    tiles = projector(tiles_of(picture, dtype).patches)
    return assemble(order, list(tiles), newline(STEM).to(dtype))


@pytest.mark.parametrize("hyper, picture", cases(STEM))
def test_pyramiddrop(
    hyper: dict[str, Any], picture: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, but in float64 where the file says that a score ties in float32."""
    tie = picture.get("not_for_parity_in_float32", False)
    check(hyper, picture, torch.float64 if tie else torch.float32, monkeypatch)


@pytest.mark.parametrize("hyper, picture", cases(STEM)[3:4])
def test_pyramiddrop_in_float64(
    hyper: dict[str, Any], picture: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(hyper, picture, torch.float64, monkeypatch)


def check(
    hyper: dict[str, Any],
    picture: dict[str, Any],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One pool of thumbnail, crops and newlines: kept tokens, logits, ids, cache lengths."""
    method = PyramidDrop(hyper["layer_list"], hyper["image_token_ratio_list"])
    visual, llava = packed(picture, dtype), golden_runs.model(dtype)
    assert len(visual) == picture["n_visual_tokens_to_llm"]
    monkeypatch.setattr(decoder, "encode_pictures", lambda *args, **kwargs: [visual])
    words = golden_runs.data(STEM)["input"]["input_ids"]
    at, token = words.index(-200), llava.config.image_token_id
    ids = torch.tensor([[*words[:at], *[token] * len(visual), *words[at + 1 :]]])
    with method(llava) as trace:
        out = llava.generate(
            input_ids=ids,
            pixel_values=golden_runs.pixels([0], dtype),  # not read
            do_sample=False,
            max_new_tokens=golden_runs.STEPS,
            return_dict_in_generate=True,
            output_logits=True,
        )
    sample = trace.samples[0]
    for stage, expected in zip(sample.stages, picture["stages"], strict=True):
        assert stage.layer == expected["scored_with_weights_of_layer_index"]
        assert stage.tokens_in == expected["n_visual_in"]
        assert stage.source.tolist() == expected["kept_indices_in_current_visual_sequence"]
        assert stage.identity[stage.source].tolist() == expected["kept_packed_indices"]
    assert sample.tokens_per_layer == method.ledger(len(sample.lengths), len(visual))
    assert sample.lengths == golden_runs.by_layer(picture["prefill_sequence_length_by_layer"])
    held = [layer.get_seq_length() for layer in out.past_key_values.layers]
    assert held == golden_runs.by_layer(picture["kv_cache_length_by_layer_at_end"])
    expected_logits = torch.tensor(picture["first_step_logits"])
    torch.testing.assert_close(
        out.logits[0][0].float(), expected_logits, atol=golden_runs.LOGITS, rtol=0
    )
    new = out.sequences[0, ids.shape[1] :].tolist()
    assert new == picture["generated_ids"][-golden_runs.STEPS :]
