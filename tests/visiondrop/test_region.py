"""Boxes to patches, and what becomes of their tokens."""

from __future__ import annotations

import json
import random

import pytest
import torch
from PIL import Image

from llava.mm_utils import expand2square
from tests.visiondrop.models import LAYERS, PATCHES, generate, logits, pixels, prompt, tiny
from visiondrop.functional.patches import box_patches
from visiondrop.methods.region import Region, pad_boxes
from visiondrop.views import EncoderView, ProjectedView

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
GRID = (4, 7)


def draw_boxes(seed: int, count: int = 2) -> list[tuple[float, float, float, float]]:
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        x, y = sorted(rng.sample(range(0, 101), 2)), sorted(rng.sample(range(0, 101), 2))
        out.append((x[0] / 100, y[0] / 100, x[1] / 100, y[1] / 100))
    return out


def loop_patches(boxes: list[tuple[float, ...]], radius: int) -> list[bool]:
    """Patch by patch: the overlap of two rectangles has an area; then a square around each."""
    rows, columns = GRID
    inside = [[False] * columns for _ in range(rows)]
    for r in range(rows):
        for c in range(columns):
            for x0, y0, x1, y1 in boxes:
                across = min(x1, (c + 1) / columns) - max(x0, c / columns)
                down = min(y1, (r + 1) / rows) - max(y0, r / rows)
                inside[r][c] |= across > 1e-9 and down > 1e-9
    return [
        any(
            inside[a][b]
            for a in range(max(0, r - radius), min(rows, r + radius + 1))
            for b in range(max(0, c - radius), min(columns, c + radius + 1))
        )
        for r in range(rows)
        for c in range(columns)
    ]


def view(seed: int, dtype: torch.dtype = torch.float32) -> ProjectedView:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 28, 5, generator=draw, dtype=dtype)
    empty = torch.empty(2, 1, 29, 1)
    tower = EncoderView(features, empty, empty, 1.0, True, GRID, make_keys=lambda: ["a", "b"])
    return ProjectedView(features, tower)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("radius", [0, 1])
def test_every_mode_equals_a_loop(seed: int, radius: int) -> None:
    boxes = {"a": draw_boxes(seed), "b": draw_boxes(seed + 50, 1)}
    seen = view(seed)
    for g, key in enumerate("ab"):
        inside = loop_patches(boxes[key], radius)
        assert box_patches(boxes[key], GRID, radius=radius).tolist() == inside
        features = seen.features[g].tolist()
        outside = [p for p in range(28) if not inside[p]]
        chosen = [p for p in range(28) if inside[p]]
        for mode, expected in (("drop", outside), ("keep", chosen)):
            method = Region(boxes, mode, radius=radius)  # type: ignore[arg-type]
            if not expected:
                with pytest.raises(ValueError, match="leaves nothing"):
                    method.reduce(seen, g, boxes[key])
                continue
            out = method.reduce(seen, g, boxes[key])
            assert out is not None and out.source[0].tolist() == expected
            assert out.features[0].tolist() == [features[p] for p in expected]
        for fill in ("zero", "mean"):
            out = Region(boxes, "mask", fill, radius).reduce(seen, g, boxes[key])  # type: ignore[arg-type]
            assert out is not None and out.source[0].tolist() == list(range(28))
            for p in range(28):
                row = features[p]
                if inside[p]:
                    row = [0.0] * 5
                    if fill == "mean" and outside:
                        row = [
                            sum(features[q][d] for q in outside) / len(outside) for d in range(5)
                        ]
                torch.testing.assert_close(out.features[0, p], torch.tensor(row))


def test_edges_that_only_touch_do_not_count() -> None:
    """A box of whole patches is just these, for every whole box on a 24 x 24 grid's diagonal."""
    for first in range(24):
        for last in range(first + 1, 25):
            box = [(first / 24, first / 24, last / 24, last / 24)]
            inside = box_patches(box, (24, 24)).view(24, 24)
            assert int(inside.sum()) == (last - first) ** 2 and inside[first, last - 1]


@pytest.mark.parametrize("size", [(64, 40), (40, 64), (50, 50), (33, 10)])
def test_boxes_follow_the_padding(size: tuple[int, int]) -> None:
    """What a box frames before LLaVA's padding it frames after it, pixel by pixel."""
    width, height = size
    box = (3 / width, 2 / height, (width - 5) / width, (height - 4) / height)
    picture = Image.new("L", size, 0)
    picture.paste(255, (3, 2, width - 5, height - 4))
    padded = expand2square(picture, 128)
    ((x0, y0, x1, y1),) = pad_boxes([box], width, height)
    side = padded.size[0]
    corners = [round(v * side, 6) for v in (x0, y0, x1, y1)]
    assert corners == [round(v) for v in corners]
    assert padded.point(lambda v: 255 * (v == 255)).getbbox() == tuple(map(int, corners))


def test_a_dropped_box_and_its_complement_kept_are_one() -> None:
    boxes = [(0.0, 0.0, 1.0, 0.5)]
    rest = [(0.0, 0.5, 1.0, 1.0)]
    model, row, images = tiny(), [prompt(3, 6, 1)], pixels(1)
    outs = []
    for method in (Region(boxes), Region(rest, "keep")):
        with method(model) as trace:
            outs.append(logits(generate(model, row, images)))
        assert trace.samples[0].tokens_per_layer == [PATCHES // 2] * LAYERS
        assert trace.samples[0].stages[0].kept == list(range(18, 36))
    torch.testing.assert_close(outs[0], outs[1])


def test_masked_tokens_say_nothing_of_what_they_were() -> None:
    """Embeddings inside the box may be anything: the logits are the same (the tower aside, which
    has mixed patches before; its output is set by hand here).
    """
    seen, other = view(1), view(1)
    boxes = [(0.1, 0.1, 0.6, 0.9)]
    inside = box_patches(boxes, GRID)
    other.features = other.features.clone()
    other.features[:, inside] = 7e3
    for fill in ("zero", "mean"):
        method = Region(boxes, "mask", fill)  # type: ignore[arg-type]
        one, two = method.projected_stage(seen), method.projected_stage(other)
        for a, b in zip(one, two, strict=True):
            assert a is not None and b is not None
            torch.testing.assert_close(a.features, b.features)


def test_masking_keeps_the_length_and_changes_the_answer() -> None:
    model, row, images = tiny(), [prompt(3, 6, 1)], pixels(1)
    plain = logits(generate(model, row, images))
    with Region([(0.2, 0.2, 0.8, 0.8)], "mask")(model) as trace:
        masked = logits(generate(model, row, images))
    assert trace.samples[0].tokens_per_layer == [PATCHES] * LAYERS
    assert not torch.allclose(plain, masked)


def test_boxes_by_sample_key() -> None:
    model, images = tiny(), pixels(2)
    rows = [prompt(3, 6, 1), prompt(3, 6, 2)]
    boxes = {"left": [(0.0, 0.0, 0.5, 1.0)], "none": []}
    with Region(boxes)(model, keys=["left", "none"]) as trace:
        generate(model, rows, images)
    assert [s.tokens_per_layer[0] for s in trace.samples] == [18, 36]
    with pytest.raises(ValueError, match="no boxes for sample key 'other'"):
        with Region(boxes)(model, keys=["left", "other"]):
            generate(model, rows, images)
    with pytest.raises(ValueError, match="set_keys"), Region(boxes)(model):
        generate(model, rows, images)


def test_round_trip_and_float64() -> None:
    for method in (Region({"a": [(0, 0, 0.5, 0.5)]}, "mask"), Region([(0, 0, 0.5, 0.5)])):
        assert Region.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    for fill in ("zero", "mean"):
        out = Region([[0, 0, 0.5, 0.5]], "mask", fill).projected_stage(view(0, torch.float64))  # type: ignore[arg-type]
        assert out[0] is not None and out[0].features.dtype == torch.float64


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"boxes": [(0, 0, 1.2, 1)]}, "fractions of the picture"),
        ({"boxes": [(0.5, 0, 0.5, 1)]}, "x0 < x1"),
        ({"boxes": {"k": [(0, 0, 1)]}}, "a box is"),
        ({"boxes": [(10, 10, 50, 50)]}, r"box \[10, 10, 50, 50\]"),
        ({"radius": -1}, "radius=-1"),
    ],
)
def test_bad_fields_are_refused_before_compute(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words), Region(**fields)(tiny()):
        raise AssertionError("entered")


def test_a_box_over_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="cover 36 of 36"), Region([(0, 0, 1, 1)])(tiny()):
        generate(tiny(), [prompt(3, 6, 1)], pixels(1))
