"""The Hugging Face Trainer with what LLaVA's recipe adds: a rate for the projector, grouping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer


class ModalitySampler(Sampler[int]):
    """Batches of like length, and each of one kind (with or without a picture).

    lengths: positive for samples with a picture, negative for those without.
    """

    def __init__(self, lengths: list[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        g = torch.Generator().manual_seed(self.seed + self.epoch)
        groups: list[list[int]] = []
        rest: list[int] = []
        for kind in (True, False):
            ids = [i for i, n in enumerate(self.lengths) if (n > 0) == kind]
            ids = [ids[int(j)] for j in torch.randperm(len(ids), generator=g)]
            wide = self.batch * 50  # sort by length within stretches, so that batches stay random
            for a in range(0, len(ids), wide):
                part = sorted(ids[a : a + wide], key=lambda i: abs(self.lengths[i]))
                cut = [part[b : b + self.batch] for b in range(0, len(part), self.batch)]
                if len(cut[-1]) < self.batch:
                    rest += cut.pop()
                groups += cut
        for j in torch.randperm(len(groups), generator=g):
            yield from groups[int(j)]
        yield from rest


class LlavaTrainer(Trainer):
    """Reads ``group_by_modality_length`` and ``mm_projector_lr`` of its arguments."""

    optimizer: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        data = train_dataset if train_dataset is not None else self.train_dataset
        if data is None or not getattr(self.args, "group_by_modality_length", False):
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        batch *= self.args.world_size
        return ModalitySampler(data.lengths(), batch, self.args.seed)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        rate = getattr(self.args, "mm_projector_lr", None)
        if self.optimizer is not None or rate is None:
            return super().create_optimizer(*args, **kwargs)
        decayed = set(self.get_decay_parameter_names(self.model))
        groups = []
        for projector in (False, True):
            for decay in (False, True):
                params = [
                    p
                    for n, p in self.model.named_parameters()
                    if p.requires_grad
                    and ("multi_modal_projector" in n) == projector
                    and (n in decayed) == decay
                ]
                if params:
                    group: dict[str, Any] = {"params": params}
                    group["weight_decay"] = self.args.weight_decay if decay else 0.0
                    if projector:
                        group["lr"] = rate
                    groups.append(group)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = kind(groups, **options)
        return self.optimizer
