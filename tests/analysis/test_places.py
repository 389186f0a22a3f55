"""Places of tokens, against boxes worked out by hand."""

import numpy as np
import pytest

from analysis.places import centres, is_patch, patches_of_box, patches_under
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.trace import SampleTrace


def sample(**more) -> SampleTrace:
    return SampleTrace(None, [4], [4], 1, **more)


def test_centres_of_a_plain_picture():
    found = centres(np.array([0, 5, 11, -1]), sample(), (3, 4))
    assert found[:3].tolist() == [[1 / 6, 0.125], [0.5, 0.375], [5 / 6, 0.875]]
    assert np.isnan(found[3]).all()
    assert is_patch(found).tolist() == [True, True, True, False]
    assert patches_under(found, (3, 4)).tolist() == [0, 5, 11, -1]


def test_a_native_picture_has_a_grid_of_its_own():
    found = centres(np.arange(6), sample(shapes=[(1, 2, 3)]), (24, 24))
    assert found[4].tolist() == [0.75, 0.5]
    with pytest.raises(ValueError, match="time"):
        centres(np.arange(6), sample(shapes=[(2, 2, 3)]), (24, 24))


def test_tiles_lie_in_the_original_picture():
    grid = TileGrid(1, 2, (8, 4), 2)  # two crops side by side, 2 x 2 patches each
    ids = np.arange(3 * 4)
    found = centres(ids, sample(grids=[grid]), (2, 2))
    # The thumbnail: quarters of the picture.
    assert found[:4].tolist() == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    # The first crop is the left half, the second the right one.
    assert found[4:8].tolist() == [[0.25, 0.125], [0.25, 0.375], [0.75, 0.125], [0.75, 0.375]]
    assert found[8:, 1].tolist() == [0.625, 0.875, 0.625, 0.875]
    newline = centres(np.array([grid.first_newline]), sample(grids=[grid]), (2, 2))
    assert np.isnan(newline).all()


def test_patches_of_a_box():
    # 28 x 28 pixels, 2 x 2 patches of 14.
    assert patches_of_box((0, 0, 14, 14), (28, 28), (2, 2)).tolist() == [0]
    assert patches_of_box((13, 0, 15, 14), (28, 28), (2, 2)).tolist() == [0, 1]
    assert patches_of_box((14, 14, 28, 28), (28, 28), (2, 2)).tolist() == [3]
