"""What became of every patch, stage by stage, as boxes on the picture and links between them.

Coordinates are pixels (x to the right, y down) of the picture that is drawn over: of the original
picture where it is read in tiles, of the padded square that the model saw otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llava.eval.truth import SIDE as SQUARE
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.trace import SampleTrace

__all__ = [
    "KINDS",
    "CROPS",
    "PICTURE",
    "THUMBNAIL",
    "Box",
    "Patch",
    "Stage",
    "kept_tokens",
    "middle",
    "region_share",
    "region_squares",
    "retained",
    "token_boxes",
]

Kind = Literal["kept", "contextual", "absorbed", "dropped"]
KINDS: tuple[Kind, ...] = ("kept", "contextual", "absorbed", "dropped")
PICTURE, THUMBNAIL, CROPS = "picture", "thumbnail", "crops"
"""Views: a picture of one tile has the first, one in tiles the other two."""
Box = tuple[float, float, float, float]
"""(left, top, right, bottom), right and bottom outside."""


@dataclass(frozen=True)
class Patch:
    """One patch after a stage: what is to be drawn of it.

    Attributes:
        token: its id, as in traces.
        view: on which view of the picture it lies.
        box: what it shows, cut to the picture.
        kind: "kept" as it was; "contextual", kept as a token into which others were folded at this
            stage or an earlier one; "absorbed" by such a token; "dropped".
        to: the token that stands for it now; itself where it was kept or dropped.
        link: the patch with which a line joins it: `to` where that has a place on the picture
            (CLS has none), None for patches that were not absorbed.
    """

    token: int
    view: str
    box: Box
    kind: Kind
    to: int
    link: int | None = None


@dataclass(frozen=True)
class Stage:
    """All patches of a picture after one stage.

    Attributes:
        name: "encoder", "layer 8", and so on; "all" where the method has no stage.
        tokens: visual tokens after it, CLS and newlines included.
        patches: by view and id; those in the padding around a picture are left out.
    """

    name: str
    tokens: int
    patches: tuple[Patch, ...]

    def counts(self) -> dict[str, int]:
        """Patches of each kind."""
        found = Counter(patch.kind for patch in self.patches)
        return {kind: found[kind] for kind in KINDS}

    def links(self) -> list[tuple[Patch, Patch]]:
        """(absorbed patch, the patch that stands for it)."""
        places = {patch.token: patch for patch in self.patches}
        return [(p, places[p.link]) for p in self.patches if p.link is not None]


def token_boxes(
    sample: SampleTrace, grid: tuple[int, int], size: tuple[int, int], picture: int = 0
) -> dict[str, dict[int, Box]]:
    """Where each patch lies: view -> token id -> box cut to the picture.

    Patches that show nothing but padding are left out.

    Args:
        grid: (rows, columns) of patches of a picture of one tile.
        size: (width, height) of the picture that is drawn over; that of `TileGrid.original` where
            there are tiles.

    Raises `ValueError` for videos, whose patches have a time beside a place.
    """
    layout = sample.grids[picture] if picture < len(sample.grids) else None
    shape = sample.shapes[picture] if picture < len(sample.shapes) else None
    if isinstance(layout, TileGrid):
        n = layout.side**2
        of_view = {THUMBNAIL: [], CROPS: []}  # type: dict[str, list[int]]
        for tile in range(layout.tiles):
            view = THUMBNAIL if tile == layout.overview else CROPS
            of_view[view] += range(tile * n, (tile + 1) * n)
        found = {view: {t: layout.box(t) for t in ids} for view, ids in of_view.items()}
    elif isinstance(layout, PackedGrid):
        tiles = (layout.rows, layout.columns)
        found = {
            THUMBNAIL: _even((layout.side, layout.side), size, 0),
            CROPS: _even(tiles, size, layout.base) if layout.tiles > 1 else {},
        }
    elif layout is not None or (shape is not None and shape[0] > 1):
        raise ValueError("a video's patches have a time beside a place; take single pictures")
    else:
        found = {PICTURE: _even(grid if shape is None else shape[1:], size, 0)}
    return {view: _cut(boxes, size) for view, boxes in found.items() if boxes}


def _even(grid: tuple[int, int], size: tuple[int, int], first: int) -> dict[int, Box]:
    """The cells of a (rows, columns) grid over a picture; ids from `first` on, row by row."""
    (rows, columns), (width, height) = grid, size
    x, y = width / columns, height / rows
    return {
        first + row * columns + column: (column * x, row * y, (column + 1) * x, (row + 1) * y)
        for row in range(rows)
        for column in range(columns)
    }


def _cut(boxes: Mapping[int, Box], size: tuple[int, int]) -> dict[int, Box]:
    out = {}
    for token, (left, top, right, bottom) in boxes.items():
        box = (max(left, 0.0), max(top, 0.0), min(right, size[0]), min(bottom, size[1]))
        if box[2] - box[0] > 1e-6 and box[3] - box[1] > 1e-6:
            out[token] = box
    return out


def retained(
    sample: SampleTrace, boxes: Mapping[str, Mapping[int, Box]], picture: int = 0
) -> list[Stage]:
    """What is to be drawn after each stage, in order; one stage of kept patches without any.

    Args:
        boxes: as of `token_boxes`.
    """
    views = {token: view for view, own in boxes.items() for token in own}
    stages = [stage for stage in sample.stages if stage.picture == picture]
    if not stages:
        whole = {token: ("kept", token) for token in views}
        return [Stage("all", sample.tokens_per_layer[-1], _patches(whole, set(), boxes, views))]
    out, formed = [], set()  # type: list[Stage], set[int]
    for stage, (name, fate) in zip(stages, sample.fates(picture), strict=True):
        # A contextual token stays one when a later stage keeps it: it still holds what it took in.
        formed |= {entry["reference"] for entry in stage.merged}
        out.append(Stage(name, stage.tokens_out, _patches(fate, formed, boxes, views)))
    return out


def _patches(
    fate: Mapping[int, tuple[str, int]],
    formed: set[int],
    boxes: Mapping[str, Mapping[int, Box]],
    views: Mapping[int, str],
) -> tuple[Patch, ...]:
    out = []
    for view, own in boxes.items():
        for token, box in own.items():
            what, to = fate.get(token, ("dropped", token))
            link = to if what == "merged" and to in views else None
            kind: Kind = "dropped"
            if what == "merged":
                kind = "absorbed"
            elif what == "kept":
                kind = "contextual" if token in formed else "kept"
            out.append(Patch(token, view, box, kind, to, link))
    return tuple(out)


def middle(box: Box) -> tuple[float, float]:
    """(x, y) of a box's middle."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def region_squares(
    region: Sequence[int], original: tuple[int, int], drawn: tuple[int, int], tiled: bool
) -> list[Box]:
    """The squares of a question's region on the picture that is drawn over.

    Args:
        region: ids of squares of 14 x 14 pixels of the original picture, row by row.
        original, drawn: (width, height) of the picture as it was and as it is drawn over: the same
            where it is read in tiles, else padded to a square in its middle and brought to size.
    """
    columns = -(-original[0] // SQUARE)
    side = max(original)
    left, top = (0, 0) if tiled else ((side - original[0]) // 2, (side - original[1]) // 2)
    scale = 1.0 if tiled else drawn[0] / side
    out = []
    for square in region:
        row, column = divmod(square, columns)
        x, y = column * SQUARE, row * SQUARE
        right, bottom = min(x + SQUARE, original[0]), min(y + SQUARE, original[1])
        out.append(
            (
                (x + left) * scale,
                (y + top) * scale,
                (right + left) * scale,
                (bottom + top) * scale,
            )
        )
    return out


def region_share(
    patches: Iterable[Patch], squares: Sequence[Box], kinds: Sequence[str] = KINDS[:2]
) -> float:
    """Of the patches whose middle lies in a region, the share that is of the given kinds.

    Kept and contextual ones by default: those that stand for themselves. NaN where no patch lies
    in the region.
    """
    inside = []
    for patch in patches:
        x, y = middle(patch.box)
        if any(left <= x < right and top <= y < bottom for left, top, right, bottom in squares):
            inside.append(patch.kind in kinds)
    return sum(inside) / len(inside) if inside else float("nan")


def kept_tokens(stage: Stage) -> frozenset[int]:
    """Ids of the patches that stand for themselves after a stage."""
    return frozenset(p.token for p in stage.patches if p.kind in KINDS[:2])
