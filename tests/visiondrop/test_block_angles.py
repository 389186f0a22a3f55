"""RoPE of the block that a stage opens: the beginning of what is there already, or made anew."""

import pytest
import torch

from tests.visiondrop import models
from visiondrop import VisionDrop

METHOD = {"encoder": (6, 2), "llm": {1: (4, 1), 2: (2, 1)}}


def prefill(model, rows, **options):
    """Logits, and what RoPE was asked for and handed to each layer."""
    decoder, asked, handed = model.model.language_model, [], []
    handles = [
        decoder.rotary_emb.register_forward_hook(
            lambda _m, _a, kwargs, _o: asked.append(kwargs["position_ids"]), with_kwargs=True
        )
    ]
    with VisionDrop(**METHOD, **options)(model), torch.inference_mode():
        for layer in decoder.layers:  # behind the mechanism's own hooks
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _m, _a, kwargs: handed.append(
                        (kwargs["position_embeddings"], kwargs["position_ids"])
                    ),
                    with_kwargs=True,
                )
            )
        out = model(**models.batch(rows), pixel_values=models.pixels(len(rows)), logits_to_keep=1)
        for handle in handles:
            handle.remove()
    return out.logits, asked, handed


@pytest.mark.parametrize("rope", ["default", "dynamic"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_beginning_of_the_angles_serves_where_rows_count_from_0(monkeypatch, rope, padded):
    model = models.tiny()
    rotary = model.model.language_model.rotary_emb
    monkeypatch.setattr(rotary, "rope_type", rope)
    rows = [models.prompt(5, 7, seed=1), models.prompt(2, 3, seed=2)][: 1 + padded]
    _, asked, handed = prefill(model, rows)
    assert len(asked) == (1 if rope == "default" and not padded else 3)
    for (cos, sin), positions in handed:
        expected = rotary(cos, position_ids=positions)
        torch.testing.assert_close(cos.expand_as(expected[0]), expected[0], rtol=0, atol=0)
        torch.testing.assert_close(sin.expand_as(expected[1]), expected[1], rtol=0, atol=0)


def test_original_positions_have_angles_of_their_own():
    model = models.tiny()
    _, asked, _ = prefill(model, [models.prompt(5, 7, seed=1)], positions="original")
    assert len(asked) == 3
