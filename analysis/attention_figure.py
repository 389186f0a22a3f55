"""Figure 1: attention from image to image beside attention from text to image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import plots
from analysis.panels import draw_picture, outline_region, panels, show_panel

if TYPE_CHECKING:
    from analysis.attention_maps import Maps

__all__ = ["plot"]

TITLES = {"image_to_image": "image to image", "text_to_image": "text to image"}


def plot(
    found: Sequence[Maps], images: Sequence[Any], stem: Path, thumbnails: bool = False
) -> list[Path]:
    """A row for each question: the picture, then both kinds of attention by head and layer, with
    the border of what is asked for where that is known.

    Args:
        images: the pictures as they are drawn over (`Setting.image`).
        thumbnails: of pictures in tiles, give the thumbnail a row of its own above the crops.
    """
    shown = [
        (kind, j, i)
        for kind in TITLES
        for j in range(len(found[0].heads))
        for i in range(len(found[0].layers))
    ]
    rows = []
    for maps, image in zip(found, images):
        kinds = [p.name for p in panels(maps.identity, maps.identity, maps.trace, maps.grid)]
        rows += [(maps, image, name) for name in (kinds if thumbnails else kinds[-1:])]
    size = min(1.4, plots.PAGE / (1 + len(shown)))
    heights = [size * min(1.6, image.size[1] / image.size[0]) + 0.35 for _, image, _ in rows]
    with plots.figure(
        len(rows), 1 + len(shown), squeeze=False, gridspec_kw={"height_ratios": heights},
        figsize=(size * (1 + len(shown)), sum(heights) + 0.4),
    ) as (drawn, axes):  # fmt: skip
        for r, (maps, image, name) in enumerate(rows):
            draw_picture(axes[r, 0], image)
            outline_region(axes[r, 0], maps.case, image.size)
            below = maps.case.question if name != "thumbnail" else "thumbnail"
            axes[r, 0].set_xlabel(plots.fold_text(below, int(size * 16)), fontsize=7)
            for axis, (kind, j, i) in zip(axes[r, 1:], shown):
                drawn_over = panels(maps.identity, maps.values[kind][i, j], maps.trace, maps.grid)
                show_panel(axis, next(p for p in drawn_over if p.name == name), image.size)
                outline_region(axis, maps.case, image.size)
                if r == 0:
                    head = "" if maps.heads[j] == "mean" else f"\nhead {maps.heads[j]}"
                    axis.set_title(f"{TITLES[kind]}\nlayer {maps.layers[i]}{head}", fontsize=7)
        return plots.save(drawn, stem)
