"""Published numbers beside ours, and whether a difference means anything.

A difference is printed only where checkpoint, split, metric and budget's meaning are the same.  A
score of the bundled model is no reproduction of anybody's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava.eval.loading import ModelChoice, read_config
from llava.eval.published import BENCHMARK_NAMES, Figure, published
from visiondrop.adapters import Geometry
from visiondrop.methods import build_method
from visiondrop.profiling.flops import ModelSize

TRUST = ("high", "medium", "low")
OWN = "visiondrop-note"  # the paper's own tables


@dataclass(frozen=True)
class Meaning:
    """What a published number was measured on.

    Attributes:
        split: beginning of the official name that our column must have; None where the labels are
            not public or the source does not say.
        figure: our headline's or figure's name.
        told: the split and metric in words.
    """

    split: str | None
    figure: str
    told: str


MEANINGS = {
    "GQA": Meaning("testdev_balanced", "accuracy", "testdev_balanced, accuracy"),
    "TextVQA": Meaning("val", "accuracy", "val, accuracy"),
    "MME": Meaning("all tasks", "perception + cognition", "perception + cognition"),
    "MME_perception": Meaning("all tasks", "perception", "perception"),
    "POPE": Meaning("COCO val2014, random with 2,910", "mean F1", "mean F1"),
    "ScienceQA": Meaning("test", "image accuracy", "test, questions with a picture"),
    "SEED": Meaning(None, "accuracy", "which questions is not said"),
    "VQAv2": Meaning(None, "VQA accuracy", "test-dev, scored by the server"),
    "VizWiz": Meaning(None, "VQA accuracy", "test, scored by the server"),
    "MMBench": Meaning(None, "accuracy", "which split is not said"),
    "MMBench_CN": Meaning(None, "accuracy", "which split is not said"),
}
OF_SOURCE = {
    (OWN, "MMBench"): Meaning(None, "accuracy", "TEST_EN_legacy, scored by the server"),
    (OWN, "POPE"): Meaning("COCO val2014, random with 2,910", "accuracy", "accuracy (inferred)"),
}
"""Where a source measures something else."""

LLAVA_15 = Geometry(num_layers=32, num_patches=576, has_cls=True, grid=(24, 24))
SEVEN_B = {"num_layers": 32, "width": 4096, "mlp_width": 11008, "vision_width": 1024}
CHECKPOINTS = {
    "llava-v1.5-7b": {"llava-v1.5-7b", "llava-1.5-7b-hf"},
    "llava-next-7b": {"llava-v1.6-vicuna-7b", "llava-v1.6-vicuna-7b-hf"},
}
"""Model of ``published.csv`` -> names of the checkpoints that it is."""


def meaning_of(figure: Figure) -> Meaning:
    """What a published number is of."""
    unknown = Meaning(None, "", "split and metric unknown")
    return OF_SOURCE.get((figure.source, figure.benchmark), MEANINGS.get(figure.benchmark, unknown))


def find(method: str, benchmark: str, model: str, tokens: int) -> Figure | None:
    """The published number for a cell: the paper's own where it has one, then the most trusted."""
    name = BENCHMARK_NAMES.get(benchmark, benchmark)
    found = [
        figure
        for wanted in dict.fromkeys((name, "MME_perception" if name == "MME" else name))
        for figure in published(method, wanted, model, tokens)
    ]
    return min(found, key=lambda f: (f.source != OWN, TRUST.index(f.trust)), default=None)


def is_published_model(choice: ModelChoice, model: str) -> bool:
    """Whether a checkpoint is the one that the papers' numbers are about, by name and by sizes."""
    if choice.name.split("/")[-1] not in CHECKPOINTS.get(model, ()) or choice.quantisation:
        return False
    size = ModelSize.from_config(read_config(choice))
    return all(getattr(size, name) == value for name, value in SEVEN_B.items())


def why_not_comparable(
    figure: Figure, result: Mapping[str, Any], whole: bool, same_model: bool
) -> str:
    """Why ours minus the published number says nothing; "" where it does."""
    meaning = meaning_of(figure)
    if not same_model:
        return f"another model: {figure.model}"
    if meaning.split is None or not str(result["split"]).startswith(meaning.split):
        return f"another split: {meaning.told}"
    if not whole:
        return f"{result['n']} questions of the split only"
    if ours(figure, result) is None:
        return f"another metric: {meaning.told}"
    theirs = true_mean(figure)
    if result.get("budget") and (theirs is None or abs(result["mean_tokens"] - theirs) > 1):
        known = "unknown" if theirs is None else f"{theirs:.0f}"
        return f"another budget: {result['mean_tokens']:.0f} tokens on average, theirs {known}"
    return ""


def true_mean(figure: Figure) -> float | None:
    """What a paper's count is as a mean over the decoder layers of LLaVA-1.5 7B; None where nobody
    says."""
    try:
        method = build_method(figure.method, figure.tokens, geometry=LLAVA_15, budget="nominal")
    except ValueError:
        return None
    ledger = method.ledger(LLAVA_15.num_layers, LLAVA_15.num_patches, LLAVA_15.has_cls)
    return sum(ledger) / len(ledger)


def ours(figure: Figure, result: Mapping[str, Any]) -> float | None:
    """Our number of what was published, if the result has it."""
    name = meaning_of(figure).figure
    if result.get("metric") == name:
        return result["score"]
    return result["figures"].get(name)
