"""The bundled sample sets, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playground import generate
from playground.pocket.sets import FORMS, SETS

ROOT = Path(generate.__file__).parent / "data" / "eval"
NAMES = tuple(FORMS)
CLIP_NAMES = tuple(name for name in SETS if name not in FORMS)


def load(name: str, file: str) -> Any:
    path = ROOT / name / file
    if path.suffix == ".jsonl" or "coco_pope" in file:
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())


def notes_of(name: str) -> list[dict[str, Any]]:
    return load(name, "regions.json")
