"""What the bundled sample data knows of its pictures and questions beyond the benchmarks' files.

``objects.json`` says what each picture shows and where, ``regions.json`` what each question asks
for and which part of that its words name. Patches are squares of 14 x 14 pixels of the original
picture, numbered row by row; of pictures of 336 x 336 pixels they are the encoder's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError

OBJECTS = "objects.json"
SIDE = 14  # pixels
REMEDY = "make it again with scripts/data/make_samples.sh"


@dataclass(frozen=True)
class Object:
    """One thing in a picture.

    Attributes:
        name: colour and shape, or colour and "sign"; several things may have one name.
        box: x0, y0, x1, y1 in pixels, end excluded.
        patches: ids of the squares that show it, rising.
    """

    name: str
    box: tuple[int, int, int, int]
    patches: tuple[int, ...]


@dataclass(frozen=True)
class Objects:
    """All things in one picture.

    Attributes:
        size: (width, height) in pixels.
        grid: (rows, columns) of squares; the last of each may be cut.
        objects: in the order in which they are drawn; none covers another.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    objects: tuple[Object, ...]

    def called(self, name: str) -> tuple[Object, ...]:
        """Those of that name ("red circle"), or of that kind in any colour ("circle", "sign")."""
        return tuple(o for o in self.objects if name in (o.name, o.name.split()[-1]))


def read_objects(path: Path) -> dict[str, Objects]:
    """The pictures of an ``objects.json`` by the name that samples give them (`Sample.image`).

    Pictures that cannot be told from what was drawn (VizWiz's blurred ones) are not in it.

    Raises EvalError where the file is missing or does not hold together."""
    if not path.is_file():
        raise EvalError(f"{path} is missing: only bundled sets have it; {REMEDY}")
    try:
        return {str(name): _objects(entry) for name, entry in json.loads(path.read_bytes()).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvalError(f"{path} does not say what pictures show ({error!r}); {REMEDY}") from None


def _objects(entry: Mapping[str, Any]) -> Objects:
    width, height = _whole_numbers(entry["size"])
    rows, columns = _whole_numbers(entry["grid"])
    if (rows, columns) != (-(-height // SIDE), -(-width // SIDE)):
        raise ValueError(f"grid {[rows, columns]} does not fit size {[width, height]}")
    found = []
    for thing in entry["objects"]:
        name, patches = thing["name"], _patches(thing["patches"], rows * columns)
        x0, y0, x1, y1 = _whole_numbers(thing["box"])
        if not isinstance(name, str) or not name:
            raise ValueError(f"name {name!r}")
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"box {thing['box']} of the {name} in a picture of {width} x {height}")
        found.append(Object(name, (x0, y0, x1, y1), patches))
    return Objects((width, height), (rows, columns), tuple(found))


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(x) is not int for x in values):
        raise ValueError(f"{values!r} is no list of whole numbers")
    return tuple(values)


def _patches(values: Any, count: int | None = None) -> tuple[int, ...]:
    ids = _whole_numbers(values)
    if list(ids) != sorted(set(ids)) or (ids and ids[0] < 0):
        raise ValueError(f"patches {values} do not rise from 0 on")
    if ids and count is not None and ids[-1] >= count:
        raise ValueError(f"patch {ids[-1]} of {count}")
    return ids


def named_of(entry: Mapping[str, Any]) -> tuple[int, ...]:
    """Patches of the things in a question's region that its words name by colour, shape or "sign".

    ``entry`` is one of ``regions.json``; without ``named`` the words name all of its region.
    Entries of clips do not tell the two apart.

    Raises EvalError where they are no part of the region."""
    try:
        region = _patches(entry["region"])
        named = _patches(entry["named"]) if "named" in entry else region
    except (KeyError, TypeError, ValueError) as error:
        raise EvalError(f"regions.json is broken ({error!r}); {REMEDY}") from None
    if not set(named) <= set(region):
        beside = sorted(set(named) - set(region))
        raise EvalError(
            f"regions.json: question {entry.get('question_id')} names patches {beside} outside its "
            f"region; {REMEDY}"
        )
    return named


def unnamed_of(entry: Mapping[str, Any]) -> tuple[int, ...]:
    """Patches that the answer needs and that show nothing the question names, rising.

    A patch that shows a named thing beside another counts as named."""
    named = set(named_of(entry))
    return tuple(p for p in entry["region"] if p not in named)
