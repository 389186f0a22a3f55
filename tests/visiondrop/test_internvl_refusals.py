"""What cannot be on InternVL, refused before any compute."""

from __future__ import annotations

import pytest

from tests.visiondrop.internvl_models import generate, inputs, picture, prompt, tiny_internvl
from tests.visiondrop.models import IMAGE, batch
from tests.visiondrop.test_internvl_identities import ALL, FRAMES, ROWS, SETTINGS, STAGED
from visiondrop.adapters import geometry_of
from visiondrop.methods import METHODS


def test_what_cannot_be_is_refused() -> None:
    model = tiny_internvl()
    geometry = geometry_of(model)
    assert geometry == geometry_of(model.config)
    working = {method.name for method in [*SETTINGS.values(), *FRAMES.values()]} - {"composed"}
    for name, method in METHODS.items():
        if name in working:
            continue
        with pytest.raises(ValueError, match="here:|without:") as said, method()(model):
            raise AssertionError(f"{name} not refused")
        assert set(str(said.value).rsplit(": ", 1)[1].split(", ")) == working
    full = {"vision_feature_select_strategy": "full"}
    with STAGED(model), pytest.raises(ValueError, match="'full': CLS has no place"):
        model(**batch(ROWS), **ALL, **full, logits_to_keep=1)
    for layer, message in ((0, "reads no layer"), ([-1, -2], "use one layer")):
        with STAGED(model), pytest.raises(ValueError, match=message):
            model(**batch(ROWS), **ALL, vision_feature_layer=layer, logits_to_keep=1)
    row = prompt(3, 5, 1, [2])
    row.insert(row.index(IMAGE) + 5, 7)
    with STAGED(model), pytest.raises(ValueError, match="run of 5 placeholders is no whole"):
        generate(model, [row], inputs([2], [1]))
    with STAGED(model), pytest.raises(ValueError, match="image"):
        generate(model, [prompt(3, 5, 1, [2])], {"pixel_values": picture(3, 1)})
