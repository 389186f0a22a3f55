"""Tokens that show squares of a picture, against places worked out by hand."""

import numpy as np
import pytest

from analysis.asked import Tokens, covered, token_boxes
from analysis.setting import Case, Unknown
from llava.eval.samples import Sample
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.trace import SampleTrace

SIDE = 14


def trace(**more) -> SampleTrace:
    return SampleTrace(None, [4], [4], 1, **more)


def tokens(identity, grid, **more) -> Tokens:
    return Tokens.of(np.asarray(identity), trace(**more), grid)


def test_of_one_tile_tokens_are_squares_in_whatever_order():
    found = tokens([5, 0, 11, 3], (3, 4))
    assert found.showing([0, 3], None).tolist() == [False, True, False, True]
    case = Case(Sample("q", "what?", "p"), "what?", region=(11,), grid=(3, 4))
    assert found.asked(case).tolist() == [False, False, True, False]
    with pytest.raises(Unknown, match="nobody knows"):
        found.asked(Case(Sample("q", "what?", "p"), "what?"))
    with pytest.raises(Unknown, match="6 x 8 squares"):
        found.showing([0], (6, 8))


def test_tiles_show_a_square_in_a_crop_and_in_the_thumbnail():
    # 56 x 28 pixels, two crops of 2 x 2 patches: 2 x 4 squares, one patch of a crop each.
    grid = TileGrid(1, 2, (4 * SIDE, 2 * SIDE), 2)
    everything = np.arange(3 * 4 + 2)  # and both rows' newlines
    found = tokens(everything, (2, 2), grids=[grid])
    assert len(found.ids) == 12  # without newlines
    # The upper right square: half of a thumbnail's patch, and one patch of the second crop.
    assert found.ids[found.showing([3], (2, 4))].tolist() == [1, 4 + 4 + 1]
    all_squares = found.showing(range(8), (2, 4))
    assert all_squares.all()


def test_padding_shows_nothing():
    # 28 x 14 pixels in the middle of 2 x 2 patches, twice as wide as high: half is border.
    grid = TileGrid(1, 1, (2 * SIDE, SIDE), 4, merge="flat")
    found = tokens(np.arange(2 * 16), (4, 4), grids=[grid])
    assert (found.ids < 16).sum() == 16 and (found.ids >= 16).sum() == 8


def test_the_share_that_squares_cover():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [4, 4, 5, 5], [np.nan] * 4], float)
    found = covered(boxes, [0, 3], 2, (1, 1))  # the two on the diagonal
    assert found.tolist() == [0.5, 0.25, 0, 0]
    assert covered(boxes, [], 2, (1, 1)).tolist() == [0] * 4


def test_boxes_of_packed_and_native_pictures():
    layout = PackedGrid(side=2, rows=2, columns=4, tiles=3)
    found = token_boxes(np.array([3, 4, layout.first_newline]), trace(grids=[layout]), (2, 2))
    assert found[0].tolist() == [0.5, 0.5, 1, 1]
    assert found[1].tolist() == [0, 0, 0.25, 0.5]
    assert np.isnan(found[2]).all()
    native = token_boxes(np.array([5]), trace(shapes=[(1, 2, 3)]), (24, 24))
    assert np.allclose(native, [[2 / 3, 0.5, 1, 1]])
