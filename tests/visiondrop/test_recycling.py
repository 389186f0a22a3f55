"""The parts of VFlowOpt: recycling, calibrated attention, entropy of patches."""

from __future__ import annotations

import pytest
import torch

from visiondrop.functional.calibration import calibrated_attention
from visiondrop.functional.patches import CLIP_MEAN, CLIP_STD, cells, grey_entropy
from visiondrop.functional.recycling import recycle_lowest
from visiondrop.scoring import column_mean

GRID = (4, 6)


@pytest.mark.parametrize("tokens", range(6, 25))
def test_recycling_leaves_exactly_as_many_and_loses_none(tokens: int) -> None:
    """Every count from one a cell to all is met; every token is kept or recycled in its cell."""
    draw = torch.Generator().manual_seed(tokens)
    features = torch.randn(3, 24, 4, generator=draw, dtype=torch.float64)
    importance = torch.rand(3, 24, generator=draw, dtype=torch.float64)
    importance[0, 3:9] = 0.25  # ties
    cell, number = cells(GRID, 2)
    assert number == 6
    sizes = torch.ones(3, 24, dtype=torch.long)
    out = recycle_lowest(features, sizes, importance, cell.expand(3, -1), number, tokens)
    assert out.source.shape == (3, tokens) and out.features.dtype == torch.float64
    assert (out.source.diff(dim=1) > 0).all() and (out.target >= 0).all()
    assert (out.sizes.sum(1) == 24).all()
    went = out.source.gather(1, out.target)
    assert torch.equal(cell[went], cell.expand(3, -1)) or tokens == 24
    assert (importance.gather(1, went) >= importance).all()
    assert (out.features.amax(1) <= features.amax(1)).all()  # means, never sums
    if tokens == 24:
        assert torch.equal(out.features, features)


def test_weights_of_nothing_give_the_plain_mean() -> None:
    features = torch.arange(8.0).view(1, 4, 2)
    sizes, cell = torch.ones(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)
    importance = torch.tensor([[-1.0, -3.0, 5.0, -2.0]])
    out = recycle_lowest(features, sizes, importance, cell, 1, 2)
    assert out.source.tolist() == [[0, 2]] and out.target.tolist() == [[0, 0, 1, 0]]
    torch.testing.assert_close(out.features[0, 0], torch.tensor([8 / 3, 11 / 3]))


def test_calibration_of_all_is_the_column_mean_and_of_none_the_most_attended() -> None:
    query, key = torch.randn(2, 2, 3, 9, 5, generator=torch.Generator().manual_seed(1))
    everyone = column_mean(query, key, 0.4, causal=False)
    torch.testing.assert_close(calibrated_attention(query, key, 0.4, 0.0), everyone)
    one = calibrated_attention(query, key, 0.4, 1e9)
    rows = ((query @ key.transpose(-1, -2)) * 0.4).softmax(-1).mean(1)
    expected = torch.stack([rows[g, everyone[g].argmax()] for g in range(2)])
    torch.testing.assert_close(one, expected)
    torch.testing.assert_close(one.sum(-1), torch.ones(2))


def test_entropy_of_flat_and_of_two_halves() -> None:
    """0 bits for one level, 1 bit for two equally often, log2(16) where all pixels differ."""
    level = torch.zeros(1, 3, 4, 12)
    level[..., :2, 4:8] = 200 / 255
    level[..., 8:] = torch.arange(16.0).view(4, 4) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    out = grey_entropy((level - mean) / std, (1, 3))
    torch.testing.assert_close(out, torch.tensor([[0.0, 1.0, 4.0]]))


def test_fewer_tokens_than_cells_are_refused() -> None:
    ones = torch.ones(1, 4)
    with pytest.raises(ValueError, match="at least one token a cell"):
        recycle_lowest(ones[..., None], ones.long(), ones, torch.arange(4)[None], 4, 3)
