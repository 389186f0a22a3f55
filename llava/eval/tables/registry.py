"""The tables by name.  A new one is an entry here and a script; a new method or benchmark that is
registered appears by itself or by its name in ``benchmarks``."""

from __future__ import annotations

from llava.eval.benchmarks.video import POCKET_VIDEO
from llava.eval.errors import EvalError
from llava.eval.run_benchmark import POCKET, POCKET_NEXT
from llava.eval.tables.ablation import VARIANTS
from llava.eval.tables.spec import BLANK, CONTROLS, FULL, Spec

PAPER = ("gqa", "mmbench", "mmbench_cn", "mme", "pope", "sqa", "vqav2", "textvqa", "vizwiz")
RIVALS = ("fastv", "sparsevlm", "pyramiddrop", "visionzip")
FIRST = (FULL, BLANK, "visiondrop", "random", "uniform", *RIVALS)
OF_FRAMES = ("dtd", "framewise")
SIX = (FULL, "visiondrop", "random", "uniform", "visionzip", "fastv")

SPECS = {
    spec.name: spec
    for spec in (
        Spec(
            "table1_llava15",
            "LLaVA-1.5: nine benchmarks, all methods",
            "llava-v1.5-7b",
            PAPER,
            (192, 128, 64, 32),
            FIRST,
            quick=SIX,
            quick_tokens=(192, 64),
            model=POCKET,
        ),
        Spec(
            "table2_llava_next",
            "LLaVA-NeXT: pictures of any resolution",
            "llava-next-7b",
            PAPER,
            (640, 320, 160),
            FIRST,
            quick=SIX,
            quick_tokens=(640, 320),
            model=POCKET_NEXT,
            data="playground/data/eval_anyres",
            bundled=("gqa", "pope", "vqav2", "textvqa"),
            # Of each picture's own tokens the share that the budget is of 2880, as papers count.
            method_args=("tiles.budget=ratio",),
            model_types=("llava_next",),
        ),
        Spec(
            "table4_ablation",
            "VisionDrop, one thing changed at a time",
            "llava-v1.5-7b",
            ("gqa", "mmbench", "pope", "textvqa"),
            (192, 64),
            (FULL, BLANK, "visiondrop", "random"),
            rest=False,
            variants=VARIANTS,
            quick=(FULL, "visiondrop", "random"),
            quick_tokens=(64,),
            model=POCKET,
        ),
        Spec(
            "table5_video",
            "Video-LLaVA: questions about clips; exact match, not the papers' GPT-judged accuracy",
            "video-llava-7b",
            ("tgif", "msvd", "msrvtt"),
            (194, 136),
            (FULL, BLANK, "visiondrop", *CONTROLS, *OF_FRAMES, *RIVALS),
            rest=False,
            quick=(FULL, "visiondrop", *CONTROLS, *OF_FRAMES),
            quick_tokens=(194, 136),
            model=POCKET_VIDEO,
            model_types=("video_llava",),
        ),
    )
}
EFFICIENCY = "table3_efficiency"
"""The table that needs no answers; see `llava.eval.tables.efficiency`."""


def get_spec(name: str) -> Spec:
    """The table of that name; EvalError lists the known ones."""
    if name not in SPECS:
        raise EvalError(
            f"unknown table {name!r}; known are {', '.join(sorted([*SPECS, EFFICIENCY]))}"
        )
    return SPECS[name]
