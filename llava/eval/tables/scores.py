"""PyramidDrop's schedule with different scores: who judges is all that is changed.

The rows of ``python -m analysis.scoring_comparison`` (the question of Figure 2 of the VisionDrop
paper).  At a budget every row drops before the same layers down to the same counts.
"""

from __future__ import annotations

from functools import partial

from llava.eval.oracle import OraclePyramid, Regions
from llava.eval.tables.spec import Variant
from visiondrop.adapters import Geometry
from visiondrop.methods.pyramiddrop import PyramidDrop

GROUP = "score"
SCORES: dict[str, str] = {
    "text": "text, last token",
    "all_text": "text, all tokens",
    "visual": "visual",
    "visual_corrected": "visual, corrected",
    "random": "random",
    "uniform": "uniform",
}
"""Score -> what figures call it."""
ORACLE = "oracle"


def with_score(tokens: int, geometry: Geometry, score: str) -> PyramidDrop:
    """PyramidDrop at that mean, judged by ``score``."""
    return PyramidDrop.from_average(
        tokens,
        num_layers=geometry.num_layers,
        num_patches=geometry.num_patches,
        has_cls=geometry.has_cls,
        score=score,
    )


def with_oracle(tokens: int, geometry: Geometry, regions: Regions) -> PyramidDrop:
    """The same stages; the patches that the question asks for stay first."""
    return OraclePyramid.from_average(
        tokens,
        num_layers=geometry.num_layers,
        num_patches=geometry.num_patches,
        has_cls=geometry.has_cls,
        regions=regions,
    )


VARIANTS: dict[str, Variant] = {
    **{
        score: Variant(f"score={score}", title, GROUP, partial(with_score, score=score))
        for score, title in SCORES.items()
    },
    ORACLE: Variant(f"score={ORACLE}", ORACLE, GROUP, with_oracle, asks_regions=True),
}
"""By the name of the score."""
