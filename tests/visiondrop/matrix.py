"""The test matrix: one entry per method, with an ordinary and a hard setting.

The tiny models have 36 patches and 8 decoder layers. `test_identities.py` runs every identity over
every entry, family and attention implementation, except what an entry is exempt from, with reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.visiondrop.models import PATCHES
from tests.visiondrop.tiny_clip import tiny_clip
from visiondrop import Full, Random, Uniform, VisionDrop
from visiondrop.methods.cdpruner import CDPruner
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.holov import HoloV
from visiondrop.methods.prumerge import PruMerge
from visiondrop.methods.prumerge_plus import PruMergePlus
from visiondrop.methods.scope import Scope
from visiondrop.methods.tome import ToMe
from visiondrop.methods.trim import Trim
from visiondrop.methods.vispruner import VisPruner
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
    "random-inside": Setting(Random(7, layer=3), whole=Random(PATCHES, layer=3)),
    "uniform-inside": Setting(Uniform(7, layer=2, positions="original")),
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
    "vispruner": Setting(VisPruner(9), whole=VisPruner(PATCHES)),
    "vispruner-original": Setting(
        VisPruner(12, important_ratio=0.75, step=3, positions="original"),
        whole=VisPruner(PATCHES, important_ratio=0.3, positions="original"),
    ),
    "prumerge": Setting(PruMerge(tokens=9, neighbours=5)),
    "prumerge-adaptive": Setting(
        PruMerge(candidates="pruned"), exempt={"ledger": "each picture has its own outliers"}
    ),
    "prumerge+": Setting(PruMergePlus(tokens=12, positions="original")),
    "prumerge+-adaptive": Setting(
        PruMergePlus(ratio=0.12, neighbours=7),
        exempt={"ledger": "how many samples are outliers too depends on the picture"},
    ),
    "prumerge+-trained": Setting(PruMergePlus(adaptive=False) + VisionDrop(llm={3: (4, 2)})),
    "tome": Setting(ToMe(12), whole=ToMe(PATCHES)),
    "tome-in-place": Setting(ToMe(9, placement="in_place", positions="original")),
    "tome-appended-original": Setting(
        ToMe(21, positions="original") + VisionDrop(llm={3: (6, 2)}, positions="original")
    ),
    "divprune": Setting(DivPrune(9), whole=DivPrune(PATCHES)),
    "cdpruner": Setting(
        CDPruner(9, clip=tiny_clip()), whole=CDPruner(PATCHES, clip=tiny_clip()), exempt=TEXT
    ),
    "cdpruner-theta": Setting(
        CDPruner(7, clip=tiny_clip(), theta=0.7, relevant="high", positions="original"),
        exempt=TEXT,
    ),
    "trim": Setting(Trim(9, clip=tiny_clip()), exempt=TEXT),
    "trim-adaptive": Setting(
        Trim(clip=tiny_clip(), positions="original"),
        exempt={**TEXT, "ledger": "as many as stand out; the plan is the most there can be"},
    ),
    "scope": Setting(Scope(9), whole=Scope(PATCHES)),
    "holov": Setting(HoloV(9), whole=HoloV(PATCHES)),
    "holov-windows": Setting(
        HoloV(11, crops=4, shape="windows", rank="score", positions="original"),
        whole=HoloV(PATCHES, crops=6, shape="windows", order="raster"),
    ),
}
METHODS: dict[str, Reducer] = {name: setting.method for name, setting in SETTINGS.items()}
WHOLE = {name: s.whole for name, s in SETTINGS.items() if s.whole is not None}


def exempt(name: str, identity: str) -> bool:
    """Whether an entry is exempt from an identity."""
    return identity in SETTINGS[name].exempt


def fits(name: str, family: str) -> bool:
    """Whether the method can run on a family of tiny models."""
    needs = {"cls", "text encoder"} & set(METHODS[name].needs)
    return not needs or family.startswith("clip")
