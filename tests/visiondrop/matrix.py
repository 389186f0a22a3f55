"""The test matrix: one entry per method, with an ordinary and a hard setting.

The tiny models have 36 patches and 8 decoder layers. `test_identities.py` runs every identity over
every entry, family and attention implementation, except what an entry is exempt from, with reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.visiondrop.models import PATCHES
from visiondrop import Full, Random, Uniform, VisionDrop
from visiondrop.methods.yopo import Yopo
from visiondrop.reducer import Reducer


@dataclass(frozen=True)
class Setting:
    """A method in the matrix.

    Attributes:
        method: with a budget for 36 patches and 8 layers.
        whole: the same method with its full budget, which must equal the unpruned model; None where
            it does more than drop.
        exempt: identity -> why it cannot hold. Identities: "chat" (a turn on the kept cache = a
            fresh prompt; fails where the question takes part), "ledger" (counts depend on the
            picture), "float64" (selection unstable in float32), "several" (two pictures in a
            prompt), "single" (one picture in a prompt), "recomputed" (without a cache), "beams".
    """

    method: Reducer
    whole: Reducer | None = None
    exempt: Mapping[str, str] = field(default_factory=dict)


TEXT = {"chat": "the question takes part in the choice, and a later turn is another question"}

SETTINGS: dict[str, Setting] = {
    "full": Setting(Full(), whole=Full()),
    "visiondrop": Setting(
        VisionDrop(encoder=(14, 4), llm={2: (10, 3), 4: (7, 2), 6: (4, 1)}),
        whole=VisionDrop(llm={2: (PATCHES, 0)}),
    ),
    "visiondrop-no-stage": Setting(VisionDrop(), whole=VisionDrop()),
    "visiondrop-options": Setting(
        VisionDrop(
            encoder=(14, 4),
            llm={2: (10, 3), 6: (3, 0)},
            merge="size-weighted",
            positions="original",
            placement="in_place",
            causal="expectation",
            query="patches",
        ),
        whole=VisionDrop(llm={2: (PATCHES, 0), 5: (PATCHES, 0)}, positions="original"),
    ),
    "visiondrop-llm-only": Setting(VisionDrop(llm={1: (20, 3)}, positions="original")),
    "visiondrop-encoder-only": Setting(VisionDrop(encoder=(9, 0), merge="mean")),
    "random": Setting(Random(9, seed=3), whole=Random(PATCHES)),
    "random-original": Setting(Random(7, seed=4, positions="original")),
    "uniform": Setting(Uniform(8), whole=Uniform(PATCHES)),
    "uniform-original": Setting(
        Uniform(8, positions="original"), whole=Uniform(PATCHES, positions="original")
    ),
    "composed": Setting(Uniform(20) + VisionDrop(llm={3: (6, 2)})),
    "composed-positions": Setting(
        Uniform(20) + VisionDrop(llm={3: (6, 2)}, positions="original"),
        whole=Uniform(PATCHES) + VisionDrop(llm={3: (PATCHES, 0)}, positions="original"),
    ),
    "yopo": Setting(
        Yopo(window=3, inactive_heads={0: [0], 5: [0]}),
        whole=Yopo(window=None, neurons=1.0, layers=1.0),
    ),
    "yopo-frozen-after-visiondrop": Setting(
        VisionDrop(encoder=(20, 3), llm={3: (9, 2)}) + Yopo(window=5, causal=True, skip="frozen"),
    ),
}
METHODS: dict[str, Reducer] = {name: setting.method for name, setting in SETTINGS.items()}
WHOLE = {name: s.whole for name, s in SETTINGS.items() if s.whole is not None}


def exempt(name: str, identity: str) -> bool:
    """Whether an entry is exempt from an identity."""
    return identity in SETTINGS[name].exempt


def fits(name: str, family: str) -> bool:
    """Whether the method can run on a family of tiny models."""
    return "cls" not in METHODS[name].needs or family.startswith("clip")
