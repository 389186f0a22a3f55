"""Order of any-resolution pictures and budgets of their tiles, against independent loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from visiondrop.functional.anyres_layout import NEWLINE, TileGrid, assemble, row_order
from visiondrop.methods.globalcom2 import GlobalCom2
from visiondrop.methods.hired import partition_budgets

SIDE = 24


def order_by_loop(
    places: list[list[int]], grid: TileGrid, unpad: bool, newlines: str
) -> list[list[int]]:
    """Cell by cell over the whole token grid."""
    (rows, columns), (r0, r1, c0, c1) = grid.tokens, grid.window
    out = []
    for row in range(rows):
        for column in range(columns):
            crop = row // grid.side * grid.columns + column // grid.side
            patch = row % grid.side * grid.side + column % grid.side
            inside = r0 <= row < r1 and c0 <= column < c1
            if patch in places[crop] and (inside or not unpad):
                out.append([crop + 1, places[crop].index(patch)])
        if newlines == "grid" or (newlines == "window" and r0 <= row < r1):
            out.append([NEWLINE, row])
    return out


@pytest.mark.parametrize("newlines", ["none", "window", "grid"])
@pytest.mark.parametrize("unpad", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_row_order_equals_loop(seed: int, unpad: bool, newlines: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda a, b: int(torch.randint(a, b, (), generator=generator))  # noqa: E731
    grid = TileGrid(draw(1, 4), draw(1, 4), (draw(50, 400), draw(50, 400)), side=5)
    places = []
    for _ in range(grid.crops):
        place = torch.randperm(25, generator=generator)[: draw(0, 12)]
        places.append(torch.cat([place, place.new_tensor([-1, -1])]))
    order = row_order(places, grid, unpad=unpad, newlines=newlines)
    expected = order_by_loop([p.tolist() for p in places], grid, unpad, newlines)
    assert order.tolist() == expected
    tokens = [torch.randn(3, 2), *(torch.randn(len(p), 2) for p in places)]
    line = torch.randn(2)
    packed = assemble(order, tokens, line)
    for got, (tile, slot) in zip(packed, expected, strict=True):
        assert torch.equal(got, line if tile == NEWLINE else tokens[tile][slot])


@pytest.mark.parametrize(
    "original, rows, columns", [((672, 672), 2, 2), ((672, 500), 2, 2), ((280, 900), 3, 1)]
)
def test_globalcom2_exact_placement(original: tuple[int, int], rows: int, columns: int) -> None:
    """LLaVA's packing of what was kept: released where nothing is padded, and else in place."""
    grid = TileGrid(rows, columns, original, SIDE)
    scores = torch.randn(1 + grid.crops, SIDE**2, generator=torch.Generator().manual_seed(3))
    released, exact = GlobalCom2(0.2), GlobalCom2(0.2, placement="exact")
    kept = exact.select(scores, grid)
    order = exact.pack(kept, grid)[len(kept[0]) :]
    assert order.tolist() == order_by_loop([k.tolist() for k in kept[1:]], grid, True, "window")
    same = released.pack(kept, grid).tolist() == exact.pack(kept, grid).tolist()
    assert same == (original == (672, 672))


def budgets_by_loop(
    attention: list[float], grid: TileGrid, rate: float, alpha: float, rule: str
) -> list[int]:
    n, side = len(attention), grid.side
    total = int((1 + grid.crops) * n * rate)
    thumbnail = min(int(total * alpha), n)
    rest = min(total - thumbnail, grid.crops * n)
    weight = [0.0] * grid.crops
    best = sorted(range(n), key=lambda j: -attention[j])[: int(n * (1 - alpha))]
    for j, value in enumerate(attention):
        if rule == "paper":
            row, column = j // side // (side // grid.rows), j % side // (side // grid.columns)
            if row < grid.rows and column < grid.columns:
                weight[row * grid.columns + column] += value
        elif j in best:
            weight[j // (n // grid.crops)] += 1
    return [thumbnail, *(min(n, int(w / sum(weight) * rest)) for w in weight)]


@pytest.mark.parametrize("rule", ["released", "paper"])
@pytest.mark.parametrize("rows, columns", [(2, 2), (1, 2), (3, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_hired_budgets_equal_loop(seed: int, rows: int, columns: int, rule: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(SIDE * SIDE, generator=generator, dtype=torch.float64) ** 6
    grid = TileGrid(rows, columns, (672, 672), SIDE)
    for rate, alpha in ((0.2, 0.5), (0.4, 0.5), (0.1, 0.8), (0.9, 0.1), (1.0, 0.5)):
        total = int((1 + grid.crops) * SIDE**2 * rate)
        budgets = partition_budgets(attention, grid, total, alpha, rule)
        assert budgets == budgets_by_loop(attention.tolist(), grid, rate, alpha, rule)
        assert sum(budgets) <= total and max(budgets) <= SIDE**2
        if max(budgets) < SIDE**2:  # rounding down is all that is lost
            assert sum(budgets) > total - len(budgets)
        filled = partition_budgets(attention, grid, total, alpha, rule, fill=True)
        assert sum(filled) == total and max(filled) <= SIDE**2
        assert all(more >= own for more, own in zip(filled, budgets, strict=True))


def test_hired_budget_follows_content() -> None:
    """All early attention in one corner: its crop gets the crops' whole share."""
    attention = torch.zeros(SIDE, SIDE)
    attention[:12, 12:] = 1.0
    grid = TileGrid(2, 2, (672, 672), SIDE)
    # 5 tiles x 576 x 0.2 = 576: half for the thumbnail, half for the crop at the upper right.
    assert partition_budgets(attention.flatten(), grid, 576, rule="paper") == [288, 0, 288, 0, 0]


def test_hired_released_rule_needs_equal_runs() -> None:
    grid = TileGrid(5, 1, (336, 1680), side=24)
    with pytest.raises(ValueError, match="576 patches into 5 equal runs.*paper"):
        partition_budgets(torch.rand(576), grid, 100)
