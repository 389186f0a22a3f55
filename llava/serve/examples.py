"""Example pictures of the page, with a question each: from the sample data of a clone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Example", "bundled_examples"]

DATA = Path(__file__).resolve().parents[2] / "playground" / "data" / "eval"
"""An installed package has no sample data, and the page then no examples."""

CHOSEN = (
    ("textvqa/train_images/8c7bc0ab68e0267c.jpg", "What does the red sign say?"),
    ("textvqa/train_images/5771c078e1780e24.jpg", "What word is on the orange sign?"),
    ("textvqa/train_images/7ce7568e50680e06.jpg", "What is the shape of the pink object?"),
    ("textvqa/train_images/235b85e23bc20d14.jpg", "Is there a red ring?"),
)


@dataclass(frozen=True)
class Example:
    """A picture file and a question about it."""

    file: Path
    question: str


def bundled_examples() -> list[Example]:
    """Those that are there."""
    examples = [Example(DATA / name, question) for name, question in CHOSEN]
    return [example for example in examples if example.file.is_file()]
