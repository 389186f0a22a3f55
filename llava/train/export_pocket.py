"""Writes a run's weights in Hugging Face layout, with its log and the facts of its making.

``python -m llava.train.export_pocket --run runs/pocket --out checkpoints/pocket-llava``
does so, of runs of ``llava.train.pocket_next``, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from .pocket_loss import Pocket
from .pocket_model import SHAPES, _write_json, export, make_model, make_tokenizer
from .pocket_next_model import NextAnswers, export_next, load_tokenizer, make_next


def _commit() -> str:
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", type=Path, default=Path("runs/pocket"))
    p.add_argument("--out", type=Path, default=Path("checkpoints/pocket-llava"))
    args = p.parse_args()
    state = json.loads((args.run / "state.json").read_text())
    settings = state["settings"]
    trained = load_file(args.run / f"model-{state['tag']}.safetensors")
    about: dict[str, Any]
    if "source" in settings:
        source = Path(settings["source"])
        tokenizer = load_tokenizer(source)
        model: Any = NextAnswers(make_next(source))
        model.load_state_dict(trained)
        export_next(model.llava, tokenizer, args.out)
        about = {"source_sha256": sha256(source / "model.safetensors")}
    else:
        shape = SHAPES[settings["shape"]]
        tokenizer = make_tokenizer()
        model = Pocket(make_model(shape, tokenizer), tokenizer)
        model.load_state_dict(trained)
        export(model.llava, tokenizer, args.out)
        about = {"shape": shape.__dict__}
    shutil.copyfile(args.run / "log.jsonl", args.out / "training_log.jsonl")
    weights = args.out / "model.safetensors"
    _write_json(
        args.out / "TRAINING.json",
        {
            "settings": settings,
            **about,
            "steps": state["total"],
            "pictures": state["pictures"],
            "phases": _phases(args.run / "log.jsonl"),
            "parameters": sum(q.numel() for q in model.llava.parameters()),
            "commit": _commit(),
            "sha256": {"model.safetensors": sha256(weights)},
            "bytes": weights.stat().st_size,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
        },
    )
    print(f"{args.out}: step {state['total']}, {weights.stat().st_size / 1e6:.1f} MB")


def _phases(log: Path) -> dict[str, int]:
    """Steps done in each phase, from the log."""
    out: dict[str, int] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        out[entry["phase"]] = entry["step"]
    return out


if __name__ == "__main__":
    main()
