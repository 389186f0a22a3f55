"""Gradients of a step, computed part by part: in this process, or by helper processes.

A step's batch is cut into ``phase.micro`` parts. Helpers take the next part when they are free, so
that a busy core slows the step only by its share (threads inside each operation would all wait
for the slowest), and the parts' gradients are added in one fixed order: how many helpers there
are, and who took what, changes nothing in the result.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerFast

from .pocket_data import Phase, PocketData
from .pocket_loss import Pocket
from .pocket_model import SHAPES, make_model, make_tokenizer

Stats = dict[str, float]


def part_gradients(model: Any, batch: dict[str, Tensor], phase: Phase, half: bool) -> Stats:
    """Adds one part's share of the step's gradient to ``.grad``; returns its losses."""
    device = batch["pixels"].device.type
    with torch.autocast(device, torch.bfloat16, enabled=half):
        out = model(batch, phase)
    (out["loss"] / phase.micro).backward()
    names = list(out)
    values = torch.stack([out[k].detach().float() for k in names]).tolist()
    return {k: v * (1 if "/" in k else 1 / phase.micro) for k, v in zip(names, values, strict=True)}


def add(a: Stats, b: Stats) -> Stats:
    return {k: a.get(k, 0.0) + b[k] for k in b}


class Local:
    """All parts one after another in this process; ``loaders`` processes make the pictures."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerFast, half: bool, loaders: int,
        data: type[PocketData] = PocketData,
    ) -> None:  # fmt: skip
        self.data = data
        self.model, self.tokenizer, self.half, self.loaders = model, tokenizer, half, loaders
        self.device = next(model.parameters()).device

    def steps(self, phase: Phase, index: int, seed: int, start: int) -> Iterator[Stats]:
        data = self.data(phase, index, seed, self.tokenizer)
        loader = DataLoader(
            Subset(data, range(start * phase.micro, len(data))),
            batch_size=None,
            num_workers=self.loaders,
            prefetch_factor=4 if self.loaders else None,
        )
        stats: Stats = {}
        for i, batch in enumerate(loader):
            batch = {k: x.to(self.device, non_blocking=True) for k, x in batch.items()}
            stats = add(stats, part_gradients(self.model, batch, phase, self.half))
            if (i + 1) % phase.micro == 0:
                yield stats
                stats = {}

    def close(self) -> None:
        pass


def _work(
    shape: str, shared: list[Tensor], slots: list[Tensor], seed: int, half: bool,
    tasks: mp.Queue, results: mp.Queue, parent: int,
) -> None:  # fmt: skip
    """A helper: takes (phase, its index, part), leaves the gradient in the part's slot."""
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = Pocket(make_model(SHAPES[shape], tokenizer), tokenizer)
    params = list(model.parameters())
    for p, s in zip(params, shared, strict=True):
        p.data = s
    while os.getppid() == parent:
        try:
            task = tasks.get(timeout=5)
        except queue.Empty:
            continue
        if task is None:
            return
        phase, index, item = task
        batch = PocketData(phase, index, seed, tokenizer)[item]
        stats = part_gradients(model, batch, phase, half)
        part, at = item % phase.micro, 0
        used = [p.grad is not None for p in params]
        for p in params:
            if p.grad is not None:
                slots[part][at : at + p.numel()].copy_(p.grad.view(-1))
                p.grad = None
            at += p.numel()
        results.put((part, stats, used))


class Pool:
    """Helpers on shared weights. CPU only."""

    def __init__(
        self, model: Pocket, shape: str, seed: int, half: bool, helpers: int, parts: int
    ) -> None:
        self.params = list(model.parameters())
        for p in self.params:
            p.data = p.data.share_memory_()
        size = sum(p.numel() for p in self.params)
        self.slots = [torch.zeros(size).share_memory_() for _ in range(parts)]
        ctx = mp.get_context("spawn")
        self.tasks, self.results = ctx.Queue(), ctx.Queue()
        shared = [p.data for p in self.params]
        args = (shape, shared, self.slots, seed, half, self.tasks, self.results, os.getpid())
        self.helpers = [ctx.Process(target=_work, args=args, daemon=True) for _ in range(helpers)]
        for h in self.helpers:
            h.start()

    def steps(self, phase: Phase, index: int, seed: int, start: int) -> Iterator[Stats]:
        for step in range(start, phase.steps):
            for m in range(phase.micro):
                self.tasks.put((phase, index, step * phase.micro + m))
            got: dict[int, tuple[Stats, list[bool]]] = {}
            while len(got) < phase.micro:
                try:
                    part, stats, used = self.results.get(timeout=5)
                    got[part] = (stats, used)
                except queue.Empty:
                    if not all(h.is_alive() for h in self.helpers):
                        raise RuntimeError("a helper process died; see its message above") from None
            total, at = self.slots[0], 0
            for m in range(1, phase.micro):
                total += self.slots[m]
            for i, p in enumerate(self.params):
                if got[0][1][i]:
                    p.grad = total[at : at + p.numel()].view_as(p)
                at += p.numel()
            sums: Stats = {}
            for m in range(phase.micro):
                sums = add(sums, got[m][0])
            yield sums

    def close(self) -> None:
        for _ in self.helpers:
            self.tasks.put(None)
        for h in self.helpers:
            h.join(timeout=20)
