"""What is not defined on the Qwen2-VL families, refused before any compute."""

from __future__ import annotations

import pytest

from tests.visiondrop.qwen_models import LONGEST, tiny_qwen
from tests.visiondrop.test_qwen_identities import FAMILIES, ROWS, SETTINGS, STAGED, VISUALS, given
from visiondrop import Uniform
from visiondrop.methods import METHODS
from visiondrop.methods.fastv import FastV
from visiondrop.methods.yopo import Yopo


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_defined_is_refused(family: str) -> None:
    """Before any compute, naming what works."""
    model = tiny_qwen(family)
    runs = {method.name for method in SETTINGS.values()} - {"composed"}
    for name in sorted(set(METHODS) - runs):
        method = METHODS[name]()
        with pytest.raises(ValueError, match=r"(works?|work here).*visiondrop"), method(model):
            raise AssertionError(f"{name} not refused")
    with pytest.raises(ValueError, match="fastv: positions='renumbered'.*M-RoPE"):
        with FastV(2, tokens=9, positions="renumbered")(model):
            raise AssertionError("not refused")
    with pytest.raises(ValueError, match="a window needs one patch grid"), Yopo(window=3)(model):
        raise AssertionError("not refused")
    with pytest.raises(ValueError, match=f"{LONGEST + 1}.*{LONGEST}"), Uniform(LONGEST + 1)(model):
        raise AssertionError("not refused")
    with pytest.raises(ValueError, match="logits_to_keep"), STAGED(model):
        model(**given(family, ROWS[:1], VISUALS[:1]))


def test_sliding_windows_are_refused() -> None:
    model = tiny_qwen("qwen2_5_vl")
    config = type(model.config)(
        vision_config=model.config.vision_config.to_dict(),
        text_config={
            **model.config.text_config.to_dict(), "use_sliding_window": True, "sliding_window": 8,
            "max_window_layers": 2, "layer_types": None,
        },
    )  # fmt: skip
    with pytest.raises(ValueError, match="use_sliding_window=False"), STAGED(type(model)(config)):
        raise AssertionError("not refused")
