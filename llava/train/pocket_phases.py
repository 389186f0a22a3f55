"""The curricula: which pictures, which questions, how long."""

from __future__ import annotations

from .pocket_data import Phase

FULL = (("exist", 2), ("count", 2), ("color", 2), ("shape", 2))

# Shares of the benchmarks' forms in the mixture.
MIXTURE = (
    ("textvqa", 2.5), ("vqav2", 1.0), ("vizwiz", 1.0), ("gqa", 1.3), ("pope", 1.5), ("mme", 1.3),
    ("mmbench", 1.0), ("mmbench_cn", 1.0), ("sqa", 1.0), ("seed", 0.8), ("mmvet", 0.5),
)  # fmt: skip

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
        Phase(
            "mixture-12",
            12,
            2900,
            8,
            2,
            256,
            look=0.3,
            quota=FULL,
            few=0.5,
            lr=0.7,
            frozen=True,
            forms=MIXTURE,
            scale=0.3,
            spoilt=0.03,
        ),
        Phase(
            "mixture-24",
            24,
            1262,
            8,
            4,
            384,
            look=0.3,
            signs=(2, 5),
            quota=FULL,
            reference=0.6,
            lr=0.7,
            decay=True,
            frozen=True,
            forms=MIXTURE,
            spoilt=0.03,
        ),
    ),
    "tiny": (
        Phase("dense-12", 12, 100, 4, 2),
        Phase("questions-12", 12, 60, 2, 2, 160, 0.2, align=0.3, look=0.3, quota=FULL, stride=2),
        Phase(
            "questions-24", 24, 40, 2, 2, 160, 0.1, align=0.1, signs=(2, 5), quota=FULL, decay=True
        ),
        Phase(
            "mixture-12",
            12,
            40,
            2,
            2,
            200,
            look=0.3,
            quota=FULL,
            decay=True,
            frozen=True,
            forms=MIXTURE,
            spoilt=0.2,
        ),
    ),
}
