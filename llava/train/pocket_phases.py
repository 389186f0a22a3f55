"""The curricula: which pictures, which questions, how long."""

from __future__ import annotations

from .pocket_data import Phase

EASY = (("exist", 2), ("count", 1), ("place_color", 1), ("place_shape", 1))
FULL = (("exist", 2), ("count", 2), ("color", 2), ("shape", 2))

CURRICULA: dict[str, tuple[Phase, ...]] = {
    "pocket": (
        Phase("dense-12", 12, 1000, 64),
        Phase("questions-12-half", 12, 2500, 16, 224, 0.2, quota=EASY, stride=2),
        Phase("questions-12", 12, 1000, 16, 224, 0.2, quota=FULL),
        Phase("questions-24", 24, 700, 8, 224, 0.1, quota=FULL, decay=True),
    ),
    "tiny": (
        Phase("dense-12", 12, 100, 4),
        Phase("questions-12", 12, 60, 2, 160, 0.2, quota=EASY, stride=2),
        Phase("questions-24", 24, 40, 1, 160, 0.1, quota=FULL, decay=True),
    ),
}
