"""What is drawn of a stage: boxes, kinds and links, against traces made by hand."""

import numpy as np
import pytest
import torch

from analysis.places import centres
from analysis.retained_geometry import (
    CROPS,
    PICTURE,
    THUMBNAIL,
    Patch,
    kept_tokens,
    middle,
    region_share,
    region_squares,
    retained,
    token_boxes,
)
from tests.visiondrop import models
from tests.visiondrop.next_models import SIZES, grid_of
from tests.visiondrop.test_draw_tiles import centre, traced
from visiondrop import VisionDrop
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.frame_layout import FrameGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.trace import SampleTrace, StageTrace


def stage(layer, identity, keep, folded=(), picture=0):
    """A stage that keeps some ids, folds others into contextual tokens and drops the rest.

    `folded`: {reference id: member ids}.
    """
    folded = dict(folded)
    source = [*keep, *folded]
    place = {token: i for i, token in enumerate(identity)}
    target = [-1] * len(identity)
    for slot, token in enumerate(source):
        target[place[token]] = slot
        for member in folded.get(token, ()):
            target[place[member]] = slot
    return StageTrace(
        "encoder" if layer is None else "llm",
        layer,
        picture,
        torch.tensor(identity),
        torch.tensor([place[token] for token in source]),
        torch.tensor(target),
        torch.tensor([False] * len(keep) + [True] * len(folded)),
    )


def planted():
    """2 x 3 patches and CLS. 3 is folded into 4, then 4 (with 1) into 2; 5 is dropped, 0 stays."""
    first = stage(None, [-1, 0, 1, 2, 3, 4, 5], [-1, 0, 1, 2], {4: [3]})
    second = stage(2, [-1, 0, 1, 2, 4], [-1, 0], {2: [1, 4]})
    third = stage(4, [-1, 0, 2], [0, 2])
    return SampleTrace(None, [6, 3, 2], [6, 3, 2], 1, [first, second, third])


def test_a_planted_trace_gives_exactly_its_boxes_and_links():
    sample = planted()
    boxes = token_boxes(sample, (2, 3), (30, 40))
    assert boxes == {
        PICTURE: {
            0: (0, 0, 10, 20),
            1: (10, 0, 20, 20),
            2: (20, 0, 30, 20),
            3: (0, 20, 10, 40),
            4: (10, 20, 20, 40),
            5: (20, 20, 30, 40),
        }
    }
    first, second, third = retained(sample, boxes)

    def patch(token, kind, to=None, link=None):
        to = token if to is None else to
        return Patch(token, PICTURE, boxes[PICTURE][token], kind, to, link)

    assert (first.name, first.tokens) == ("encoder", 5)
    assert list(first.patches) == [
        patch(0, "kept"),
        patch(1, "kept"),
        patch(2, "kept"),
        patch(3, "absorbed", 4, 4),
        patch(4, "contextual"),
        patch(5, "dropped"),
    ]
    assert [(a.token, b.token) for a, b in first.links()] == [(3, 4)]
    # Merged twice: 3 went with 4, and its line ends where 4 went.
    assert (second.name, second.tokens) == ("layer 2", 3)
    assert list(second.patches) == [
        patch(0, "kept"),
        patch(1, "absorbed", 2, 2),
        patch(2, "contextual"),
        patch(3, "absorbed", 2, 2),
        patch(4, "absorbed", 2, 2),
        patch(5, "dropped"),
    ]
    assert second.counts() == {"kept": 1, "contextual": 1, "absorbed": 3, "dropped": 1}
    # A later stage keeps the contextual token with all that it holds; CLS is gone, and unseen.
    assert third.patches == second.patches and third.tokens == 2
    assert kept_tokens(third) == {0, 2}
    ends = [(middle(a.box), middle(b.box)) for a, b in third.links()]
    assert ends == [((15, 10), (25, 10)), ((5, 30), (25, 10)), ((15, 30), (25, 10))]


def test_what_goes_into_a_token_without_a_place_has_no_line():
    sample = SampleTrace(None, [1], [1], 1, [stage(None, [-1, 0, 1], [], {-1: [0, 1]})])
    (found,) = retained(sample, token_boxes(sample, (1, 2), (20, 10)))
    assert [(p.kind, p.to, p.link) for p in found.patches] == [("absorbed", -1, None)] * 2
    assert found.links() == [] and kept_tokens(found) == set()


def test_a_dropped_contextual_token_takes_what_it_holds_along():
    first = stage(None, [0, 1, 2], [0], {1: [2]})
    sample = SampleTrace(None, [1], [1], 1, [first, stage(1, [0, 1], [0])])
    _, last = retained(sample, token_boxes(sample, (1, 3), (30, 10)))
    assert [p.kind for p in last.patches] == ["kept", "dropped", "dropped"]


def test_without_stages_all_is_kept_and_other_pictures_are_left_out():
    sample = SampleTrace(None, [4], [4], 1)
    (found,) = retained(sample, token_boxes(sample, (2, 2), (8, 8)))
    assert (found.name, found.tokens, found.counts()["kept"]) == ("all", 4, 4)
    both = [stage(None, [0, 1], [0]), stage(None, [0, 1], [1], picture=1)]
    sample = SampleTrace(None, [2], [2], 1, both)
    for picture in (0, 1):
        (found,) = retained(sample, token_boxes(sample, (1, 2), (8, 4), picture), picture)
        assert kept_tokens(found) == {picture}


def resolve(sample):
    """Who stands for whom at the end, by following each stage's lists; the slow oracle."""
    stands = {token: token for token in sample.stages[0].identity.tolist()}
    for one in sample.stages:
        went = {token: token for token in one.kept}
        for entry in one.merged:
            for token in (entry["reference"], *entry["members"]):
                went[token] = entry["reference"]
        stands = {token: went[now] for token, now in stands.items() if now in went}
    return stands


def test_chains_of_a_real_run_end_where_its_stages_say():
    method = VisionDrop((14, 4), {2: (9, 3), 4: (5, 2), 6: (3, 1)})
    with method(models.tiny()) as trace:
        models.generate(models.tiny(), [models.prompt(4, 6)], models.pixels(1))
    (sample,) = trace.samples
    stages = retained(sample, token_boxes(sample, (6, 6), (60, 60)))
    expected = resolve(sample)
    assert len({now for token, now in expected.items() if token != now}) > 0
    twice = 0
    for patch in stages[-1].patches:
        assert (patch.kind == "dropped") == (patch.token not in expected)
        if patch.kind != "dropped":
            assert patch.to == expected[patch.token]
            assert (patch.kind == "absorbed") == (patch.to != patch.token)
            before = stages[0].patches[patch.token]
            twice += before.kind == "absorbed" and before.to != patch.to
    assert twice > 0  # so that chains were followed
    shown = [entry["reference"] for entry in sample.stages[-1].merged]
    kinds = {patch.token: patch.kind for patch in stages[-1].patches}
    assert all(kinds[token] == "contextual" for token in shown)


@pytest.mark.parametrize("original", [(800, 600), (640, 480), (300, 500), (1500, 400), (336, 336)])
def test_boxes_of_tiles_are_those_of_the_grid(original):
    grid = TileGrid(2, 1, original)
    sample = SampleTrace(None, [1], [1], 1, grids=[grid])
    found = token_boxes(sample, (24, 24), original)
    assert set(found) == {THUMBNAIL, CROPS}
    assert list(found[THUMBNAIL]) == list(range(576))
    whole = set(range(grid.first_newline))
    for boxes in found.values():
        for token, box in boxes.items():
            left, top, right, bottom = grid.box(token)
            inside = max(left, 0), max(top, 0), min(right, original[0]), min(bottom, original[1])
            assert box == pytest.approx(inside)
            whole.discard(token)
    for token in whole:  # nothing but padding
        left, top, right, bottom = grid.box(token)
        across = min(right, original[0]) - max(left, 0)
        down = min(bottom, original[1]) - max(top, 0)
        assert across < 1e-6 or down < 1e-6
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in found[CROPS].values())
    assert area == pytest.approx(original[0] * original[1])


@pytest.mark.parametrize("size", SIZES)
def test_patches_of_tiles_lie_where_they_were_cut_from(size):
    height, width = size
    (sample,) = traced([size]).samples
    boxes = token_boxes(sample, (6, 6), (width, height))
    for own in boxes.values():
        for token, box in own.items():
            place = centre(size, token)
            if place is not None:
                x, y = place[0] * width, place[1] * height
                assert box[0] - 1e-6 <= x <= box[2] + 1e-6
                assert box[1] - 1e-6 <= y <= box[3] + 1e-6
    across = {(a.view, b.view) for s in retained(sample, boxes) for a, b in s.links()}
    assert (CROPS, CROPS) in across and grid_of(size).tiles > 1


def test_packed_and_native_pictures_agree_with_the_places_of_their_tokens():
    packed = PackedGrid(3, 4, 5, 3)
    for sample, grid in (
        (SampleTrace(None, [1], [1], 1, grids=[packed]), (3, 3)),
        (SampleTrace(None, [1], [1], 1, shapes=[(1, 4, 5)]), (9, 9)),
    ):
        for own in token_boxes(sample, grid, (50, 40)).values():
            found = np.array([middle(box)[::-1] for box in own.values()]) / [40, 50]
            assert found == pytest.approx(centres(np.array(list(own)), sample, grid))


def test_videos_are_refused():
    for sample in (
        SampleTrace(None, [1], [1], 1, grids=[FrameGrid(2, 2, cls=True, newline=True)]),
        SampleTrace(None, [1], [1], 1, shapes=[(2, 2, 2)]),
    ):
        with pytest.raises(ValueError, match="time"):
            token_boxes(sample, (2, 2), (4, 4))


def test_regions_lie_on_the_picture_that_is_drawn():
    # 42 x 28 pixels: 3 x 2 squares of 14. In tiles the picture is drawn as it is.
    assert region_squares([0, 4], (42, 28), (42, 28), True) == [(0, 0, 14, 14), (14, 14, 28, 28)]
    # Padded to 42 x 42, 7 rows above, and drawn at twice the size.
    assert region_squares([4], (42, 28), (84, 84), False) == [(28, 42, 56, 70)]
    # The last square of a row may be cut.
    assert region_squares([2], (30, 14), (30, 14), True) == [(28, 0, 30, 14)]


def test_the_share_of_a_region():
    sample = planted()
    stages = retained(sample, token_boxes(sample, (2, 3), (42, 28)))
    squares = region_squares([0, 3, 4], (42, 28), (42, 28), True)
    assert region_share(stages[0].patches, squares) == pytest.approx(2 / 3)
    assert region_share(stages[2].patches, squares) == pytest.approx(1 / 3)
    assert region_share(stages[2].patches, squares, ("absorbed",)) == pytest.approx(2 / 3)
    assert np.isnan(region_share(stages[0].patches, []))
