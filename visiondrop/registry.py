"""The methods that there are, by name, and which of them a model can run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visiondrop.adapters.base import Geometry

if TYPE_CHECKING:
    from visiondrop.reducer import Reducer

__all__ = ["HIDDEN", "NEEDS", "divides", "working"]

_REGISTRY: dict[str, type[Reducer]] = {}
HIDDEN = {"composed", "oracle", "oracle_pyramid", "probe"}
"""Names that no list of methods shows."""

NEEDS = {
    "cls": "the attention of a CLS token in the vision tower",
    "crops": "pictures cut into several crops beside a thumbnail (any resolution)",
    "frames": "several pictures of one size in a prompt, as frames in order",
    "patches": "the vision tower's patches as visual tokens one by one, not several made one",
}
"""What `Reducer.needs` asks for, in words; "text encoder" has words of its own."""


def divides(cls: type[Reducer], geometry: Geometry) -> bool:
    """Whether a method is defined where a picture has several tiles, or a video several frames."""
    if cls.tiled or not (geometry.crops or geometry.frames > 1):
        return True
    return "frames" in cls.needs and (geometry.packed or geometry.single or geometry.frames > 1)


def working(geometry: Geometry, *missing: str) -> list[str]:
    """Names of the methods that run on a model.

    Args:
        missing: what the prompt lacks beside what the model does.
    """
    lacks = geometry.lacks | set(missing) | (set() if geometry.has_cls else {"text encoder"})
    names = {
        name
        for name, cls in _REGISTRY.items()
        if not lacks & set(cls.needs) and divides(cls, geometry)
    }
    return sorted(names - HIDDEN)


def check_parts(method: Reducer, geometry: Geometry) -> None:
    """Raise `ValueError` where a method cannot reduce pictures of several tiles, or videos."""
    if not divides(type(method), geometry) and not method.tiled:
        what = "any-resolution pictures, which have several tiles"
        raise ValueError(
            f"{method.name!r} is not defined on "
            f"{what if geometry.crops else 'videos, which have several frames'}; methods that work "
            f"here: {', '.join(working(geometry))}"
        )
    row = method.reads_text or method.looks_back or method.uses_input
    if geometry.crops and row and method.inside_part.tiles.newlines != "pool":
        raise ValueError(
            f"{method.name!r} looks at the row around the picture, where newlines stand among its "
            "tokens: use on_tiles(newlines='pool')"
        )
    tiles = method.before_part.tiles
    if geometry.packed and (tiles.padding != "hidden" or tiles.share != "importance"):
        raise ValueError(
            f"tiles: padding={tiles.padding!r}, share={tiles.share!r}: this model packs a picture "
            "before anything can be dropped, its padding is gone and all its tokens compete; leave "
            "padding='hidden' and share='importance'"
        )


def plain(value: Any) -> Any:
    """Tuples to lists and dictionary keys to strings, as JSON has them."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value
