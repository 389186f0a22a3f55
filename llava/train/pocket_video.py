"""Trains the pocket video model: ``python -m llava.train.pocket_video --run runs/pocket-video``.

It begins with the bundled pocket model. One resumable command: each call goes on where the last one
stopped and is bounded by ``--minutes``. The vision tower is frozen; projector and decoder learn.
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
from transformers import LlavaForConditionalGeneration

from .export_pocket import _commit, _phases, sha256
from .pocket import make_optimizer, summary
from .pocket_model import _write_json
from .pocket_pool import Stats, add
from .pocket_video_data import ClipData, VideoPhase
from .pocket_video_loss import PocketVideo
from .pocket_video_model import export_video, from_pocket, make_video_tokenizer, tower_digest

START = Path("checkpoints/pocket-llava")
CURRICULA: dict[str, tuple[VideoPhase, ...]] = {
    "pocket": (
        VideoPhase("clips-8-4", 8, 4, 84, 4, 1, 256),
        VideoPhase("clips-8-8", 8, 8, 270, 4, 2, 288, lr=0.8, dense=0.0),
        VideoPhase("clips-12-8", 12, 8, 40, 4, 4, 384, lr=0.7, dense=0.0),
        VideoPhase("clips-16-8", 16, 8, 60, 4, 4, 448, lr=0.6, decay=True, dense=0.0),
    ),
    "tiny": (
        VideoPhase("clips-8-4", 8, 4, 4, 2, 1, 128),
        VideoPhase("clips-8-8", 8, 8, 3, 2, 2, 128, decay=True),
    ),
}


def rate(phase: VideoPhase, step: int, total: int) -> float:
    """Factor of the base learning rate at ``step`` of a phase; ``total`` steps lie behind all."""
    warm = min(1.0, (total + 1) / 40, (step + 1) / 10)
    left = 1 - step / phase.steps
    return phase.lr * warm * (max(left, 0.03) if phase.decay else 1.0)


class VideoRun:
    """A training run on disk: weights, optimizer, place in the curriculum, log."""

    def __init__(self, folder: Path, config: str, start: Path, seed: int, lr: float) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        weights = sha256(start / "model.safetensors")
        self.settings: dict[str, Any] = {
            "config": config, "start": start.name, "start_sha256": weights, "seed": seed, "lr": lr,
        }  # fmt: skip
        torch.manual_seed(seed)
        self.tokenizer = make_video_tokenizer()
        llava = LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
        self.model = PocketVideo(from_pocket(llava, self.tokenizer), self.tokenizer)
        self.tower = tower_digest(self.model.llava.model.video_tower)
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = make_optimizer(self.model, lr, "adamw")
        for opt in self.optimizers:
            for group in opt.param_groups:
                group["params"] = [p for p in group["params"] if p.requires_grad]
        self.learned = learned
        self.phase, self.step, self.total, self.clips = 0, 0, 0, 0
        self._resume()

    def _resume(self) -> None:
        state = self.folder / "state.json"
        if not state.exists():
            return
        s = json.loads(state.read_text())
        if s["settings"] != self.settings:
            raise ValueError(
                f"{self.folder} holds a run with {s['settings']}, asked for {self.settings}: "
                "give the same settings, or another --run folder"
            )
        self.model.load_state_dict(load_file(self.folder / f"model-{s['tag']}.safetensors"))
        for i, opt in enumerate(self.optimizers):
            path = self.folder / f"optimizer-{s['tag']}-{i}.pt"
            opt.load_state_dict(torch.load(path, weights_only=True))
        self.phase, self.step = s["phase"], s["step"]
        self.total, self.clips = s["total"], s["clips"]
        log = self.folder / "log.jsonl"  # lines written after the checkpoint are done again
        lines = log.read_text() if log.exists() else ""
        keep = [x for x in lines.splitlines() if json.loads(x)["total"] <= self.total]
        log.write_text("".join(x + "\n" for x in keep))

    def save(self) -> None:
        tag = f"{self.total:07d}"
        old = [p for p in self.folder.iterdir() if p.name.startswith(("model-", "optimizer-"))]
        state = {k: x.contiguous() for k, x in self.model.state_dict().items()}
        save_file(state, self.folder / f"model-{tag}.safetensors")
        for i, opt in enumerate(self.optimizers):
            torch.save(opt.state_dict(), self.folder / f"optimizer-{tag}-{i}.pt")
        place = {
            "settings": self.settings, "tag": tag, "phase": self.phase, "step": self.step,
            "total": self.total, "clips": self.clips,
        }  # fmt: skip
        tmp = self.folder / "state.json.tmp"
        tmp.write_text(json.dumps(place))
        os.replace(tmp, self.folder / "state.json")
        for p in old:
            if f"-{tag}" not in p.name:
                p.unlink()

    def log(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry)
        print(line, flush=True)
        with open(self.folder / "log.jsonl", "a") as f:
            f.write(line + "\n")

    def one_step(self, phase: VideoPhase, data: ClipData) -> Stats:
        """Gradients of all parts, one step of the optimizers; returns the step's statistics."""
        sums: Stats = {}
        for m in range(phase.micro):
            batch = data[self.step * phase.micro + m]
            with torch.autocast("cpu", torch.bfloat16):
                out = self.model(batch, phase)
            (out["loss"] / phase.micro).backward()
            share = {k: 1.0 if "/" in k else 1 / phase.micro for k in out}
            sums = add(sums, {k: float(x.detach()) * share[k] for k, x in out.items()})
        factor = rate(phase, self.step, self.total)
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        for opt in self.optimizers:
            for group in opt.param_groups:
                group["lr"] = self.settings["lr"] * factor
            opt.step()
            opt.zero_grad(set_to_none=True)
        self.step, self.total = self.step + 1, self.total + 1
        self.clips += phase.batch
        return {**sums, "lr": self.settings["lr"] * factor}


def train(run: VideoRun, args: argparse.Namespace) -> bool:
    """Goes on until the curriculum, the minutes or the steps end. True when all is done."""
    phases = CURRICULA[run.settings["config"]]
    begin, saved, ran = time.time(), time.time(), 0
    run.model.train()
    while run.phase < len(phases):
        phase = phases[run.phase]
        data = ClipData(phase, run.phase, run.settings["seed"], run.tokenizer)
        sums: Stats = {}
        seen, clock, busy = 0, time.time(), time.process_time()
        while run.step < phase.steps:
            sums = add(sums, run.one_step(phase, data))
            seen, ran = seen + 1, ran + 1
            if run.total % args.log_every == 0 or run.step == phase.steps:
                cpu, wall = time.process_time() - busy, time.time() - clock
                run.log(
                    {"total": run.total, "phase": phase.name, "step": run.step, "clips": run.clips}
                    | summary(sums, seen)
                    | {"cpu_seconds": round(cpu, 1), "seconds": round(wall, 1)}
                )
                sums, seen, clock, busy = {}, 0, time.time(), time.process_time()
            if time.time() - saved > 60 * args.save_minutes:
                run.save()
                saved = time.time()
            if time.time() - begin > 60 * args.minutes or (args.steps and ran >= args.steps):
                run.save()
                return False
        run.phase, run.step = run.phase + 1, 0
        run.save()
    return True


def export_run(run: VideoRun, out: Path) -> None:
    """Writes the checkpoint, its log and the facts of its making."""
    model = run.model.llava
    for tower in (model.model.video_tower, model.model.image_tower):
        if tower_digest(tower) != run.tower:
            raise RuntimeError("the vision tower changed in training; it has to stay frozen")
    export_video(model, run.tokenizer, out)
    log = (run.folder / "log.jsonl").read_text()
    (out / "training_log.jsonl").write_text(log)
    weights = out / "model.safetensors"
    import platform

    import transformers

    _write_json(
        out / "TRAINING.json",
        {
            "settings": run.settings,
            "steps": run.total,
            "clips": run.clips,
            "phases": _phases(run.folder / "log.jsonl"),
            "cpu_seconds": round(sum(json.loads(x)["cpu_seconds"] for x in log.splitlines())),
            "tower_sha256": run.tower,
            "parameters": sum(q.numel() for q in model.parameters()),
            "commit": _commit(),
            "sha256": {"model.safetensors": sha256(weights)},
            "bytes": weights.stat().st_size,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
        },
    )
    print(f"{out}: step {run.total}, {weights.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", type=Path, default=Path("runs/pocket-video"))
    p.add_argument("--config", default="pocket", choices=sorted(CURRICULA))
    p.add_argument("--start", type=Path, default=START, help="the image model to begin with")
    p.add_argument("--minutes", type=float, default=1e9, help="stop, resumable, after this long")
    p.add_argument("--steps", type=int, default=0, help="stop after so many steps of this call")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--threads", type=int, default=1, help="CPU threads")
    p.add_argument("--save-minutes", type=float, default=3.0)
    p.add_argument("--log-every", type=int, default=20)
    p.add_argument("--export", type=Path, help="write the Hugging Face layout here at the end")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    run = VideoRun(args.run, args.config, args.start, args.seed, args.lr)
    done = train(run, args)
    if args.export:
        export_run(run, args.export)
    print("curriculum done" if done else "stopped; the same command goes on")


if __name__ == "__main__":
    main()
