"""Small parts of any-resolution pictures: sizes, budgets of tiles, options, token ids."""

from __future__ import annotations

import pytest
import torch

from tests.visiondrop.next_models import LARGEST, PATCHES, SIZES, grid_of, tiny_next
from visiondrop import VisionDrop
from visiondrop.adapters import geometry_of
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.methods import build_method
from visiondrop.tiles import tile_budgets


def test_geometry() -> None:
    geometry = geometry_of(tiny_next())
    assert geometry == geometry_of(tiny_next().config)
    assert geometry.num_patches == LARGEST and geometry.grid == (6, 6) and geometry.crops


def test_llava_next_budgets_are_the_papers() -> None:
    """320 of 2880: 480 enter, then 352, 258, 190; the ratio form shrinks them with the picture."""
    method = VisionDrop.from_average(320, num_layers=32, num_patches=2880)
    totals = [sum(method.encoder or ()), *map(sum, method.llm.values())]
    assert totals == [480, 352, 258, 190]
    small = TileGrid(1, 2, (672, 336), 24)
    share = method.on_tiles(budget="ratio").tiles.share_of(small, 2880)
    scaled = method.scaled(share)
    assert scaled.entry_tokens() == 288 and [sum(b) for b in scaled.llm.values()] == [211, 155, 114]


def test_options_on_the_command_line() -> None:
    args = {"tiles.budget": "ratio", "tiles.share": "equal", "merge": "mean"}
    method = build_method("visiondrop", 40, model=tiny_next(), args=args)
    assert (method.tiles.budget, method.tiles.share) == ("ratio", "equal")
    assert method.to_dict()["merge"] == "mean"
    with pytest.raises(ValueError, match="tiles.color; there are: tiles.budget"):
        build_method("uniform", 9, model=tiny_next(), args={"tiles.color": "red"})


def test_tile_budgets() -> None:
    even = [1.0] * 3
    assert tile_budgets(10, even, [9, 9, 9]) == [4, 3, 3]
    assert tile_budgets(10, even, [9, 1, 9]) == [5, 1, 4]
    assert tile_budgets(10, [0.0, 1.0, 3.0], [9, 9, 9]) == [0, 3, 7]
    assert tile_budgets(10, [0.0, 1.0, 3.0], [9, 2, 4]) == [4, 2, 4]
    assert tile_budgets(40, [0.25, 0.1, 0.3, 0.35], [37] * 4) == [10, 4, 12, 14]
    assert tile_budgets(99, even, [2, 3, 4]) == [2, 3, 4]


def test_importance_follows_content() -> None:
    """All attention in one corner of the thumbnail: its crop gets the crops' whole share."""
    thumbnail = torch.zeros(6, 6)
    thumbnail[:2, 4:] = 1.0
    weights = TileGrid(2, 2, (48, 48), 6).importance(thumbnail.flatten())
    assert weights.argmax() == 2 and weights.sum().item() == pytest.approx(1)
    torch.testing.assert_close(weights, torch.tensor([0.2, 0.0, 0.8, 0.0, 0.0]).double())
    # Above and below a wide picture lies padding: only what the crops show counts.
    even = TileGrid(2, 2, (48, 24), 6).importance(torch.ones(36))
    torch.testing.assert_close(even, torch.full((5,), 0.2).double())


@pytest.mark.parametrize("size", SIZES)
def test_token_ids_name_the_stock_packing(size: tuple[int, int]) -> None:
    """The stock packing of token ids: every id's slot is where the stock class puts it."""
    grid, model = grid_of(size), tiny_next().model
    ids = torch.arange(grid.tiles * PATCHES).float().view(grid.tiles, PATCHES, 1)
    packed, _ = model.pack_image_features(
        [ids], torch.tensor([size]), "default", image_newline=torch.tensor([-1.0])
    )
    order = packed[0][:, 0].long()
    lines = (order < 0).nonzero()[:, 0]
    assert grid.unpruned == len(order)
    order[lines] = grid.first_newline + grid.window[0] + torch.arange(len(lines))
    assert grid.slots(order).tolist() == list(range(len(order)))
    rows = grid.row_of(order)
    assert (rows[:PATCHES] == -1).all() and rows[PATCHES:].tolist() == sorted(rows[PATCHES:])
    assert grid.locate(-3) == ("cls", 2, -1, -1)
    assert grid.locate(PATCHES + 8) == ("patch", 1, 1, 2)
