"""A function of tensors, recorded once with fixed shapes and played again without Python between
its kernels.

On CUDA that is a CUDA graph: launching thirty layers costs one call, where Python takes longer to
launch them one by one than a data-centre GPU takes to run them on a few hundred tokens. "replay" is
the same contract on any device: PyTorch's operations are recorded and run again. It saves next to
nothing; it is there so that whatever does not survive a recording (a branch on a value, state kept
in Python) is found without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["Function", "Kind", "Recording", "record"]

Kind = Literal["cuda", "replay"]
Function = Callable[..., Sequence[Tensor]]

WARM_UP = 2
"""Runs before a CUDA graph is captured: libraries choose their kernels and workspaces in them."""


class Recording(Protocol):
    """A recorded function.

    Attributes:
        inputs: write into these before `replay`.
        outputs: the very same tensors after each `replay`, which overwrites them: read or copy them
            before the next one.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def replay(self) -> None:
        """Run again on what `inputs` hold now."""


class CudaRecording:
    """A CUDA graph.

    Args:
        pool: memory that graphs share which are played one after the other.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], pool: Any):
        self.inputs = tuple(inputs)
        device = self.inputs[0].device
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    function(*self.inputs)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            # A stream of this device; what other threads do meanwhile is no part of it.
            with torch.cuda.graph(
                self.graph, pool=pool, stream=aside, capture_error_mode="thread_local"
            ):
                self.outputs = tuple(function(*self.inputs))

    def replay(self) -> None:
        """One launch of everything."""
        self.graph.replay()


class ReplayRecording:
    """PyTorch's operations, recorded with the inputs' shapes and run again one by one."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]):
        self.inputs = tuple(inputs)
        self.program = make_fx(lambda *args: tuple(function(*args)))(*self.inputs)
        self.outputs: tuple[Tensor, ...] = tuple(t.clone() for t in self.program(*self.inputs))

    def replay(self) -> None:
        """Into the same outputs, as a CUDA graph does."""
        for held, new in zip(self.outputs, self.program(*self.inputs), strict=True):
            held.copy_(new)


def record(function: Function, inputs: Sequence[Tensor], kind: Kind, pool: Any = None) -> Recording:
    """Record `function(*inputs)`, which is run for that, more than once.

    Args:
        function: of tensors to tensors, the same operations whatever the values; what it writes
            elsewhere (a KV cache) it writes to tensors that stay where they are.
        inputs: stay in place; the caller writes new values into them.
        pool: for CUDA graphs, see `torch.cuda.graph_pool_handle`.
    """
    # Tensors of inference mode could not be written to outside of it.
    with torch.inference_mode(False), torch.no_grad():
        if kind == "cuda":
            return CudaRecording(function, inputs, pool)
        return ReplayRecording(function, inputs)
