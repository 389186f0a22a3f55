"""Milliseconds for the efficiency table, from files of ``python -m visiondrop.profile``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.eval.errors import EvalError
from llava.eval.tables.presets import PRESETS

__all__ = ["Measured", "read_measured"]


@dataclass
class Measured:
    """Times to the first token of some rows of the table.

    Attributes:
        cells: text by (model, method, tokens); tokens None for methods without a budget.
        machines: of each file, one sentence.
    """

    cells: dict[tuple[str, str, float | None], str] = field(default_factory=dict)
    machines: list[str] = field(default_factory=list)


def read_measured(paths: Sequence[str]) -> Measured:
    """The rows of profiles that hold times.

    Raises `EvalError` on a file that is no profile, or is of another prompt than the table's.
    """
    out = Measured()
    for path in paths:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            settings, rows = content["settings"], content["rows"]
            model = settings["model"]
            text = _sentence(content)
            _check(path, settings)
            for row in rows:
                if row["ttft_ms"]:
                    low, median, high = (row["ttft_ms"][k] for k in ("low", "median", "high"))
                    cell = f"{median:.1f} ({low:.1f} to {high:.1f})"
                    out.cells[model, row["method"], row["tokens"]] = cell
        except OSError as error:
            raise EvalError(f"--measured {path}: {error.strerror}; make it with {_HOW}") from None
        except (ValueError, KeyError, TypeError):
            raise EvalError(f"--measured {path}: no profile; make it with {_HOW}") from None
        out.machines.append(text)
    return out


_HOW = "python -m visiondrop.profile --json"


def _check(path: str, settings: dict[str, Any]) -> None:
    known = {preset.name: preset for preset in PRESETS}
    if settings["model"] not in known:
        raise EvalError(
            f"--measured {path}: it is of {settings['model']}; the table has {', '.join(known)}"
        )
    preset = known[settings["model"]]
    if not settings["timed"]:
        raise EvalError(f"--measured {path}: it holds no times; leave --flops out of its command")
    wanted = {
        "layers": preset.size.num_layers,
        "visual_tokens": preset.patches,
        "text_tokens": preset.text,
        "batch": 1,
        "device": "cuda",
    }
    for name, value in wanted.items():
        if settings[name] != value:
            raise EvalError(
                f"--measured {path}: {name} {settings[name]} there, {value} in the table; profile "
                "it with that"
            )


def _sentence(content: dict[str, Any]) -> str:
    settings, machine, versions = content["settings"], content["machine"], content["versions"]
    return (
        f"{settings['model']}: {machine['device']}, {settings['dtype']}, {settings['attention']}, "
        f"weights: {settings['weights']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, {settings['repeats']} turns"
    )
