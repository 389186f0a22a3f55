"""The reader of the bundled data's ground truth: what it takes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval.errors import EvalError
from llava.eval.truth import Object, Objects, named_of, read_objects, unnamed_of

RING = {"name": "red ring", "box": [14, 0, 30, 16], "patches": [1, 2]}
SIGN = {"name": "red sign", "box": [0, 14, 20, 28], "patches": [3, 4]}
PICTURE = {"size": [40, 28], "grid": [2, 3], "objects": [RING, SIGN]}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "objects.json"
    path.write_text(json.dumps({"a/0.jpg": {**PICTURE, **changes}}))
    return path


def test_reads_pictures_by_name(tmp_path: Path) -> None:
    ring = Object("red ring", (14, 0, 30, 16), (1, 2))
    sign = Object("red sign", (0, 14, 20, 28), (3, 4))
    found = read_objects(written(tmp_path))
    assert found == {"a/0.jpg": Objects((40, 28), (2, 3), (ring, sign))}
    objects = found["a/0.jpg"]
    assert objects.called("ring") == objects.called("red ring") == (ring,)
    assert objects.called("red") == objects.called("blue ring") == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size": [40]}, "unpack"),
        ({"size": [56, 28]}, "does not fit"),
        ({"grid": "23"}, "whole numbers"),
        ({"grid": None}, "whole numbers"),
        ({"objects": None}, "NoneType"),
        ({"objects": ["ring"]}, "indices"),
        ({"objects": [{**RING, "name": 3}]}, "name 3"),
        ({"objects": [{**RING, "box": [14, 0, 41, 16]}]}, "40 x 28"),
        ({"objects": [{**RING, "box": [14, 0, 14, 16]}]}, "red ring"),
        ({"objects": [{**RING, "box": [14.5, 0, 30, 16]}]}, "whole numbers"),
        ({"objects": [{**RING, "patches": [2, 1]}]}, "rise"),
        ({"objects": [{**RING, "patches": [-1, 1]}]}, "rise"),
        ({"objects": [{**RING, "patches": [True]}]}, "whole numbers"),
        ({"objects": [{**RING, "patches": [1, 6]}]}, "patch 6 of 6"),
        ({"objects": [{"name": "red ring", "patches": [1]}]}, "box"),
    ],
)
def test_refuses_what_does_not_hold_together(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(EvalError, match=told) as caught:
        read_objects(written(tmp_path, **changes))
    assert "objects.json" in str(caught.value) and "make_samples.sh" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a.jpg": 3}', '{"a.jpg": {"size": [1, 1]}}'])
def test_refuses_files_that_hold_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "objects.json").write_text(text)
    with pytest.raises(EvalError, match=r"objects\.json does not say"):
        read_objects(tmp_path / "objects.json")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="missing"):
        read_objects(tmp_path / "objects.json")


def test_without_named_the_words_name_the_whole_region() -> None:
    entry = {"question_id": 7, "region": [3, 5, 9]}
    assert named_of(entry) == (3, 5, 9) and unnamed_of(entry) == ()
    assert named_of({**entry, "named": []}) == () and unnamed_of({**entry, "named": []}) == (
        3,
        5,
        9,
    )
    assert unnamed_of({**entry, "named": [5]}) == (3, 9)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"region": [3], "named": [3, 4], "question_id": 7}, r"question 7 .* \[4\]"),
        ({"region": [3], "named": None}, "None"),
        ({"region": "3"}, "whole numbers"),
        ({"question_id": 7}, "region"),
    ],
)
def test_broken_entries_are_refused(entry: dict[str, Any], told: str) -> None:
    with pytest.raises(EvalError, match=told):
        named_of(entry)
