"""The benchmarks' official files by name."""

from __future__ import annotations

from llava.data.entries.choice import MMBENCH, MMBENCH_CN, MME, MMVET, SEED, SQA
from llava.data.entries.vqa import GQA, POPE, TEXTVQA, VIZWIZ, VQAV2
from llava.data.sources import Source
from llava.eval.errors import EvalError

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        *(TEXTVQA, VQAV2, VIZWIZ, GQA, POPE),
        *(MME, MMBENCH, MMBENCH_CN, SQA, SEED, MMVET),
    )
}


def get_source(name: str, split: str | None = None) -> Source:
    """The entry of that name; EvalError lists the known names, or the known splits."""
    if name not in SOURCES:
        raise EvalError(f"unknown benchmark {name!r}; known are {', '.join(SOURCES)}, or all")
    source = SOURCES[name]
    if split is not None and split not in source.splits:
        raise EvalError(
            f"{name} has no split {split!r} that is known here; it has "
            f"{', '.join(source.splits) or 'one, leave --split out'}"
        )
    return source
