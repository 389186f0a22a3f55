"""A picture of what was kept, merged and dropped at each stage.

Readable without colour: kept patches show the picture itself, contextual tokens have a frame,
patches folded into one are pale, dropped ones nearly black.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from visiondrop.trace import SampleTrace

__all__ = ["Panel", "draw_rows", "draw_sample", "pad_to_square", "stage_panels"]

SIDE = 384
GAP = 16
HEAD = 28
FRAME = (214, 94, 0)
MEAN = (122, 116, 104)
"""Where LLaVA pads a picture to a square: CLIP's mean colour."""


Panel = tuple[Image.Image, str]
"""A square picture with its title."""


def pad_to_square(image: Image.Image, background: tuple[int, int, int] = MEAN) -> Image.Image:
    """The picture in the middle of a square, as LLaVA's `pad` prepares it."""
    image = image.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def draw_sample(
    sample: SampleTrace, image: Image.Image, grid: tuple[int, int], picture: int = 0
) -> Image.Image:
    """One panel for the picture and one per stage.

    Args:
        sample: a row's trace.
        image: the picture; padded to a square where it is none.
        grid: (rows, columns) of patches.
        picture: which of the row's pictures.
    """
    rows, columns = grid
    picture_panel = (panel_of(image), f"picture: {rows * columns} patches")
    return draw_rows([[picture_panel, *stage_panels(sample, image, grid, picture)]])


def panel_of(image: Image.Image) -> Image.Image:
    """A picture at a panel's size, padded to a square where it is none."""
    return pad_to_square(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def stage_panels(
    sample: SampleTrace, image: Image.Image, grid: tuple[int, int], picture: int = 0
) -> list[Panel]:
    """One panel for each stage; arguments as for `draw_sample`."""
    square = panel_of(image)
    panels = []
    stages = [stage for stage in sample.stages if stage.picture == picture]
    for stage, (name, fate) in zip(stages, sample.fates(picture), strict=True):
        merged = {entry["reference"] for entry in stage.merged}
        title = f"{name}: {stage.tokens_out} tokens"
        if stage.skipped:
            title = f"{name}: skipped, {stage.tokens_in} tokens"
        elif merged:
            title += f" ({len(stage.kept)} + {len(merged)})"
        panels.append((draw_stage(square, grid, fate, merged), title))
    return panels


def draw_rows(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Rows of panels, one below the other, and what their shades mean."""
    font = ImageFont.load_default(size=16)
    most, high = max(map(len, rows)), HEAD + SIDE
    width = most * SIDE + (most + 1) * GAP
    sheet = Image.new("RGB", (width, len(rows) * high + HEAD + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for r, panels in enumerate(rows):
        for i, (panel, title) in enumerate(panels):
            left = GAP + i * (SIDE + GAP)
            pen.text((left, r * high + 6), title, fill="black", font=font)
            sheet.paste(panel, (left, r * high + HEAD))
    legend(sheet, (GAP, len(rows) * high + 10), font)
    return sheet


def draw_stage(
    square: Image.Image,
    grid: tuple[int, int],
    fate: dict[int, tuple[str, int]],
    merged: set[int],
) -> Image.Image:
    """The picture with each patch shown by what became of it."""
    rows, columns = grid
    grey = square.convert("L").convert("RGB")
    pale = Image.blend(grey, Image.new("RGB", square.size, "white"), 0.7)
    dark = Image.blend(grey, Image.new("RGB", square.size), 0.88)
    out = square.copy()
    boxes = {}
    for patch in range(rows * columns):
        r, c = divmod(patch, columns)
        boxes[patch] = (
            c * SIDE // columns,
            r * SIDE // rows,
            (c + 1) * SIDE // columns,
            (r + 1) * SIDE // rows,
        )
        what = fate.get(patch, ("dropped", patch))[0]
        if what != "kept":
            source = pale if what == "merged" else dark
            out.paste(source.crop(boxes[patch]), boxes[patch])
    pen = ImageDraw.Draw(out)
    for patch in sorted(merged):
        if patch >= 0:
            left, top, right, bottom = boxes[patch]
            pen.rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=2)
    return out


Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def legend(sheet: Image.Image, at: tuple[int, int], font: Font) -> None:
    """What the shades mean."""
    pen = ImageDraw.Draw(sheet)
    left, top = at
    box = 16
    entries: list[tuple[str, str | tuple[int, int, int], tuple[int, int, int] | None]] = [
        ("kept", (120, 160, 200), None),
        ("contextual token (stands where its reference was)", (120, 160, 200), FRAME),
        ("merged into a contextual token", (225, 225, 225), None),
        ("dropped", (20, 20, 20), None),
    ]
    for text, fill, outline in entries:
        pen.rectangle(
            (left, top, left + box, top + box),
            fill=fill,
            outline=outline or "black",
            width=2 if outline else 1,
        )
        pen.text((left + box + 6, top - 2), text, fill="black", font=font)
        left += box + 6 + int(pen.textlength(text, font=font)) + 28
        if left > sheet.width - 120:
            break
