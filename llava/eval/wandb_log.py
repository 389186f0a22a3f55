"""Runs in Weights & Biases: configuration, scores, and pictures with the tokens that were kept.

A run's id derives from its settings.  Online, a repeated run resumes the one of that id.  Offline
(``WANDB_MODE=offline``, or no key) one run is written when it is complete.  A note beside the
answers says what was logged, so that nothing is logged twice.
"""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava.eval.answering import LoadedModel, generate
from llava.eval.answers import Row
from llava.eval.errors import EvalError
from llava.eval.files import write_atomically
from llava.eval.preparing import QuestionDataset, drawn_over
from llava.eval.result import read_result
from llava.eval.settings import RunSettings, digest_of_json

NUM_PICTURES = 8


@dataclass
class LoggedRun:
    """What there is to log of a complete run.

    Attributes:
        name: shown for the run.
        note: file that remembers what was logged.
        config: settings; summary: scores and counts.
        group: what it belongs to, as a table; "" for a run of its own.
    """

    name: str
    note: Path
    settings: RunSettings
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Row]
    group: str = ""

    @property
    def run_id(self) -> str:
        """Of the settings; in a group of its name, too, as it may stand in several."""
        if self.group:
            return digest_of_json([self.group, self.name, self.settings.digest])[:20]
        return self.settings.digest[:20]


def check_wandb() -> None:
    """Raise EvalError, before anything is computed, where the package is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise EvalError("--wandb needs the package wandb: pip install 'visiondrop[wandb]'")


def choose_mode() -> str:
    """WANDB_MODE, or online where there is a key, else offline."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    try:
        known = netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    return "online" if known or os.environ.get("WANDB_API_KEY") else "offline"


def log_run(run: LoggedRun, loaded: LoadedModel, method: Any, dataset: QuestionDataset) -> str:
    """Log a complete run unless the same was logged before; returns a line that says which."""
    import wandb

    note = {"id": run.run_id, "summary": dict(run.summary)}
    if read_result(run.note) == note:
        return f"{run.name}: was logged to W&B before, as {run.run_id}"
    mode = choose_mode()
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", "visiondrop"),
        id=run.run_id,
        name=run.name,
        group=run.group or None,
        config=dict(run.config),
        mode=mode,  # type: ignore[arg-type]
        resume="allow" if mode == "online" else None,
        dir=run.note.parent,
        settings=wandb.Settings(silent=True),
    ) as logged:
        logged.summary.update(dict(run.summary))
        table = wandb.Table(columns=["image", "question", "answer", "mean_tokens", "kept"])
        pictures = []
        # The drawings stay beside the answers: an offline run is uploaded later, from there.
        for cells, drawing in drawn(run, loaded, method, dataset, run.note.parent / "kept"):
            table.add_data(*cells, wandb.Image(str(drawing)))
            pictures.append(wandb.Image(str(drawing), caption=f"{cells[1]} {cells[2]}"))
        logged.log({"pictures": table, "kept": pictures})
    write_atomically(run.note, json.dumps(note))
    return f"{run.name}: logged to W&B as {run.run_id} ({mode})"


def drawn(
    run: LoggedRun, loaded: LoadedModel, method: Any, dataset: QuestionDataset, folder: Path
) -> Any:
    """Yields (image, question, answer, mean tokens) and a drawing of the first few pictures."""
    folder.mkdir(exist_ok=True)
    first: dict[str, int] = {}
    for index, sample in enumerate(dataset.samples):
        if sample.image is not None and "error" not in run.rows[index]["metadata"]:
            first.setdefault(sample.image, index)
    with torch.inference_mode(), method(loaded.model) as trace:
        for name, index in list(first.items())[:NUM_PICTURES]:
            prepared, sample = dataset[index], dataset.samples[index]
            trace.clear()
            generate(loaded, [prepared], [sample], run.settings, trace)
            file = folder / f"{index}.png"
            trace.draw(drawn_over(prepared, dataset, loaded.image_processor), file, sample=0)
            answer = run.rows[index]["text"]
            yield (name, sample.prompt, answer, trace.samples[0].mean_tokens), file
