"""What benchmarks share: questions as the model takes them, and a table that is printed and written
with the figures and the command behind it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llava.eval.answering import LoadedModel
from llava.eval.files import write_atomically
from llava.eval.preparing import Prepared, QuestionDataset
from llava.eval.samples import Sample
from llava.eval.settings import RunSettings
from llava.eval.table import markdown

__all__ = ["prepare", "report"]


def prepare(
    loaded: LoadedModel, pictures: Any, samples: list[Sample], settings: RunSettings
) -> list[Prepared]:
    """All questions ready, so that preparing pictures is in no time."""
    aspect = getattr(loaded.model.config, "image_aspect_ratio", None) or "pad"
    dataset = QuestionDataset(
        samples, pictures, loaded.tokenizer, loaded.image_processor, loaded.model.config,
        settings.conv_mode, aspect,
    )  # fmt: skip
    return [dataset[i] for i in range(len(samples))]


def report(
    module: str,
    argv: Sequence[str] | None,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    content: dict[str, Any],
    json_file: Path,
    markdown_file: Path | None,
) -> None:
    """Print a table, write its figures, and where asked for the table with its command.

    Args:
        module: as in `python -m MODULE`; argv: what it was given, None for the command line.
    """
    table = Table(*head, caption=caption)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    write_atomically(json_file, json.dumps(content, indent=1) + "\n")
    if markdown_file:
        given = " ".join([f"python -m {module}", *(argv or sys.argv[1:])])
        text = f"{markdown(head, rows)}\n{caption} Made by `{given}`.\n"
        write_atomically(markdown_file, text)
