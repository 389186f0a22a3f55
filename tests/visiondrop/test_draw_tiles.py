"""Drawings of any-resolution pictures: where a patch is in the picture, and how it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil

from llava.anyres import process_anyres_image, select_best_resolution
from tests.visiondrop.next_models import (
    PATCHES,
    PINPOINTS,
    SIDE,
    SIZES,
    TILE,
    generate,
    grid_of,
    inputs,
    prompt,
    tiny_next,
)
from tests.visiondrop.test_trace_and_show import checkpoint
from visiondrop import Trace, VisionDrop
from visiondrop.draw import GAP, HEAD, draw_sample, stage_panels
from visiondrop.draw_patches import CAPTION, tile_panel, tile_view
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.frame_layout import FrameGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.functional.tile_run import TileRun
from visiondrop.show import main
from visiondrop.trace import SampleTrace, StageTrace

METHOD = VisionDrop(encoder=(60, 12), llm={2: (30, 6), 4: (14, 0)})
PIXELS = 336
CANVASES = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@pytest.mark.parametrize(
    "size", [(800, 600), (640, 480), (500, 700), (1500, 400), (211, 700), (336, 336)]
)
def test_a_patch_shows_what_its_box_holds(size: tuple[int, int]) -> None:
    """A white rectangle goes through LLaVA's own cutting; patch by patch, how white it is must be
    how much of the patch's box the rectangle covers.
    """
    width, height = size
    white = (width * 0.3, height * 0.2, width * 0.75, height * 0.6)
    image = Image.new("RGB", size)
    image.paste("white", tuple(map(round, white)))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": PIXELS},
        crop_size={"height": PIXELS, "width": PIXELS},
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    tiles = process_anyres_image(image, processor, CANVASES)[:, 0]
    canvas = select_best_resolution(size, CANVASES)
    grid = TileGrid(canvas[1] // PIXELS, canvas[0] // PIXELS, size)
    assert len(tiles) == grid.tiles
    seen = tiles.reshape(-1, 24, 14, 24, 14).mean((2, 4)).flatten()
    covered = []
    for token in range(grid.first_newline):
        left, top, right, bottom = grid.box(token)
        across = min(right, white[2]) - max(left, white[0])
        down = min(bottom, white[3]) - max(top, white[1])
        covered.append(max(across, 0) * max(down, 0) / ((right - left) * (bottom - top)))
    error = (seen - torch.tensor(covered)).abs()
    assert error.max() < 0.2 and error.mean() < 0.01
    assert all((c > 0.99).any() and (c < 0.01).any() for c in np.split(np.array(covered), [576]))


def test_only_patches_have_a_box() -> None:
    grid = TileGrid(2, 2, (800, 600))
    with pytest.raises(ValueError, match="token -1 is a cls; only patches"):
        grid.box(-1)
    with pytest.raises(ValueError, match="is a newline"):
        grid.box(grid.first_newline)


def traced(sizes: list[tuple[int, int]], method: Any = METHOD) -> Trace:
    with method(tiny_next()) as trace:
        generate(tiny_next(), [prompt(3, 4, 1, sizes)], inputs(sizes, list(range(len(sizes)))))
    return trace


def centre(size: tuple[int, int], token: int) -> tuple[float, float] | None:
    """(x, y) of a patch's middle as parts of the picture's width and height, by LLaVA's own steps:
    scale, pad to the canvas, cut. None where it lies in the padding.
    """
    height, width = size
    tile, patch = divmod(token, PATCHES)
    row, column = patch // SIDE + 0.5, patch % SIDE + 0.5
    if tile == 0:
        return column / SIDE, row / SIDE
    canvas = select_best_resolution((width, height), [(w, h) for h, w in PINPOINTS])
    scale = min(canvas[0] / width, canvas[1] / height)
    across, down = divmod(tile - 1, canvas[0] // TILE)[::-1]
    x = across * TILE + column * TILE / SIDE - (canvas[0] - width * scale) / 2
    y = down * TILE + row * TILE / SIDE - (canvas[1] - height * scale) / 2
    x, y = x / (width * scale), y / (height * scale)
    return (x, y) if 0 < x < 1 and 0 < y < 1 else None


@pytest.mark.parametrize("size", SIZES)
def test_every_patch_is_shaded_by_its_fate_at_its_place(size: tuple[int, int]) -> None:
    """At the patch's middle: the picture itself, or paler, or darker, at every stage."""
    height, width = size
    image = Image.new("RGB", (width * 20, height * 20), (90, 120, 150))
    plain = int(np.asarray(image.convert("L"))[0, 0])
    (sample,), grid = traced([size]).samples, grid_of(size)
    assert sample.grids == [grid]
    told = {"kept": 0, "merged": 0, "dropped": 0}
    for stage, (_, fate) in zip(sample.stages, sample.fates(), strict=True):
        merged = {entry["reference"] for entry in stage.merged}
        for thumbnail in (True, False):
            view = tile_view(image, grid, fate, merged, thumbnail)
            assert abs(view.height - view.width * height / width) <= 1
            shades = np.asarray(view.convert("L")).astype(int)
            for token in range(PATCHES) if thumbnail else range(PATCHES, grid.first_newline):
                place = centre(size, token)
                if place is None:
                    continue
                shade = shades[int(place[1] * view.height), int(place[0] * view.width)]
                what = fate.get(token, ("dropped", token))[0]
                told[what] += 1
                right = {
                    "kept": shade == plain,
                    "merged": shade > plain + 30,
                    "dropped": shade < plain - 30,
                }
                assert right[what], (token, what, int(shade), plain)
    assert min(told.values()) >= 8, told


def test_a_contextual_token_has_a_frame_and_tiles_have_borders() -> None:
    image = Image.new("RGB", (480, 480), (90, 120, 150))
    grid = TileGrid(2, 2, (48, 48), SIDE)
    fate = {token: ("kept", token) for token in range(grid.first_newline)}
    first = PATCHES + 2 * SIDE + 3  # of the first tile, row 2 and column 3, away from the border
    view = np.asarray(tile_view(image, grid, fate, {first}, False)).astype(int)
    cell = view.shape[0] // (2 * SIDE)
    patch = view[2 * cell : 3 * cell, 3 * cell : 4 * cell]
    assert (patch[0] == patch[0, 0]).all() and (patch[0, 0] != (90, 120, 150)).any()
    assert (patch[cell // 2, cell // 2] == (90, 120, 150)).all()
    half = view.shape[0] // 2
    assert (view[half, 5] == 255).all() and (view[5, half] == 255).all()
    assert (view[half, 5 * cell + 5] == 255).all() and (view[half + 5, 5] != 255).any()


@pytest.mark.parametrize("size", [(48, 36), (17, 72)])
def test_trace_draws_the_sheet(size: tuple[int, int], tmp_path: Path) -> None:
    """Every panel stands where the sheet says, pixel by pixel."""
    image = Image.effect_noise((size[1] * 10, size[0] * 10), 60).convert("RGB")
    trace = traced([size])
    trace.draw(image, tmp_path / "deep" / "kept.png")
    sheet = np.asarray(Image.open(tmp_path / "deep" / "kept.png"))
    panels = stage_panels(trace.samples[0], image, trace.grid)
    assert [title.split(":")[0] for _, title in panels] == ["encoder", "layer 2", "layer 4"]
    lines = trace.samples[0].newlines_per_layer[0]
    assert lines > 0
    assert panels[0][1] == f"encoder: {72 + lines} tokens (60 + 12 + {lines} newlines)"
    whole = tile_panel(image, grid_of(size))
    left = GAP
    for panel in (whole, *(panel for panel, _ in panels)):
        pixels = np.asarray(panel)
        crops = pixels[CAPTION : CAPTION + 50, :50]
        found = sheet[HEAD : HEAD + pixels.shape[0]]
        place = next(
            x
            for x in range(left, found.shape[1] - 50)
            if (found[CAPTION : CAPTION + 50, x : x + 50] == crops).all()
        )
        assert (found[:, place : place + pixels.shape[1]] == pixels).all()
        left = place + pixels.shape[1]


def test_several_pictures_get_a_row_each() -> None:
    trace = traced([(48, 36), (24, 40)])
    sample = trace.samples[0]
    images = [Image.new("RGB", (360, 480), "red"), Image.new("RGB", (400, 240), "blue")]
    both = draw_sample(sample, images, trace.grid)
    one = draw_sample(sample, images[1], trace.grid, picture=1)
    pixels = np.asarray(both)
    blue = HEAD + tile_panel(images[0], sample.grids[0]).height + HEAD
    assert (pixels[HEAD + CAPTION, GAP] == (255, 0, 0)).all()
    assert (pixels[blue + CAPTION, GAP] == (0, 0, 255)).all()
    assert (np.asarray(one)[HEAD + CAPTION, GAP] == (0, 0, 255)).all()
    with pytest.raises(ValueError, match="3 pictures were given, the sample has 2"):
        draw_sample(sample, [*images, images[0]], trace.grid)


def test_show_command_on_any_resolution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a checkpoint's files to the sheet, with transformers' own picture processor."""
    model, image = checkpoint(tmp_path / "model"), tmp_path / "image.png"
    tiny_next().save_pretrained(model)
    LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
    ).save_pretrained(model)
    Image.new("RGB", (170, 40), "red").save(image)
    drawn = tmp_path / "out.png"
    common = ["--model", str(model), "--image", str(image), "--max-new-tokens", "2"]
    assert main([*common, "--tokens", "30", "-o", str(drawn)]) == 0
    printed = capsys.readouterr().out
    assert "mean" in printed and "wrote" in printed, printed
    # The picture lies in 1 x 3 tiles, drawn at their proportions: wide, and far from square.
    sheet = np.asarray(Image.open(drawn).convert("RGB")).astype(int)
    red = np.argwhere((sheet[:, : 480 + GAP] == (255, 0, 0)).all(-1))
    crops = red[red[:, 0] < HEAD + CAPTION + 480 * 40 // 170]
    assert abs(np.ptp(red[:, 1]) - 479) <= 1 and abs(np.ptp(crops[:, 0]) - 112) <= 1


def staged(
    kept: list[int], total: int, grid: TileGrid | None, shape: tuple[int, int, int] | None
) -> SampleTrace:
    """A picture of which one stage kept some tokens and dropped the rest."""
    source = torch.tensor(kept)
    target = torch.full((total,), -1)
    target[source] = torch.arange(len(kept))
    stage = StageTrace(
        "llm", 2, 0, torch.arange(total), source, target, torch.zeros(len(kept), dtype=torch.bool)
    )
    return SampleTrace(None, [len(kept)], [9], 4, [stage], [0], [grid], [], [shape])


def test_crops_before_the_thumbnail() -> None:
    """InternVL's order: the same picture of the same patches as with the thumbnail first."""
    first, last = TileGrid(1, 2, (96, 48), SIDE), TileRun(1, 2, (96, 48), SIDE)
    image = Image.effect_noise((400, 200), 80).convert("RGB")
    kept = [PATCHES + 3, 2 * PATCHES + 20, 5]  # of the left crop, of the right one, the thumbnail
    moved = [token - PATCHES if token >= PATCHES else token + 2 * PATCHES for token in kept]
    panels = [
        stage_panels(staged(ids, 3 * PATCHES, grid, None), image, (SIDE, SIDE))[0]
        for ids, grid in ((kept, first), (moved, last))
    ]
    assert panels[0][1] == panels[1][1] == "layer 2: 3 tokens"
    assert (np.asarray(panels[0][0]) == np.asarray(panels[1][0])).all()
    alone = TileRun(1, 1, (48, 48), SIDE, thumbnail=False)
    sample = staged([0], PATCHES, alone, None)
    (panel, _) = stage_panels(sample, image, (SIDE, SIDE))[0]
    assert abs(panel.width - panel.height) <= 1


def test_packed_pictures_spread_over_the_whole() -> None:
    """LLaVA-OneVision's: a base tile, then the crops' tokens as they were shrunk and unpadded."""
    image = Image.new("RGB", (300, 200), (90, 120, 150))
    grid = PackedGrid(SIDE, 4, 9, tiles=5)
    kept = [3, grid.base + 9 + 2, grid.first_newline + 1]  # row 1, column 2 of the crops' grid
    sample = staged(kept, grid.unpruned, grid, None)  # type: ignore[arg-type]
    ((_, title),) = stage_panels(sample, image, (SIDE, SIDE))
    assert title == "layer 2: 3 tokens (2 + 1 newlines)"
    (_, fate) = sample.fates()[0]
    for thumbnail, rows, columns, only in ((True, SIDE, SIDE, (0, 3)), (False, 4, 9, (1, 2))):
        view = tile_view(image, grid, fate, set(), thumbnail)
        assert abs(view.width * 2 - view.height * 3) <= 2
        shades = np.asarray(view).astype(int)
        for row in range(rows):
            for column in range(columns):
                y = int((row + 0.5) / rows * view.height)
                x = int((column + 0.5) / columns * view.width)
                same = (shades[y, x] == (90, 120, 150)).all()
                assert same == ((row, column) == only), (thumbnail, row, column)


def test_native_resolution_keeps_its_proportions() -> None:
    """Qwen2-VL's pictures: (1, rows, columns) tokens over the whole picture, without padding."""
    image = Image.new("RGB", (300, 200), (90, 120, 150))
    sample = staged([0, 7, 23], 24, None, (1, 4, 6))
    ((panel, title),) = stage_panels(sample, image, (24, 24))
    shades = np.asarray(panel).astype(int)
    assert title == "layer 2: 3 tokens" and panel.size == (384, 256)
    for token in range(24):
        row, column = divmod(token, 6)
        same = (shades[row * 64 + 32, column * 64 + 32] == (90, 120, 150)).all()
        assert same == (token in (0, 7, 23)), token
    sheet = draw_sample(sample, image, (24, 24))
    assert sheet.width == 2 * 384 + 3 * GAP


@pytest.mark.parametrize(
    "grid, shape", [(FrameGrid(2, SIDE), None), (None, (2, 6, 6))], ids=["frames", "native"]
)
def test_a_video_needs_its_frames_and_else_no_file_is_made(
    grid: Any, shape: Any, tmp_path: Path
) -> None:
    trace = Trace()
    trace.samples.append(staged([0], 72, grid, shape))
    with pytest.raises(ValueError, match="1 pictures for a video of 2 frames"):
        trace.draw(Image.new("RGB", (9, 9)), tmp_path / "new" / "kept.png")
    assert not (tmp_path / "new").exists()
