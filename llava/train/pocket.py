"""Trains the pocket model: ``python -m llava.train.pocket --run runs/pocket --minutes 30``.

One resumable command: each call goes on where the last one stopped and is bounded by
``--minutes``. It uses a GPU when there is one. A plain loop and not the Hugging Face Trainer: the
curriculum changes picture size, loss and packing between phases, and the Trainer's own loop costs
a tenth of the speed at these step times. LLaVA's recipe on the Trainer is ``llava.train.train``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .pocket_data import Phase
from .pocket_loss import Pocket
from .pocket_model import SHAPES, export, grow, make_model, make_tokenizer
from .pocket_phases import CURRICULA
from .pocket_pool import Local, Pool, Stats, add
from .pocket_words import introduce


def make_optimizer(model: torch.nn.Module, lr: float, kind: str) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the layers' matrices and AdamW for the rest."""
    inner, outer, plain = [], [], []
    for name, p in model.named_parameters():
        if p.ndim < 2:
            plain.append(p)
        elif kind == "muon" and p.ndim == 2 and (".layers." in name or "projector" in name):
            inner.append(p)
        else:
            outer.append(p)
    groups = [{"params": outer, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    out: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    ]
    if inner:
        out.append(
            torch.optim.Muon(inner, lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        )
    return out


class Run:
    """A training run on disk: weights, optimizer, place in the curriculum, log."""

    warm = 200  # steps over which the rate rises at the beginning

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings["seed"])
        self.phase, self.step, self.total, self.pictures = 0, 0, 0, 0
        self.make()

    def make(self) -> None:
        """The tokenizer, the model before any training, and the curriculum."""
        self.tokenizer = make_tokenizer()
        llava = make_model(SHAPES[self.settings["shape"]], self.tokenizer)
        self.model: Any = Pocket(llava, self.tokenizer)
        self.phases: tuple[Phase, ...] = CURRICULA[self.settings["config"]]

    def source(self, args: argparse.Namespace) -> Local | Pool:
        """Where gradients come from."""
        settings, half = self.settings, not args.fp32
        if args.device == "cpu" and args.helpers:
            parts = max(p.micro for p in self.phases)
            return Pool(self.model, settings["shape"], settings["seed"], half, args.helpers, parts)
        return Local(self.model, self.tokenizer, half, args.loaders)

    def enter(self, phase: Phase) -> None:
        """Changes the model as a phase begins."""
        llava, before = self.model.llava, self.phases[self.phase - 1] if self.phase else None
        if before and before.stride > phase.stride:
            grow(llava)
        if phase.forms and not (before and before.forms):
            introduce(llava, self.tokenizer)
        if phase.scale != 1:
            with torch.no_grad():
                for p in llava.model.multi_modal_projector.linear_2.parameters():
                    p.mul_(phase.scale)

    def start(self, device: torch.device) -> None:
        self.model.to(device)
        self.optimizers = make_optimizer(self.model, self.settings["lr"], self.settings["opt"])
        state = self.folder / "state.json"
        if not state.exists():
            return
        s = json.loads(state.read_text())
        if s["settings"] != self.settings:
            raise ValueError(
                f"{self.folder} holds a run with {s['settings']}, asked for {self.settings}: "
                "give the same settings, or another --run folder"
            )
        tag = s["tag"]
        self.model.load_state_dict(load_file(self.folder / f"model-{tag}.safetensors"))
        for i, opt in enumerate(self.optimizers):
            path = self.folder / f"optimizer-{tag}-{i}.pt"
            opt.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        self.phase, self.step = s["phase"], s["step"]
        self.total, self.pictures = s["total"], s["pictures"]
        log = self.folder / "log.jsonl"  # lines written after the checkpoint are done again
        lines = log.read_text() if log.exists() else ""
        keep = [x for x in lines.splitlines() if json.loads(x)["total"] <= self.total]
        log.write_text("".join(x + "\n" for x in keep))

    def save(self) -> None:
        tag = f"{self.total:07d}"
        old = [p for p in self.folder.iterdir() if p.name.startswith(("model-", "optimizer-"))]
        save_file(self.model.state_dict(), self.folder / f"model-{tag}.safetensors")
        for i, opt in enumerate(self.optimizers):
            torch.save(opt.state_dict(), self.folder / f"optimizer-{tag}-{i}.pt")
        state = {
            "settings": self.settings, "tag": tag, "phase": self.phase, "step": self.step,
            "total": self.total, "pictures": self.pictures,
        }  # fmt: skip
        tmp = self.folder / "state.json.tmp"
        tmp.write_text(json.dumps(state))
        os.replace(tmp, self.folder / "state.json")
        for p in old:
            if tag not in p.name:
                p.unlink()

    def log(self, entry: dict[str, object]) -> None:
        line = json.dumps(entry)
        print(line, flush=True)
        with open(self.folder / "log.jsonl", "a") as f:
            f.write(line + "\n")


def rate(phase: Phase, step: int, total: int, rise: int = Run.warm) -> float:
    """Factor of the base learning rate at ``step`` of a phase; ``total`` steps lie behind all."""
    warm = min(1.0, (total + 1) / rise, (step + 1) / min(50, rise))
    left = 1 - step / phase.steps
    return phase.lr * warm * (max(left, 0.03) if phase.decay else 1.0)


def summary(sums: dict[str, float], seen: int) -> dict[str, object]:
    """Means over the steps seen; of the answers, the share of right tokens for each type."""
    out: dict[str, object] = {k: round(x / seen, 5) for k, x in sums.items() if "/" not in k}
    kinds = [k.split("/")[1] for k in sums if k.startswith("n/") and sums[k]]
    if kinds:
        out["right"] = {k: round(sums["right/" + k] / sums["n/" + k], 4) for k in kinds}
    return out


def train(run: Run, args: argparse.Namespace) -> bool:
    """Goes on until the curriculum, the minutes or the steps end. True when all is done."""
    device = torch.device(args.device)
    run.start(device)
    phases, seed, source = run.phases, run.settings["seed"], run.source(args)
    begin, saved, ran = time.time(), time.time(), 0
    run.model.train()
    while run.phase < len(phases):
        phase = phases[run.phase]
        if run.step == 0:
            run.enter(phase)
        sums: Stats = {}
        seen, clock = 0, time.time()
        for stats in source.steps(phase, run.phase, seed, run.step):
            factor = rate(phase, run.step, run.total, run.warm)
            for opt in run.optimizers:
                for group in opt.param_groups:
                    group["lr"] = run.settings["lr"] * factor
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            for opt in run.optimizers:
                opt.step()
                opt.zero_grad(set_to_none=True)
            run.step, run.total, ran = run.step + 1, run.total + 1, ran + 1
            run.pictures += phase.batch
            seen += 1
            sums = add(sums, stats)
            if run.total % args.log_every == 0:
                speed = seen * phase.batch / (time.time() - clock)
                run.log(
                    {"total": run.total, "phase": phase.name, "step": run.step}
                    | {"pictures": run.pictures, "lr": round(run.settings["lr"] * factor, 7)}
                    | summary(sums, seen)
                    | {"pictures_per_second": round(speed, 2)}
                )
                sums, seen, clock = {}, 0, time.time()
            if time.time() - saved > 60 * args.save_minutes:
                run.save()
                saved = time.time()
            if time.time() - begin > 60 * args.minutes or (args.steps and ran >= args.steps):
                run.save()
                source.close()
                return False
        run.phase, run.step = run.phase + 1, 0
        run.save()
    source.close()
    return True


def add_flags(p: argparse.ArgumentParser, lr: float) -> None:
    """The flags that every training command of pocket models has."""
    p.add_argument("--minutes", type=float, default=1e9, help="stop, resumable, after this long")
    p.add_argument("--steps", type=int, default=0, help="stop after so many steps of this call")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--lr", type=float, default=lr)
    p.add_argument("--fp32", action="store_true", help="no bf16 autocast")
    p.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    p.add_argument("--loaders", type=int, default=0, help="processes that make pictures, on a GPU")
    p.add_argument("--save-minutes", type=float, default=3.0)
    p.add_argument("--log-every", type=int, default=20)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", type=Path, default=Path("runs/pocket"))
    p.add_argument("--config", default="pocket", choices=sorted(CURRICULA))
    p.add_argument("--shape", default="pocket", choices=sorted(SHAPES))
    add_flags(p, 1.5e-3)
    p.add_argument("--opt", default="adamw", choices=("adamw", "muon"))
    p.add_argument("--helpers", type=int, default=0, help="processes that share the work, on a CPU")
    p.add_argument("--export", type=Path, help="write the Hugging Face layout here at the end")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = ("config", "shape", "seed", "lr", "opt")
    run = Run(args.run, {name: getattr(args, name) for name in names})
    done = train(run, args)
    if args.export:
        export(run.model.llava.cpu(), run.tokenizer, args.export)
    print("curriculum done" if done else "stopped; the same command goes on")


if __name__ == "__main__":
    main()
