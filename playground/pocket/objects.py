"""``objects.json``: what each picture of a set shows and where, straight from its scene."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .facts import name_of
from .labels import thing_patches
from .scene import Scene

OBJECTS = "objects.json"


def objects_of(scene: Scene) -> dict[str, Any]:
    """A picture's entry: ``size`` [width, height] in pixels, ``grid`` [rows, columns] of squares of
    14 x 14 pixels, ``objects`` in the order in which they are drawn.

    ``patches`` are the squares that show at least 4% of their area of the thing (or the most that
    any shows, where that is less), as in regions; ``box`` is in pixels, its end excluded.
    """
    return {
        "size": list(scene.size),
        "grid": list(scene.grid),
        "objects": [
            {"name": name_of(t), "box": list(t.box), "patches": thing_patches(t, scene.grid)}
            for t in scene.things
        ],
    }


def objects_text(scenes: Mapping[str, Scene]) -> str:
    """The file: one picture a line, by the name that the question file gives it."""
    rows = (
        f"{json.dumps(image)}: {json.dumps(objects_of(scene), separators=(',', ':'))}"
        for image, scene in scenes.items()
    )
    return "{\n" + ",\n".join(rows) + "\n}\n"
