"""Trains the any-resolution pocket model on from the pocket model:
``python -m llava.train.pocket_next --run runs/pocket-next --minutes 30``.

One resumable command, as ``llava.train.pocket``. The vision tower stays bit for bit what it is;
projector, ``image_newline`` and decoder are trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .pocket import Run, add_flags, train
from .pocket_data import Phase
from .pocket_next_data import PocketNextData
from .pocket_next_model import NextAnswers, export_next, load_tokenizer, make_next
from .pocket_phases import FULL, MIXTURE
from .pocket_pool import Local

SOURCE = Path("checkpoints/pocket-llava")
# All forms, TextVQA's most often: the others' words are known, only the pictures are new.
FORMS = (("textvqa", 6.0), *MIXTURE[1:])

CURRICULA: dict[str, tuple[Phase, ...]] = {
    "pocket": (
        Phase(
            "tiles-12", 12, 90, 3, 3, 320,
            look=0.3, quota=FULL, reference=0.6, frozen=True, few=0.3, forms=FORMS, spoilt=0.02,
        ),
        Phase(
            "tiles-24", 24, 120, 3, 3, 448,
            look=0.3, signs=(2, 5), quota=FULL, reference=0.6, frozen=True, forms=FORMS,
            spoilt=0.02, decay=True,
        ),
    ),
    "tiny": (
        Phase("tiles-12", 12, 2, 2, 2, 160, look=0.3, frozen=True, forms=FORMS, spoilt=0.2),
        Phase("tiles-12-end", 12, 1, 2, 2, 160, look=0.3, frozen=True, forms=FORMS, decay=True),
    ),
}  # fmt: skip


class NextRun(Run):
    """A training run on disk that begins with a bundled model's weights."""

    warm = 20

    def make(self) -> None:
        self.tokenizer = load_tokenizer(self.settings["source"])
        self.model = NextAnswers(make_next(self.settings["source"]))
        self.phases = CURRICULA[self.settings["config"]]

    def source(self, args: argparse.Namespace) -> Local:
        return Local(self.model, self.tokenizer, not args.fp32, args.loaders, PocketNextData)

    def enter(self, phase: Phase) -> None:
        pass


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", type=Path, default=Path("runs/pocket-next"))
    p.add_argument("--source", type=Path, default=SOURCE, help="a pocket model, where it begins")
    p.add_argument("--config", default="pocket", choices=sorted(CURRICULA))
    add_flags(p, 5e-4)
    p.add_argument("--export", type=Path, help="write the Hugging Face layout here at the end")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = {"config": args.config, "source": str(args.source), "seed": args.seed}
    run = NextRun(args.run, settings | {"lr": args.lr, "opt": "adamw"})
    done = train(run, args)
    if args.export:
        export_next(run.model.llava.cpu(), run.tokenizer, args.export)
    print("curriculum done" if done else "stopped; the same command goes on")


if __name__ == "__main__":
    main()
