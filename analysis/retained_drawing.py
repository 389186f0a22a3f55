"""Retained tokens drawn: kept patches show the picture, dropped ones are dark, absorbed ones pale
and joined by lines to the framed token that stands for them.

It reads without colour: shades, frames and lines tell the kinds apart; the colours of lines only
help to follow them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from analysis.retained_geometry import CROPS, PICTURE, THUMBNAIL, Box, Patch, Stage, middle
from visiondrop.draw_patches import Box as PixelBox
from visiondrop.draw_patches import paint

__all__ = ["draw_panel", "legend", "outline_edges", "place_views"]

PIXELS = 480
"""The longer side of a view when its patches are painted."""
SMALL, GAP = 0.5, 0.05
"""The thumbnail's size and its distance, in parts of the crops' view."""
MANY = 200
"""Lines from which on they are drawn thinner."""
FINE = 1000
"""Patches from which on their frames are drawn thinner."""
LINES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#8A6100", "#1F78B4")
FATES = {"kept": "kept", "contextual": "kept", "absorbed": "merged", "dropped": "dropped"}
SWATCHES = {"kept": "#78A0C8", "absorbed": "0.88", "dropped": "0.08"}

Place = tuple[float, float, float]
"""(scale, x, y): a view's pixel (u, v) is drawn at (scale u + x, scale v + y)."""


def place_views(views: Sequence[str], size: tuple[int, int]) -> dict[str, Place]:
    """Where the views of a picture of (width, height) stand in a panel.

    One view alone fills it. Of two, the thumbnail stands at half the size below the crops, or
    beside those of an upright picture.
    """
    if CROPS not in views:
        return dict.fromkeys(views, (1.0, 0.0, 0.0))
    width, height = size
    if height > width:
        return {CROPS: (1.0, 0.0, 0.0), THUMBNAIL: (SMALL, width * (1 + GAP), 0.0)}
    return {CROPS: (1.0, 0.0, 0.0), THUMBNAIL: (SMALL, 0.0, height * (1 + GAP))}


def panel_size(views: Sequence[str], size: tuple[int, int]) -> tuple[float, float]:
    """(width, height) that the views take up."""
    places = place_views(views, size)
    return (
        max(scale * size[0] + x for scale, x, _ in places.values()),
        max(scale * size[1] + y for scale, _, y in places.values()),
    )


def outline_edges(squares: Sequence[Box]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The border of squares that lie edge to edge: sides that no two share, as pairs of points."""
    sides: Counter[tuple[tuple[float, float], tuple[float, float]]] = Counter()
    for box in squares:
        left, top, right, bottom = (round(v, 3) for v in box)
        sides.update(
            [
                ((left, top), (right, top)),
                ((left, bottom), (right, bottom)),
                ((left, top), (left, bottom)),
                ((right, top), (right, bottom)),
            ]
        )
    return [side for side, times in sides.items() if times == 1]


def painted(image: Image.Image, patches: Sequence[Patch] | None) -> Image.Image:
    """A view of the picture with its patches shaded; None leaves it as it is."""
    view = resized(image)
    if patches is not None:
        fates = {p.token: (FATES[p.kind], p.to) for p in patches}
        paint(view, pixel_boxes(patches, image.size, view.size), fates, set())
    return view


def kept_alone(image: Image.Image, patches: Sequence[Patch]) -> Image.Image:
    """The same (RGBA) where a patch was kept, and nothing elsewhere."""
    view = resized(image)
    mask = Image.new("L", view.size)
    kept = [p for p in patches if FATES[p.kind] == "kept"]
    for box in pixel_boxes(kept, image.size, view.size).values():
        mask.paste(255, box)
    view.putalpha(mask)
    return view


def resized(image: Image.Image) -> Image.Image:
    """A view of the picture at the size at which patches are painted."""
    scale = PIXELS / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def pixel_boxes(
    patches: Sequence[Patch], size: tuple[int, int], drawn: tuple[int, int]
) -> dict[int, PixelBox]:
    """Boxes on a picture of `size` as whole pixels of one of size `drawn`, without empty ones."""
    x, y = drawn[0] / size[0], drawn[1] / size[1]
    out = {}
    for patch in patches:
        left, top, right, bottom = patch.box
        box = round(left * x), round(top * y), round(right * x), round(bottom * y)
        if box[0] < box[2] and box[1] < box[3]:
            out[patch.token] = box
    return out


def draw_panel(
    axis: Any,
    image: Image.Image,
    stage: Stage | None,
    squares: Sequence[Box] = (),
    views: Sequence[str] = (PICTURE,),
    joins: bool = True,
) -> None:
    """One picture after one stage (None: as it was), with the border of a region.

    Args:
        image: at the size that boxes and squares are for.
        squares: of the region, see `retained_geometry.region_squares`.
        views: of the picture, each of which is drawn.
        joins: whether lines join contextual tokens to what they absorbed.
    """
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Rectangle

    places = place_views(views, image.size)
    for view, (scale, x, y) in places.items():
        own = None if stage is None else [p for p in stage.patches if p.view == view]
        right, bottom = x + scale * image.width, y + scale * image.height
        extent = (x, right, bottom, y)
        axis.imshow(painted(image, own), extent=extent, zorder=0)
        if own is not None and stage is not None and stage.links():
            # Lines pass below what was kept, which stays readable.
            axis.imshow(kept_alone(image, own), extent=extent, zorder=2)
        edges = [[(scale * u + x, scale * v + y) for u, v in e] for e in outline_edges(squares)]
        for width, color in ((1.8 * scale, "white"), (0.9 * scale, "black")):
            axis.add_collection(
                LineCollection(
                    edges, colors=color, linewidths=width, capstyle="projecting", zorder=4
                )
            )
    if stage is not None:
        tints = _tints(stage)
        if joins:
            _join(axis, stage, places, tints)
        frames, colors = [], []
        thin = 0.8 if len(stage.patches) < FINE else 0.5
        for patch in stage.patches:
            if patch.kind == "contextual":
                scale, x, y = places[patch.view]
                left, top, right, bottom = patch.box
                corner = (scale * left + x, scale * top + y)
                frames.append(Rectangle(corner, scale * (right - left), scale * (bottom - top)))
                colors.append(tints[patch.token])
        axis.add_collection(
            PatchCollection(frames, facecolors="none", edgecolors=colors, linewidths=thin, zorder=3)
        )
    width, height = panel_size(views, image.size)
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _tints(stage: Stage) -> dict[int, str]:
    """A colour for each token that stands for others, in turn."""
    tokens = {p.token for p in stage.patches if p.kind == "contextual"}
    tokens |= {token.token for _, token in stage.links()}
    return {token: LINES[i % len(LINES)] for i, token in enumerate(sorted(tokens))}


def _join(axis: Any, stage: Stage, places: Mapping[str, Place], tints: Mapping[int, str]) -> None:
    """Lines from absorbed patches to what stands for them."""
    from matplotlib.collections import LineCollection

    lines, colors = [], []
    for patch, token in stage.links():
        ends = []
        for end in (patch, token):
            (u, v), (scale, x, y) = middle(end.box), places[end.view]
            ends.append((scale * u + x, scale * v + y))
        lines.append(ends)
        colors.append(tints[token.token])
    thin = 0.3 if len(lines) < MANY else max(0.08, 0.2 * (500 / len(lines)) ** 0.5)
    axis.add_collection(LineCollection(lines, colors=colors, linewidths=thin, alpha=0.6, zorder=1))


def legend(
    drawn: Any, region: bool, merging: bool, note: str | None = None, joins: bool = True
) -> None:
    """What the shades mean, below a figure.

    Args:
        region: whether a region was outlined; merging: whether anything was absorbed.
        note: a line above it; joins: whether lines were drawn.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch as Swatch

    box: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6}
    entries: list[Any] = [Swatch(facecolor=SWATCHES["kept"], label="kept (the picture)", **box)]
    if merging:
        entries += [
            Swatch(
                facecolor=SWATCHES["kept"],
                edgecolor=LINES[0],
                linewidth=1.2,
                label="contextual token",
            ),
            Swatch(facecolor=SWATCHES["absorbed"], label="absorbed by it", **box),
        ]
    if merging and joins:
        entries.append(Line2D([], [], color=LINES[0], linewidth=0.6, label="where to"))
    entries.append(Swatch(facecolor=SWATCHES["dropped"], label="dropped", **box))
    if region:
        entries.append(
            Swatch(facecolor="white", edgecolor="black", linewidth=1.2, label="what is asked for")
        )
    drawn.legend(
        handles=entries, loc="outside lower center", ncols=len(entries), handlelength=1.2,
        title=note, title_fontsize=7, columnspacing=1.2,
    )  # fmt: skip
