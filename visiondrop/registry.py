"""The methods that there are, by name, and which of them a model can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visiondrop.adapters.base import Geometry

if TYPE_CHECKING:
    from visiondrop.reducer import Reducer

__all__ = ["HIDDEN", "NEEDS", "divides", "working"]

_REGISTRY: dict[str, type[Reducer]] = {}
HIDDEN = {"composed", "oracle"}
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
