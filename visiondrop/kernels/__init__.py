"""Fast paths that need more than PyTorch, chosen where they can run.

Each has a plain version that gives the same numbers and runs everywhere. `VISIONDROP_KERNELS=off`
in the environment takes the plain versions only. `CALLS` counts which way was taken; a trace tells
the difference since its block was entered (`Trace.paths`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import Counter

import torch
from torch import Tensor

__all__ = ["CALLS", "LARGEST_HEAD", "column_sums_usable", "triton_found"]

CALLS: Counter[str] = Counter()
""""column_mean:triton", "column_mean:chunks": how often, in this process."""

LARGEST_HEAD = 256
"""Larger heads do not fit the kernel's tiles."""
OLDEST = (7, 0)
"""Compute capability below which Triton's products are not tried."""


@functools.cache
def triton_found() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("triton") is not None


def column_sums_usable(query: Tensor) -> bool:
    """Whether the Triton kernel can score these queries [G, H, n, d]."""
    if os.environ.get("VISIONDROP_KERNELS", "").lower() in ("off", "0", "plain"):
        return False
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return False
    if query.shape[-1] > LARGEST_HEAD or torch.version.hip is not None or not triton_found():
        return False
    return torch.cuda.get_device_capability(query.device) >= OLDEST
