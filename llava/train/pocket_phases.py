"""The curricula: which pictures, which questions, how long."""

from __future__ import annotations

from .pocket_data import Phase

FULL = (("exist", 2), ("count", 2), ("color", 2), ("shape", 2))

CURRICULA: dict[str, tuple[Phase, ...]] = {
    "pocket": (
        Phase("dense-12", 12, 1000, 64, 4, signs=(2, 5)),
        Phase(
            "questions-12",
            12,
            3300,
            16,
            4,
            304,
            0.3,
            align=0.15,
            look=0.3,
            quota=FULL,
            stride=2,
            few=0.5,
            lr=0.7,
        ),
        Phase(
            "questions-24",
            24,
            260,
            8,
            4,
            304,
            0.2,
            align=0.05,
            look=0.2,
            signs=(2, 5),
            quota=FULL,
            reference=0.6,
            lr=0.7,
            decay=True,
        ),
    ),
    "tiny": (
        Phase("dense-12", 12, 100, 4, 2),
        Phase("questions-12", 12, 60, 2, 2, 160, 0.2, align=0.3, look=0.3, quota=FULL, stride=2),
        Phase(
            "questions-24", 24, 40, 2, 2, 160, 0.1, align=0.1, signs=(2, 5), quota=FULL, decay=True
        ),
    ),
}
