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


VIDEO_LLAVA = "https://github.com/PKU-YuanGroup/Video-LLaVA/blob/main/TRAIN_AND_VALIDATE.md"
_DRIVE = "https://drive.google.com/file/d"
_BY_HAND = (
    "{title} cannot be fetched by a command: Video-LLaVA gives its files on file hosts that want a "
    "browser ({link}, and others at " + VIDEO_LLAVA + "). Put test_q.json, test_a.json and the "
    "clips' folder ({folder}/) below one folder and give it as DATA. What that archive is called "
    "and how it is laid out was not seen here"
)
BY_HAND: dict[str, str] = {
    name: _BY_HAND.format(title=title, link=f"{_DRIVE}/{drive}/view", folder=folder)
    for name, title, drive, folder in (
        ("tgif", "TGIF-QA", "1so6L9rg_gdC8Segur7rKML-ffd4Ix_I6", "mp4"),
        ("msvd", "MSVD-QA", "1_q4eiSdb7i8P3Hmh4lCfgY1uBGyzU_7X", "videos"),
        ("msrvtt", "MSRVTT-QA", "1yXh9lz7flQ5Ui2IRSd6Qi6RqSEeUJwl3", "videos/all"),
    )
}
"""Name -> where the files are of benchmarks that no command fetches."""


def get_source(name: str, split: str | None = None) -> Source:
    """The entry of that name; EvalError lists the known names, or the known splits, or says where
    files are that have to be fetched by hand."""
    if name in BY_HAND:
        raise EvalError(BY_HAND[name])
    if name not in SOURCES:
        raise EvalError(f"unknown benchmark {name!r}; known are {', '.join(SOURCES)}, or all")
    source = SOURCES[name]
    if split is not None and split not in source.splits:
        raise EvalError(
            f"{name} has no split {split!r} that is known here; it has "
            f"{', '.join(source.splits) or 'one, leave --split out'}"
        )
    return source
