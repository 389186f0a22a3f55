"""A model larger than one GPU: its language model spread over the processes of a launch.

    torchrun --nproc_per_node 4 script.py      # or: deepspeed --num_gpus 4 script.py

    tokenizer, model, image_processor, context_len = load_tensor_parallel(path, None, name)

Every process holds a share of each decoder layer's attention heads and MLP neurons; the vision
tower and the projector are whole in each. All processes must make the same calls, with the same
inputs, and all get the same answers. VisionDrop and the other methods work as ever
(`visiondrop.parallel` gathers the heads that they read).
"""

from __future__ import annotations

import importlib.util
import os
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import distributed

from llava.model.builder import load_config, load_pretrained_model
from visiondrop.parallel import check_heads

__all__ = ["ENGINES", "Engine", "load_tensor_parallel", "same_everywhere", "start_group"]

Engine = Literal["deepspeed", "transformers"]
ENGINES: tuple[Engine, ...] = ("deepspeed", "transformers")
PATIENCE = timedelta(days=1)
"""How long a process waits for the others; the launcher ends all when one dies."""


def load_tensor_parallel(
    model_path: str,
    model_base: str | None,
    model_name: str,
    engine: Engine = "deepspeed",
    device: str | None = None,
    torch_dtype: torch.dtype | None = None,
    attn_implementation: str = "sdpa",
) -> tuple[Any, Any, Any, int]:
    """Like `load_pretrained_model`, over all processes that torchrun or deepspeed started.

    Args:
        engine: who spreads the language model. "deepspeed" (AutoTP): each process reads the whole
            checkpoint into host memory, keeps its share and puts that on its GPU. "transformers"
            (`tp_plan`): each process reads its share only, of a checkpoint in Hugging Face's
            layout; one in LLaVA's original layout passes through host memory here too.
        device: "cpu" or "cuda"; a process takes the GPU of its local rank. Default: a GPU where
            there is one.
        torch_dtype: None is float16 on a GPU and float32 on a CPU.

    Raises ValueError where there is one process only, or the heads do not divide over them, before
    any weight is read; ImportError where DeepSpeed is missing; else as `load_pretrained_model`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2:
        raise ValueError(
            "tensor parallelism needs several processes: start the command with "
            "`torchrun --nproc_per_node N` or `deepspeed --num_gpus N`"
        )
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not known; choose one of {', '.join(ENGINES)}")
    if engine == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(
            "engine='deepspeed' needs the package deepspeed, which is not installed: "
            "pip install -e .[train], or take engine='transformers'"
        )
    check_heads(load_config(model_path, model_base).text_config, size)
    place = start_group(device)
    on_gpu = place.type != "cpu"
    dtype = torch_dtype or (torch.float16 if on_gpu else torch.float32)
    common: dict[str, Any] = {"torch_dtype": dtype, "attn_implementation": attn_implementation}
    if engine == "transformers":
        return _load_with_plan(model_path, model_base, model_name, size, place, common)

    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    loaded = load_pretrained_model(model_path, model_base, model_name, device="cpu", **common)
    model = loaded[1]
    # Layers are replaced in place; the engine around them is not needed.
    deepspeed.init_inference(
        model.model.language_model,
        tensor_parallel={"tp_size": size},
        dtype=dtype,
        replace_with_kernel_inject=False,
    )
    model.to(place)
    return loaded


def start_group(device: str | None = None) -> torch.device:
    """Bring the processes of this launch together; this process's device.

    Args:
        device: "cpu" or "cuda"; None or "auto" is a GPU where there is one.
    """
    on_gpu = torch.cuda.is_available() if device in (None, "auto") else device != "cpu"
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(place)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    return torch.device(place)


def _load_with_plan(
    path: str, base: str | None, name: str, size: int, place: Any, common: dict[str, Any]
) -> tuple[Any, Any, Any, int]:
    from transformers.distributed import DistributedConfig

    plan = DistributedConfig(tp_plan="auto", tp_size=size)
    loaded = load_pretrained_model(path, base, name, distributed_config=plan, **common)
    loaded[1].to(place)
    return loaded


def same_everywhere(numbers: list[int]) -> list[int]:
    """What process 0 has, in every process of the launch."""
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    count = torch.tensor([len(numbers)], device=device)
    distributed.broadcast(count, 0)
    values = torch.zeros(int(count), dtype=torch.long, device=device)
    if distributed.get_rank() == 0:
        values.copy_(torch.tensor(numbers, dtype=torch.long))
    distributed.broadcast(values, 0)
    return values.tolist()
