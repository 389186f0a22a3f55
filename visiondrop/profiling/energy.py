"""What a GPU has used, in joules, as NVIDIA's driver tells it; nothing to install.

The counter rises a few dozen times a second: read it around seconds of work, not around one
prefill.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["energy_meter", "meter_of"]

LIBRARY = "libnvidia-ml.so.1"


def energy_meter(device: torch.device) -> Callable[[], float] | None:
    """A function that gives the joules a GPU has used since its driver was loaded.

    None where nothing tells: no CUDA device, no such library, a card that does not count.
    """
    if device.type != "cuda":
        return None
    try:
        library: Any = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    # By UUID: CUDA_VISIBLE_DEVICES numbers devices anew, the driver does not.
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return meter_of(library, uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


def meter_of(library: Any, uuid: str) -> Callable[[], float] | None:
    """The same of a loaded library (NVML) and one card."""
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(
        uuid.encode(), ctypes.byref(handle)
    ):
        return None

    def read() -> int:
        failed: int = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return failed

    def joules() -> float:
        if failed := read():
            raise RuntimeError(f"the driver tells the card's energy no more (NVML: {failed})")
        return millijoules.value / 1000

    return None if read() else joules
