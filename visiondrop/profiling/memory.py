"""Peak memory of what runs between two calls, and what a machine has left."""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["free_bytes", "peak_bytes", "reset_peak"]

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> int | None:
    """From here on `peak_bytes` counts anew. Gives what is held now, None where nothing tells."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not _REFS.exists():
        return None
    with suppress(OSError, AttributeError):  # glibc alone has it
        # What an earlier run freed and the C library kept would hide what this one takes.
        ctypes.CDLL(None).malloc_trim(0)
    _REFS.write_text("5")
    return _status("VmRSS")


def peak_bytes(device: torch.device) -> int | None:
    """The most that was held since `reset_peak`: tensors on a CUDA device, on a CPU the process's
    resident memory (Linux). None where nothing tells.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not _REFS.exists():
        return None
    return _status("VmHWM")


def _status(name: str) -> int | None:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    return int(found.group(1)) * 1024 if found else None


def free_bytes(device: torch.device) -> int | None:
    """What a device has left; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found and device.type == "cpu" else None
