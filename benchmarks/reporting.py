"""What benchmarks of an evaluation share: flags, a model, questions as it takes them, and a table
that is printed and written with the figures and the command behind it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from llava.eval.answering import LoadedModel
from llava.eval.errors import EvalError
from llava.eval.files import write_atomically
from llava.eval.loading import ModelChoice, load_model
from llava.eval.preparing import Prepared, QuestionDataset
from llava.eval.run_benchmark import POCKET
from llava.eval.samples import Sample
from llava.eval.settings import RunSettings
from llava.eval.table import markdown

__all__ = ["add_measuring_flags", "open_model", "prepare", "report"]


def add_measuring_flags(parser: argparse.ArgumentParser, json_file: str, repeats: int = 3) -> None:
    """The model, how it answers, how it is timed, and where the figures go."""
    parser.add_argument("--model-path", default=POCKET)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks") / json_file)
    parser.add_argument("--markdown", type=Path, help="write the table here, too")


def open_model(args: argparse.Namespace) -> LoadedModel:
    """The model of these flags. Raises `EvalError` on a clock that cannot time it."""
    torch.set_num_threads(args.threads)
    loaded = load_model(ModelChoice(args.model_path, dtype=args.dtype, device=args.device))
    if args.clock == "processor" and loaded.model.device.type != "cpu":
        raise EvalError("--clock processor cannot time a GPU: use --clock wall")
    return loaded


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
