"""The curricula: which pictures, which questions, how long."""

from __future__ import annotations

from .pocket_data import Phase

EASY = (("exist", 2), ("count", 1), ("place_color", 1), ("place_shape", 1))
FULL = (("exist", 2), ("count", 2), ("color", 2), ("shape", 2))

CURRICULA: dict[str, tuple[Phase, ...]] = {
    "pocket": (
        Phase("dense-12", 12, 1000, 64, 4, signs=(2, 5)),
        Phase("questions-12-half", 12, 1800, 16, 4, 304, 0.2, quota=EASY, stride=2),
        Phase("questions-12", 12, 500, 16, 4, 304, 0.2, quota=FULL),
        Phase("questions-24", 24, 600, 8, 4, 304, 0.1, signs=(2, 5), quota=FULL, reference=0.6, decay=True),
    ),
    "tiny": (
        Phase("dense-12", 12, 100, 4, 2),
        Phase("questions-12", 12, 60, 2, 2, 160, 0.2, quota=EASY, stride=2),
        Phase("questions-24", 24, 40, 2, 2, 160, 0.1, signs=(2, 5), quota=FULL, decay=True),
    ),
}
