"""Small tables from the host to the device, without waiting.

A copy from ordinary memory makes the host wait until the device has done all that it was given
before. From pinned memory it is queued like a kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(table: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on `device`; one that is there already as it is."""
    if torch.device(device).type == "cuda" and table.device.type == "cpu":
        return table.pin_memory().to(device, non_blocking=True)
    return table.to(device)
