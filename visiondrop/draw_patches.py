"""Patches shown by what became of them, on a picture of one tile and on one of several.

Readable without colour: kept patches show the picture itself, contextual tokens have a frame,
patches folded into one are pale, dropped ones nearly black.
"""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.packed_layout import PackedGrid

__all__ = [
    "FRAME",
    "SIDE",
    "TILED_SIDE",
    "Box",
    "Tiled",
    "count_tokens",
    "paint",
    "tile_panel",
    "tile_view",
]

SIDE = 384
TILED_SIDE = 480
"""The longer side, in pixels, of a picture of one tile and of the tiles of a larger one."""
FRAME = (214, 94, 0)
GAP = 8
CAPTION = 22

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom outside."""
Fate = Mapping[int, tuple[str, int]]
Tiled = TileGrid | PackedGrid


def paint(picture: Image.Image, boxes: Mapping[int, Box], fate: Fate, merged: set[int]) -> None:
    """Show each patch of `picture` by what became of it, in place.

    Args:
        picture: RGB, at the size that the boxes are for.
        boxes: where each patch id is; empty boxes are left out.
        fate: as of `SampleTrace.fates`; a patch without one was dropped.
        merged: patch ids of contextual tokens, which get a frame.
    """
    grey = picture.convert("L").convert("RGB")
    pale = Image.blend(grey, Image.new("RGB", picture.size, "white"), 0.7)
    dark = Image.blend(grey, Image.new("RGB", picture.size), 0.88)
    for patch, box in boxes.items():
        what = fate.get(patch, ("dropped", patch))[0]
        if what != "kept":
            picture.paste((pale if what == "merged" else dark).crop(box), box)
    pen = ImageDraw.Draw(picture)
    for patch in sorted(merged & set(boxes)):
        left, top, right, bottom = boxes[patch]
        pen.rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=2)


def tile_view(
    image: Image.Image,
    grid: Tiled,
    fate: Fate | None,
    merged: set[int],
    thumbnail: bool,
) -> Image.Image:
    """The whole picture with the thumbnail's patches, or with those of the crops and, where they
    are known, the crops' borders.

    Args:
        image: the whole picture; it is brought to `grid.original`'s proportions.
        fate: as of `SampleTrace.fates`; None shows the picture as it is.
    """
    original = image.size if isinstance(grid, PackedGrid) else grid.original
    size = view_size(grid, original, thumbnail)
    view = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    if fate is not None:
        boxes = {token: cut(grid, token, original, size) for token in tokens_of(grid, thumbnail)}
        shown = {token: box for token, box in boxes.items() if box[0] < box[2] and box[1] < box[3]}
        paint(view, shown, fate, merged)
    if isinstance(grid, TileGrid) and not thumbnail:
        pen, patches = ImageDraw.Draw(view), grid.side**2
        for first in tokens_of(grid, False)[::patches]:
            left, top, _, _ = cut(grid, first, original, size)
            _, _, right, bottom = cut(grid, first + patches - 1, original, size)
            for x in {left, right} - {0, size[0]}:
                pen.line((x, 0, x, size[1]), fill="white", width=2)
            for y in {top, bottom} - {0, size[1]}:
                pen.line((0, y, size[0], y), fill="white", width=2)
    return view


def tokens_of(grid: Tiled, thumbnail: bool) -> list[int]:
    """Ids of the thumbnail's patches, or of all others, in order."""
    if isinstance(grid, PackedGrid):
        return list(range(grid.base) if thumbnail else range(grid.base, grid.first_newline))
    patches = grid.side**2
    tiles = [t for t in range(grid.tiles) if (t == grid.overview) == thumbnail]
    return [tile * patches + patch for tile in tiles for patch in range(patches)]


def view_size(grid: Tiled, original: tuple[int, int], thumbnail: bool) -> tuple[int, int]:
    """(width, height) of a view: the tiles' longer side is `TILED_SIDE`, and a patch of the
    thumbnail is about as large as one of a tile.
    """
    cells = (grid.rows, grid.columns) if isinstance(grid, PackedGrid) else grid.tokens
    longest = TILED_SIDE * (min(1.0, grid.side / max(cells)) if thumbnail else 1)
    scale = longest / max(original)
    width, height = (max(1, round(side * scale)) for side in original)
    return width, height


def cut(grid: Tiled, token: int, original: tuple[int, int], size: tuple[int, int]) -> Box:
    """Where a patch is in a view, cut to it; without area where it shows padding alone."""
    if isinstance(grid, PackedGrid):
        # Unpadded, so that its rows and columns spread over the picture.
        _, tile, row, column = grid.locate(token)
        rows, columns = (grid.side, grid.side) if tile == 0 else (grid.rows, grid.columns)
        x, y = original[0] / columns, original[1] / rows
        box = column * x, row * y, (column + 1) * x, (row + 1) * y
    else:
        box = grid.box(token)
    x, y = size[0] / original[0], size[1] / original[1]
    left, right = (min(max(round(v * x), 0), size[0]) for v in box[::2])
    top, bottom = (min(max(round(v * y), 0), size[1]) for v in box[1::2])
    return left, top, right, bottom


def count_tokens(grid: Tiled, fate: Fate) -> tuple[int, int, int]:
    """How many tokens stand for the thumbnail, for the crops, and are newlines."""
    counts, overview = [0, 0, 0], 0 if isinstance(grid, PackedGrid) else grid.overview
    for token, (what, _) in fate.items():
        if what == "kept":
            kind, tile, _, _ = grid.locate(token)
            counts[2 if kind == "newline" else int(tile != overview)] += 1
    return counts[0], counts[1], counts[2]


def tile_panel(
    image: Image.Image, grid: Tiled, fate: Fate | None = None, merged: set[int] | None = None
) -> Image.Image:
    """The crops' patches and the thumbnail's, one below or beside the other, with their counts."""
    if grid.tiles == 1:
        return tile_view(image, grid, fate, merged or set(), True)
    crops = tile_view(image, grid, fate, merged or set(), False)
    small = tile_view(image, grid, fate, merged or set(), True)
    if isinstance(grid, PackedGrid):
        tiles = f"{grid.tiles - 1} tiles, {grid.rows} x {grid.columns} tokens"
    else:
        r0, r1, c0, c1 = grid.window
        tiles = f"{grid.rows} x {grid.columns} tiles, {r1 - r0} x {c1 - c0} patches"
    whole = f"thumbnail, {grid.side} x {grid.side}"
    if fate is not None:
        first, rest, _ = count_tokens(grid, fate)
        tiles, whole = f"tiles: {rest}", f"thumbnail: {first}"
    font = ImageFont.load_default(size=14)
    beside = crops.height > crops.width
    wide = max(crops.width, int(font.getlength(tiles)))
    at = (wide + GAP, 0) if beside else (0, CAPTION + crops.height)
    right = at[0] + max(small.width, int(font.getlength(whole)))
    panel = Image.new(
        "RGB",
        (max(wide, right), max(CAPTION + crops.height, at[1] + CAPTION + small.height)),
        "white",
    )
    pen = ImageDraw.Draw(panel)
    pen.text((0, 2), tiles, fill="black", font=font)
    panel.paste(crops, (0, CAPTION))
    pen.text((at[0], at[1] + 2), whole, fill="black", font=font)
    panel.paste(small, (at[0], at[1] + CAPTION))
    return panel
