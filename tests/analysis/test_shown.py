"""Which tokens show which squares, against boxes of tokens and hand-made pictures."""

import numpy as np
import pytest

from analysis.shown import fit, shown_by
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.trace import SampleTrace


def sample(**more) -> SampleTrace:
    return SampleTrace(None, [4], [4], 1, **more)


def test_squares_of_a_square_picture_are_its_patches():
    found = shown_by(sample(), (24, 24), (336, 336), squares=(24, 24))
    assert found.tokens.tolist() == [list(range(576))]
    assert found.total == 576
    assert found.at([0, 575, -1]).tolist() == [[0.5 / 24] * 2, [23.5 / 24] * 2]
    assert np.flatnonzero(found.by([3, 70, -1])).tolist() == [3, 70]
    assert found.showing([5, 9]) == {5, 9}


def test_a_picture_on_a_padded_square():
    # 4 x 4 patches of a square of 40; the picture is the middle two rows.
    found = shown_by(sample(), (4, 4), (40, 20), "pad")
    assert found.grid == (2, 4)
    assert found.tokens.tolist() == [list(range(4, 12))]
    assert found.total == 8
    assert found.at([4, 0]).tolist() == [[0.125, 0.125]]
    assert found.by([0, 15]).sum() == 0


def test_the_middle_cut_out_of_a_picture():
    # The model saw the middle 20 x 20 pixels, 2 x 2 patches of 10; squares of 14 pixels.
    found = shown_by(sample(), (2, 2), (40, 20), "square", squares=(2, 3))
    # Middles at x = 7, 21, 34 and y = 7, 17: only those at x = 21 were seen, in the right half.
    assert found.tokens.tolist() == [[-2, 1, -2, -2, 3, -2]]


def test_fit_takes_the_middle_to_the_middle():
    for kind in ("pad", "square"):
        assert fit(np.array([[0.5, 0.5]]), (40, 20), kind).tolist() == [[0.5, 0.5]]
    assert fit(np.array([[0.25, 0.0], [0.0, 1.0]]), (40, 20), "pad").tolist() == [[0, 0], [-0.5, 1]]


@pytest.mark.parametrize("size", [(672, 672), (500, 300), (336, 1008), (640, 480), (300, 500)])
def test_any_resolution_squares_lie_in_the_boxes_of_their_tokens(size):
    width, height = size
    shape = {(336, 1008): (3, 1), (500, 300): (1, 2), (300, 500): (2, 1)}.get(size, (2, 2))
    grid = TileGrid(*shape, size, 24)
    squares = (-(-height // 14), -(-width // 14))
    found = shown_by(sample(grids=[grid]), (24, 24), size, squares=squares)
    assert found.tokens.shape == (2, squares[0] * squares[1])
    unit = max(size)
    missing = 0
    for square in range(found.tokens.shape[1]):
        row, column = divmod(square, squares[1])
        y = (row * 14 + min(row * 14 + 14, height)) / 2
        x = (column * 14 + min(column * 14 + 14, width)) / 2
        assert found.squares[square] == pytest.approx([y / unit, x / unit])
        for level, token in enumerate(found.tokens[:, square].tolist()):
            if token < 0:
                missing += 1
                continue
            assert (token // 576 == 0) == (level == 1)
            left, top, right, bottom = grid.box(token)
            assert left - 1e-4 <= x <= right + 1e-4 and top - 1e-4 <= y <= bottom + 1e-4
    # Rows of patches whose middle is outside of the picture show no square's middle, or a border.
    assert missing <= 2 * max(squares)
    assert found.by(range(576)).all()
    middles = {}
    for token in range(grid.tiles * 576):
        left, top, right, bottom = grid.box(token)
        if 0 <= (x := (left + right) / 2) <= width and 0 <= (y := (top + bottom) / 2) <= height:
            middles[token] = (y, x)
    assert sorted(found.places) == sorted(middles) == sorted(found.ids.tolist())
    assert found.total == len(middles)
    # A crop's token shows the square that its middle lies in, and others where it is larger.
    for token in list(middles)[576::97]:
        y, x = middles[token]
        square = int(y // 14) * squares[1] + int(x // 14)
        assert found.by([token], fine=True)[square] and token in found.showing([square])
        assert not found.by([1, 2], fine=True).any()


def test_the_finest_patches_are_the_squares_by_default():
    grid = TileGrid(1, 2, (8, 4), 2)
    found = shown_by(sample(grids=[grid]), (2, 2), (8, 4))
    assert found.grid == (2, 4)
    assert found.tokens[0].tolist() == [4, 5, 8, 9, 6, 7, 10, 11]
    assert found.tokens[1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # The thumbnail shows four squares' worth with two tokens.
    assert found.by([0, 2]).tolist() == [True, True, False, False] * 2


def test_a_native_picture_is_not_padded():
    found = shown_by(sample(shapes=[(1, 2, 5)]), (24, 24), (50, 20))
    assert found.grid == (2, 5) and found.tokens.tolist() == [list(range(10))]
