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
from visiondrop.methods.dart import DART
from visiondrop.methods.divprune import DivPrune
from visiondrop.methods.dtd import DTD
from visiondrop.methods.fastervlm import FasterVLM
from visiondrop.methods.fastv import FastV
from visiondrop.methods.framewise import FrameWise
from visiondrop.methods.hired import HiRED
from visiondrop.methods.holov import HoloV
from visiondrop.methods.pool import Pool
from visiondrop.methods.prumerge import PruMerge
from visiondrop.methods.prumerge_plus import PruMergePlus
from visiondrop.methods.pyramiddrop import PyramidDrop
from visiondrop.methods.region import Region
from visiondrop.methods.scope import Scope
from visiondrop.methods.sparsevlm import SparseVLM
from visiondrop.methods.sparsevlm_plus import SparseVLMPlus
from visiondrop.methods.tome import ToMe
from visiondrop.methods.trim import Trim
from visiondrop.methods.vflowopt import VFlowOpt
from visiondrop.methods.visiondrop_div import VisionDropDiv
from visiondrop.methods.visionzip import VisionZip
from visiondrop.methods.vispruner import VisPruner
from visiondrop.methods.vista import Vista
from visiondrop.methods.vmtc_cmai import VmtcCmai
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


# Their identities are in test_frames.py.
FRAMES = {"single": "it compares the pictures of a prompt with one another"}
TEXT = {"chat": "the question takes part in the choice, and a later turn is another question"}
STEERED = {"chat": "the vectors are those of the first turn's prompt"}

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
    "visiondrop_div": Setting(
        VisionDropDiv(encoder=(14, 4), llm={2: (10, 3), 4: (7, 2), 6: (4, 1)}),
        whole=VisionDropDiv(llm={2: (PATCHES, 0)}),
    ),
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
    "visionzip": Setting(VisionZip(9, 3)),
    "visionzip-mean": Setting(VisionZip(7, 5, merge="mean", positions="original")),
    "visionzip-no-merge": Setting(VisionZip(9, 0) + VisionDrop(llm={3: (4, 2)})),
    "fastervlm": Setting(FasterVLM(9), whole=FasterVLM(PATCHES)),
    "fastervlm-original": Setting(
        FasterVLM(13, positions="original"), whole=FasterVLM(PATCHES, positions="original")
    ),
    "hired": Setting(HiRED(8), whole=HiRED(PATCHES)),
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
    "fastv": Setting(FastV(2, tokens=9), whole=FastV(2, tokens=PATCHES), exempt=TEXT),
    "fastv-renumbered": Setting(FastV(1, ratio=0.75, positions="renumbered"), exempt=TEXT),
    "pyramiddrop": Setting(
        PyramidDrop((2, 4, 6), (0.5, 0.25, 0.125)),
        whole=PyramidDrop((2, 5), (1.0, 1.0)),
        exempt=TEXT,
    ),
    "pyramiddrop-original": Setting(
        PyramidDrop((1, 2), (0.7, 0.2), positions="original"), exempt=TEXT
    ),
    "pyramiddrop-all-text": Setting(
        PyramidDrop((1, 4), (0.6, 0.2), score="all_text"),
        whole=PyramidDrop((2,), (1.0,), score="all_text"),
        exempt=TEXT,
    ),
    "pyramiddrop-visual": Setting(
        PyramidDrop((2, 4, 6), (0.5, 0.25, 0.125), score="visual"),
        whole=PyramidDrop((2, 5), (1.0, 1.0), score="visual"),
    ),
    "pyramiddrop-corrected": Setting(
        PyramidDrop((1, 3), (0.7, 0.2), positions="original", score="visual_corrected")
    ),
    "pyramiddrop-random": Setting(PyramidDrop((2, 4), (0.5, 0.2), score="random", seed=3)),
    "pyramiddrop-uniform": Setting(
        PyramidDrop((1, 4), (0.5, 0.2), positions="original", score="uniform")
    ),
    "composed-visual": Setting(Uniform(24) + PyramidDrop((2, 4), (0.5, 0.25), score="visual")),
    "sparsevlm": Setting(SparseVLM((1, 2, 4), (20, 12, 5)), exempt=TEXT),
    "sparsevlm-options": Setting(
        SparseVLM((0, 5), (9, 4), noise="random", positions="original"), exempt=TEXT
    ),
    "sparsevlm-adaptive": Setting(
        SparseVLM((1, 4), (20, 12), adaptive=0.4),
        exempt=TEXT | {"ledger": "counts depend on the rank of the attention"},
    ),
    "sparsevlm+": Setting(SparseVLMPlus((1, 2, 4), (20, 12, 5)), exempt=TEXT),
    "sparsevlm+-options": Setting(
        SparseVLMPlus((2,), (PATCHES,), heads=1, positions="renumbered"), exempt=TEXT
    ),
    "dart": Setting(DART(2, tokens=12), whole=DART(2, tokens=PATCHES), exempt=TEXT),
    "dart-options": Setting(
        DART(3, tokens=7, visual_pivots=2, text_pivots=3, order="norm", positions="renumbered"),
        exempt=TEXT,
    ),
    "composed-ratios": Setting(Uniform(24) + PyramidDrop((2, 4), (0.5, 0.25)), exempt=TEXT),
    "composed-text": Setting(Uniform(20, positions="original") + DART(3, tokens=9), exempt=TEXT),
    "yopo-after-vmtc_cmai": Setting(VmtcCmai(15) + Yopo(window=3), exempt=TEXT),
    "vmtc_cmai": Setting(VmtcCmai(12), exempt=TEXT),
    "vmtc_cmai-twice": Setting(
        VmtcCmai(15, clusters=6, inhibit=0.4, focus_layers=(0, 5), positions="original"),
        whole=VmtcCmai(PATCHES, clusters=0, inhibit=0.0),
        exempt=TEXT,
    ),
    "vflowopt": Setting(
        VFlowOpt((0.5, 0.6, 0.5), (2, 5), t=1.2, alpha=0.5, grid=3.0),
        whole=VFlowOpt((1.0, 1.0, 1.0), (2, 5), grid=3.0),
    ),
    "vflowopt-recycle-all": Setting(
        VFlowOpt((0.6, 0.5, 0.4), (1, 3), alpha=-0.3, grid=3.5, recycle="all"),
        whole=VFlowOpt((1.0, 1.0), (4,), recycle="all"),
    ),
    "pool": Setting(Pool(5, layer=2), whole=Pool(1, layer=2)),
    "pool-grid": Setting(Pool(1.6, layer=0, dims="2d"), whole=Pool(1, layer=1, dims="2d")),
    "dtd": Setting(
        DTD(threshold=0.1),
        exempt={**FRAMES, "ledger": "as many as changed; the plan is the most there can be"},
    ),
    "framewise": Setting(FrameWise(9), exempt=FRAMES),
    "region": Setting(
        Region([(0.2, 0.3, 0.7, 0.9)]),
        whole=Region([]),
        exempt={"ledger": "as many as the boxes leave; the plan is the most there can be"},
    ),
    "region-mask": Setting(Region([(0.2, 0.3, 0.7, 0.9)], "mask", fill="mean", radius=1)),
    "vista": Setting(Vista(strength=0.2), whole=Vista(strength=0.0, gamma=0.0), exempt=STEERED),
    "vista-paper": Setting(
        Vista(strength=0.2, inject="residual", adaptive=False, scope="decode", early_norm=True),
        whole=Vista(strength=1e-7, gamma=1e-7),
        exempt=STEERED,
    ),
    "vista-after-both": Setting(
        Uniform(20, positions="original")
        + VisionDrop(llm={3: (6, 2)}, positions="original")
        + Vista(strength=0.2),
        exempt=STEERED,
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
