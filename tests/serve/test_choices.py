"""Which methods and budgets a page offers, against trying every one."""

from __future__ import annotations

import pytest

from llava.serve.choices import choices_of, default_tokens
from visiondrop import METHODS, Geometry, build_method

SMALL = Geometry(8, 36, True, (6, 6), tower_layers=2)
TILED = Geometry(8, 80, True, (4, 4), crops=True, tower_layers=2)
NO_CLS = Geometry(8, 36, False, (6, 6), tower_layers=2)


@pytest.mark.parametrize("geometry", [SMALL, TILED, NO_CLS], ids=["one tile", "tiled", "no cls"])
def test_the_range_is_what_can_be_built(geometry: Geometry) -> None:
    choices = choices_of(geometry)
    assert "visiondrop" in choices and "full" not in choices
    for name, choice in choices.items():
        if not choice.budgeted:
            assert not METHODS[name].budgeted()
            choice.build(5, geometry)
            continue
        for tokens in range(1, geometry.num_patches + 1):
            try:
                build_method(name, tokens, geometry=geometry)
                fits = True
            except ValueError:
                fits = False
            assert fits == (choice.least <= tokens <= choice.most), (name, tokens)
        default = default_tokens(choice, geometry)
        assert choice.build(default, geometry).name == name
        with pytest.raises(ValueError, match=rf"{choice.least} to {choice.most} are possible"):
            choice.build(choice.most + 1, geometry)
    assert not [name for name in choices if set(METHODS[name].needs) & geometry.lacks]
    assert ("fastervlm" in choices) == geometry.has_cls
    assert ("globalcom2" in choices) == geometry.crops
    assert not {"cdpruner", "trim", "dtd", "framewise"} & set(choices)
