"""The machine that is measured on, and models of a folder."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

from visiondrop.profiling.memory import free_bytes
from visiondrop.profiling.presets import weightless_model

__all__ = ["check_room", "machine", "open_model", "versions"]


def machine(device: torch.device) -> dict[str, Any]:
    """What times depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), "system": platform.platform()}


def versions() -> dict[str, str | None]:
    """Of Python and the packages that compute."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
    }


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def open_model(
    path: Path, dtype: torch.dtype | None = None, device: str = "cpu", attention: str = "sdpa"
) -> Any:
    """The configuration in a folder, or with a dtype the model. Raises `ValueError` where there is
    none.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"--model {path}: no folder with a config.json")
    if dtype is None:
        return AutoConfig.from_pretrained(path)
    model: Any = AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype, attn_implementation=attention
    )
    return model.to(device).eval()


def check_room(config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Raise `ValueError` where a device has no room for the weights."""
    count = sum(parameter.numel() for parameter in weightless_model(config).parameters())
    needed, free = count * dtype.itemsize, free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"{count / 1e9:.1f} billion weights in {str(dtype).removeprefix('torch.')} take "
            f"{needed / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB left; use fewer "
            "--layers, another --dtype or --device, or --flops, which needs no weights"
        )
