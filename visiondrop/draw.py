"""A picture of what was kept, merged and dropped at each stage: one panel a stage, and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from visiondrop.draw_frames import FrameSheet
from visiondrop.draw_patches import (
    FRAME,
    SIDE,
    Box,
    Fate,
    Tiled,
    count_tokens,
    paint,
    tile_panel,
)
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.trace import SampleTrace

__all__ = [
    "Panel",
    "draw_rows",
    "draw_sample",
    "first_panel",
    "legend_strip",
    "pad_to_square",
    "panel_of",
    "stage_panels",
]

GAP = 16
HEAD = 28
MEAN = (122, 116, 104)
"""Where LLaVA pads a picture to a square: CLIP's mean colour."""


Panel = tuple[Image.Image, str]
"""A picture with its title."""
Shown = Image.Image | Sequence[Image.Image]
"""A picture, or the frames of a video."""


def pad_to_square(image: Image.Image, background: tuple[int, int, int] = MEAN) -> Image.Image:
    """The picture in the middle of a square, as LLaVA's `pad` prepares it."""
    image = image.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def draw_sample(
    sample: SampleTrace,
    image: Shown | Sequence[Shown],
    grid: tuple[int, int],
    picture: int | None = None,
) -> Image.Image:
    """One panel for each picture and one per stage.

    Args:
        sample: a row's trace.
        image: the row's pictures, one alone or in reading order, of which each gets a row of
            panels. One of a single tile is padded to a square where it is none; one of any or
            of native resolution is given whole, as it was before it was cut into tiles. A video is
            a list of its frames as the model saw them, alone or among the pictures; its stages
            stand below each other.
        grid: (rows, columns) of patches of a tile.
        picture: draw this one alone, and `image` is it.
    """
    images: list[Any] = [image] if isinstance(image, Image.Image) else list(image)
    alone = picture if len(sample.grids) > 1 else 0
    clip = alone is not None and isinstance(layout_of(sample, grid, alone), FrameSheet)
    if clip and all(isinstance(one, Image.Image) for one in images):
        images = [images]
    which = range(len(images)) if picture is None else [picture]
    if len(images) != len(which):
        raise ValueError(f"{len(images)} pictures were given to draw picture {picture}; give it")
    if images and max(which) >= max(1, len(sample.grids)):
        raise ValueError(
            f"{len(images)} pictures were given, the sample has {len(sample.grids)}; give one for "
            "each at most, in reading order"
        )
    rows: list[list[Panel]] = []
    for index, one in zip(which, images, strict=True):
        panels = [first_panel(sample, one, grid, index), *stage_panels(sample, one, grid, index)]
        below = isinstance(layout_of(sample, grid, index), FrameSheet)
        rows += [[panel] for panel in panels] if below else [panels]
    return draw_rows(rows)


def first_panel(
    sample: SampleTrace, image: Shown, grid: tuple[int, int], picture: int = 0
) -> Panel:
    """The picture with nothing dropped; arguments as for `draw_sample`."""
    layout = layout_of(sample, grid, picture)
    if isinstance(layout, FrameSheet):
        title = f"video: {layout.frames} frames of {layout.per_frame} tokens"
        return layout.panel(frames_of(image)), title
    image = picture_of(image, picture)
    if not isinstance(layout, tuple):
        width, height = image.size if isinstance(layout, PackedGrid) else layout.original
        return tile_panel(image, layout), f"picture, {width} x {height}: {layout.unpruned} tokens"
    if native(sample, picture):
        return whole_panel(image), f"picture: {layout[0]} x {layout[1]} tokens"
    return panel_of(image), f"picture: {layout[0] * layout[1]} patches"


def layout_of(
    sample: SampleTrace, grid: tuple[int, int], picture: int
) -> Tiled | FrameSheet | tuple[int, int]:
    """How the tokens of a picture or video lie: in tiles, in frames, or in (rows, columns)."""
    tiles = sample.grids[picture] if picture < len(sample.grids) else None
    if isinstance(tiles, Tiled):
        return tiles
    if tiles is not None:
        return FrameSheet(tiles.frames, tiles.side, tiles.side, tiles.cls, tiles.newline)
    if native(sample, picture):
        frames, rows, columns = sample.shapes[picture]  # type: ignore[misc]
        return FrameSheet(frames, rows, columns) if frames > 1 else (rows, columns)
    return grid


def frames_of(shown: Shown) -> list[Image.Image]:
    """The frames of a video, of which a single picture is one."""
    return [shown] if isinstance(shown, Image.Image) else list(shown)


def picture_of(shown: Shown, picture: int) -> Image.Image:
    """A picture. Raises `ValueError` where the frames of a video were given for it."""
    if isinstance(shown, Image.Image):
        return shown
    raise ValueError(
        f"{len(shown)} frames were given for picture {picture}, which is no video; give one picture"
    )


def native(sample: SampleTrace, picture: int) -> bool:
    """Whether a picture was read at its own proportions, without tiles and padding."""
    return picture < len(sample.shapes) and sample.shapes[picture] is not None


def whole_panel(image: Image.Image) -> Image.Image:
    """A picture at a panel's size, in its own proportions."""
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]


def panel_of(image: Image.Image) -> Image.Image:
    """A picture at a panel's size, padded to a square where it is none."""
    return pad_to_square(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def stage_panels(
    sample: SampleTrace, image: Shown, grid: tuple[int, int], picture: int = 0
) -> list[Panel]:
    """One panel for each stage; arguments as for `draw_sample`."""
    layout = layout_of(sample, grid, picture)
    panels = []
    stages = [stage for stage in sample.stages if stage.picture == picture]
    for stage, (name, fate) in zip(stages, sample.fates(picture), strict=True):
        merged = {entry["reference"] for entry in stage.merged}
        title = f"{name}: {stage.tokens_out} tokens"
        if stage.skipped:
            title = f"{name}: skipped, {stage.tokens_in} tokens"
        else:
            newlines = newlines_among(layout, fate)
            parts = [f"{len(stage.kept) - newlines}"]
            parts += [f"{len(merged)}"] * bool(merged) + [f"{newlines} newlines"] * bool(newlines)
            title += f" ({' + '.join(parts)})" * (len(parts) > 1)
        if isinstance(layout, FrameSheet):
            panel = layout.panel(frames_of(image), fate, merged)
        elif isinstance(layout, tuple):
            image = picture_of(image, picture)
            panel = whole_panel(image) if native(sample, picture) else panel_of(image)
            paint(panel, cell_boxes(layout, panel.size), fate, merged)
        else:
            panel = tile_panel(picture_of(image, picture), layout, fate, merged)
        panels.append((panel, title))
    return panels


def newlines_among(layout: Tiled | FrameSheet | tuple[int, int], fate: Fate) -> int:
    """Newlines among the tokens that were kept."""
    if isinstance(layout, tuple):
        return 0
    if isinstance(layout, FrameSheet):
        return layout.newline_count(fate)
    return count_tokens(layout, fate)[2]


def cell_boxes(grid: tuple[int, int], size: tuple[int, int]) -> dict[int, Box]:
    """Where each patch of a picture of one tile is in a panel of (width, height) pixels."""
    (rows, columns), (width, height) = grid, size
    return {
        row * columns + column: (
            column * width // columns,
            row * height // rows,
            (column + 1) * width // columns,
            (row + 1) * height // rows,
        )
        for row in range(rows)
        for column in range(columns)
    }


def draw_rows(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Rows of panels, one below the other, and what their shades mean."""
    font = ImageFont.load_default(size=16)
    widths = [0] * max(map(len, rows))
    for panels in rows:
        for i, (panel, title) in enumerate(panels):
            widths[i] = max(widths[i], panel.width, int(font.getlength(title)))
    heights = [HEAD + max(panel.height for panel, _ in panels) for panels in rows]
    shades = legend_strip(sum(widths) + (len(widths) - 1) * GAP)
    width = max(sum(widths) + (len(widths) + 1) * GAP, shades.width + 2 * GAP)
    sheet = Image.new("RGB", (width, sum(heights) + shades.height + 18), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for panels, height in zip(rows, heights, strict=True):
        left = GAP
        for (panel, title), wide in zip(panels, widths, strict=False):
            pen.text((left, top + 6), title, fill="black", font=font)
            sheet.paste(panel, (left, top + HEAD))
            left += wide + GAP
        top += height
    sheet.paste(shades, (GAP, top + 10))
    return sheet


SHADES: list[tuple[str, str | tuple[int, int, int], tuple[int, int, int] | None]] = [
    ("kept", (120, 160, 200), None),
    ("contextual token (stands at its reference)", (120, 160, 200), FRAME),
    ("merged into a contextual token", (225, 225, 225), None),
    ("dropped", (20, 20, 20), None),
]


def legend_strip(width: int) -> Image.Image:
    """What the shades mean, in lines of at most `width` pixels (one entry a line at least)."""
    font = ImageFont.load_default(size=16)
    box, space, line = 16, 28, 26
    places, left, top, most = [], 0, 0, 0
    for text, _, _ in SHADES:
        long = box + 6 + int(font.getlength(text))
        if left and left + long > width:
            left, top = 0, top + line
        places.append((left, top))
        most = max(most, left + long)
        left += long + space
    strip = Image.new("RGB", (most + 2, top + line), "white")
    pen = ImageDraw.Draw(strip)
    for (text, fill, outline), (left, top) in zip(SHADES, places, strict=True):
        corners = (left, top, left + box, top + box)
        pen.rectangle(corners, fill, outline or "black", width=2 if outline else 1)
        pen.text((left + box + 6, top - 2), text, fill="black", font=font)
    return strip
