"""One of two processes that hold a tiny model's heads between them; started by torchrun.

    torchrun --standalone --nproc_per_node 2 -m tests.visiondrop.sharded OUT

Each process writes to OUT/RANK.json what every method of the matrix kept and said there, and what
happens where the processes are left to themselves.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

import visiondrop.adapters.base
import visiondrop.decoder
from tests.visiondrop.matrix import METHODS, exempt
from tests.visiondrop.models import generate, pixels, prompt, tiny
from visiondrop import Random
from visiondrop.reducer import Reducer

ROWS = [prompt(3, 6, 1), prompt(5, 9, 2)]
QUESTIONS = ["is it red?", "where is the dog?"]
REFUSED = [name for name in METHODS if "yopo" in name]
NAMES = [name for name in METHODS if not exempt(name, "single") and name not in REFUSED]
SEVERAL = ("visiondrop", "visionzip-no-merge", "fastv", "dart-options", "tome")
"""Methods by which the controls are shown: CLS row, column means, head-mean keys, rows, norms."""


class Columns(nn.Module):
    """A linear layer of which this process has its share of the outputs."""

    def __init__(self, whole: nn.Linear, group: Any) -> None:
        super().__init__()
        self.mp_group = group
        rank, count = distributed.get_rank(group), distributed.get_world_size(group)
        self.weight = nn.Parameter(whole.weight.chunk(count)[rank].clone())
        self.bias = None if whole.bias is None else nn.Parameter(whole.bias.chunk(count)[rank])

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight, self.bias)


class Rows(nn.Module):
    """A linear layer of which this process has its share of the inputs."""

    def __init__(self, whole: nn.Linear, group: Any) -> None:
        super().__init__()
        self.mp_group = group
        rank, count = distributed.get_rank(group), distributed.get_world_size(group)
        self.weight = nn.Parameter(whole.weight.chunk(count, 1)[rank].clone())
        self.bias = whole.bias

    def forward(self, states: Tensor) -> Tensor:
        out = nn.functional.linear(states, self.weight)
        distributed.all_reduce(out, group=self.mp_group)
        return out if self.bias is None else out + self.bias


PARTS = {
    "self_attn": {"q_proj": Columns, "k_proj": Columns, "v_proj": Columns}
    | {"o_proj": Rows, "out_proj": Rows},
    "mlp": {"gate_proj": Columns, "up_proj": Columns, "down_proj": Rows, "fc1": Columns}
    | {"fc2": Rows},
}


def shard(model: Any) -> Any:
    """The model with every layer of decoder and tower spread over all processes."""
    group = distributed.group.WORLD
    layers = [*model.model.language_model.layers, *model.model.vision_tower.encoder.layers]
    for layer in layers:
        for block, parts in PARTS.items():
            module = getattr(layer, block)
            for name, kind in parts.items():
                if hasattr(module, name):
                    setattr(module, name, kind(getattr(module, name), group))
    return model


def told(model: Any, method: Reducer) -> dict[str, Any]:
    """What a method keeps and the model says: stage by stage, and the new tokens."""
    with torch.no_grad(), method(model, questions=QUESTIONS) as trace:
        out = generate(model, ROWS, pixels(2))
    stages = [[stage.to_dict() for stage in sample.stages] for sample in trace.samples]
    return {"stages": stages, "new": out.sequences[:, -5:].tolist()}


def refusal(model: Any, method: Reducer) -> str:
    """What entering the method says."""
    try:
        with method(model):
            return "nothing"
    except ValueError as error:
        return str(error)


def own_heads(linear: Any, projected: Tensor, heads: int, head_dim: int) -> Tensor:
    """The mistake: what a process has is taken for all there is."""
    return projected.view(*projected.shape[:2], -1, head_dim).transpose(1, 2)


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model, grouped = shard(tiny()), shard(tiny(kv_heads=2))
    found: dict[str, Any] = {
        "all": {name: told(model, METHODS[name]) for name in NAMES},
        "grouped": {name: told(grouped, METHODS[name]) for name in SEVERAL},
        "two opinions": told(model, Random(9, seed=rank) + Random(4, seed=rank, layer=2)),
        "refused": {name: refusal(model, METHODS[name]) for name in REFUSED},
        "one kv head": refusal(shard(tiny(kv_heads=1)), METHODS["visiondrop"]),
    }
    gathered, decided = visiondrop.adapters.base.all_heads, visiondrop.decoder.FirstDecides
    visiondrop.adapters.base.all_heads = own_heads
    found["own heads"] = {name: told(model, METHODS[name]) for name in SEVERAL}
    visiondrop.decoder.FirstDecides = lambda method, group: method  # type: ignore[assignment,misc]
    found["own heads, own choice"] = {name: told(model, METHODS[name]) for name in SEVERAL}
    visiondrop.adapters.base.all_heads = gathered
    found["own choice"] = told(model, Random(9, seed=rank) + Random(4, seed=rank, layer=2))
    visiondrop.decoder.FirstDecides = decided
    Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
