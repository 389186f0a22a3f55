"""What must not go wrong in silence: KV of another model, a refused prefill, hooks that cannot be
removed, features without their tiles, conversations of models that count positions in planes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.visiondrop import next_models, qwen_models
from tests.visiondrop.models import batch, generate, logits, pixels, prompt, tiny
from visiondrop import Chat, Full, ImageCache, Uniform, VisionDrop
from visiondrop.extensions.base import Extension

DROP = VisionDrop(encoder=(9, 3), llm={3: (5, 2)}, query="patches")
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_conversation_with_pictures_in_two_turns(family: str) -> None:
    """As its processor gives the inputs of each turn, types of the whole turn among them."""
    model = qwen_models.tiny_qwen(family)
    shown = [[("image", (1, 4, 6), 1)], [("image", (1, 6, 6), 2)]]
    turns = [qwen_models.row(3, 4, 1, shown[0]), [7, 8, 9], qwen_models.row(5, 3, 2, shown[1])]
    chat, options = Chat(ImageCache(model, DROP)), {"max_new_tokens": 3, "min_new_tokens": 3}
    whole: list[int] = []
    for turn, own in zip(turns, (shown[0], None, shown[1]), strict=True):
        given = None
        if own:
            given = dict(qwen_models.inputs(family, [turn], [own]))
            for name in ("input_ids", "attention_mask"):
                given.pop(name)
        answer = chat.ask(turn, given, do_sample=False, **options)
        whole += turn
        so_far = sum(shown, []) if own is shown[1] else shown[0]
        with DROP(model):
            fresh = qwen_models.generate(
                model, qwen_models.inputs(family, [whole], [so_far]), **options
            )
        assert answer.tolist() == fresh.sequences[0, -3:].tolist()
        whole += answer.tolist()


def test_a_prefix_of_another_model_or_method_is_refused() -> None:
    head, own = prompt(3, 1, 1)[:-1], {"pixel_values": pixels(1)}
    prefix = ImageCache(tiny(), DROP).build(head, **own)
    assert ImageCache(tiny(), DROP).logits(prefix, [5, 6]).shape[0] == 1
    others = [ImageCache(tiny(), Uniform(9)), ImageCache(tiny(seed=3), DROP), ImageCache(tiny())]
    for other in others:
        for ask in (other.logits, other.generate):
            with pytest.raises(ValueError, match="another model or method"):
                ask(prefix, [5, 6])


def test_a_cache_of_a_refused_prefill_is_not_used_outside() -> None:
    model, cache = tiny(), DynamicCache(config=tiny().config.text_config)
    row = prompt(3, 5, 1)
    bad = torch.ones(1, 1, len(row), len(row))
    with DROP(model), pytest.raises(ValueError, match="2-dimensional"):
        model(
            input_ids=torch.tensor([row]), pixel_values=pixels(1), attention_mask=bad,
            past_key_values=cache, logits_to_keep=1,
        )  # fmt: skip
    with pytest.raises(RuntimeError, match="only inside"):
        model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)


class Stuck(Extension):
    """Cannot be removed."""

    def attach(self, mechanism: Any) -> None:
        """Nothing."""

    def detach(self) -> None:
        raise RuntimeError("stuck")


class Holding(Full):
    """A method with such an extension; no name of its own, so that no list has it."""

    def extension(self) -> Extension:
        return Stuck()


def test_whatever_is_raised_the_model_is_as_before() -> None:
    model = tiny(seed=4)
    rows, images = [prompt(3, 5, 1)], pixels(1)
    plain = logits(generate(model, rows, images))
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stuck"), Holding()(model):
            pass
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert "get_image_features" not in model.model.__dict__
    assert torch.equal(logits(generate(model, rows, images)), plain)


def test_features_of_tiles_from_outside_are_refused() -> None:
    model, size = next_models.tiny_next(), next_models.SIZES[0]
    rows = [next_models.prompt(3, 5, 1, [size])]
    given = next_models.inputs([size], [1])
    made = model.model.get_image_features(**given)
    inside = VisionDrop(llm={3: (9, 2)})
    with inside(model), pytest.raises(ValueError, match="tiles and newlines"):
        model(**batch(rows), mm_encoder_outputs={"image": made}, logits_to_keep=1)
