"""The recordings of one model, by what they were made for."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from visiondrop.engine.buckets import WASTE, bucket
from visiondrop.engine.capture import Function, Recording, record
from visiondrop.kernels import CALLS

__all__ = ["Engine", "EngineError"]

Graphs = Literal["cuda", "replay", "off"]


class EngineError(ValueError):
    """An engine that a model or a method cannot run with."""


class Engine:
    """How the layers between stages are run; keeps what it recorded from sample to sample.

    Args:
        graphs: "cuda" records CUDA graphs; "replay" is the same contract on any device, for
            checks, and saves nothing; "off" records nothing. The default is "cuda" where there is
            such a device, else "off".
        compile: compile each layer with `torch.compile` (once per length, as shapes are static).
        backend: what compiles, a name that `torch.compile` knows.
        waste: padding to a bucket's end stays below this share of the length.
        limit: recordings that are kept; the one longest unused goes first.

    Attributes:
        recorded: how many recordings were made; record_seconds: what making them took.
        served: how many calls recordings have answered.
        serving: the model that a method is on with this engine, None between `with` blocks.
    """

    def __init__(
        self,
        graphs: Graphs | None = None,
        *,
        compile: bool = False,
        backend: str = "inductor",
        waste: float = WASTE,
        limit: int = 256,
    ):
        if graphs is None:
            graphs = "cuda" if torch.cuda.is_available() else "off"
        if graphs not in ("cuda", "replay", "off"):
            raise EngineError(f"graphs={graphs!r}: 'cuda', 'replay' or 'off' is needed")
        if graphs == "off" and not compile:
            raise EngineError(
                "an engine that neither records nor compiles does nothing: Engine('cuda') on a "
                "GPU, Engine(compile=True) elsewhere, or no engine"
            )
        if graphs == "replay" and compile:
            raise EngineError(
                "graphs='replay' records PyTorch's operations, which compiled code does not show: "
                "compile with graphs='cuda' or 'off'"
            )
        if compile and backend not in (known := torch._dynamo.list_backends(exclude_tags=())):
            raise EngineError(f"backend={backend!r}: torch.compile knows {', '.join(known)}")
        if limit < 1:
            raise EngineError(f"limit={limit}: at least 1 recording is needed")
        bucket(1, waste)  # refuses what is no share
        self.graphs, self.compile, self.waste, self.limit = graphs, compile, waste, limit
        self.backend = backend
        self.recorded = self.served = 0
        self.record_seconds = 0.0
        self._recordings: dict[tuple[str, Any], Recording] = {}
        self._compiled: dict[Hashable, Any] = {}
        self._scratch: dict[Hashable, Tensor] = {}
        self.slots: dict[Hashable, Any] = {}  # see `visiondrop.engine.slot`
        self.serving: weakref.ref[nn.Module] | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._weights: Any = None
        self._pool: Any = None

    def bind(self, model: nn.Module) -> None:
        """Serve `model`: recordings of another one, or of weights that have moved, are dropped.

        Raises `EngineError` while it serves another model, or where graphs cannot be made.
        """
        other = None if self.serving is None else self.serving()
        if other is not None and other is not model:
            raise EngineError(
                "this engine is at work on another model; give each model an engine of its own, or "
                "leave the other `with` block first"
            )
        first = next(model.parameters())
        weights: list[Any] = [first.device]
        for part in model.modules():
            for t in itertools.chain(part._parameters.values(), part._buffers.values()):
                weights.append(None if t is None else (t.data_ptr(), t.dtype))
        if self._model is None or self._model() is not model or self._weights != weights:
            self.clear()
            self._model, self._weights = weakref.ref(model), weights
        if self.graphs == "cuda" and first.device.type != "cuda":
            raise EngineError(
                f"graphs='cuda' with a model on {first.device}: move the model to a GPU, or use "
                "Engine(compile=True)"
            )

    def clear(self) -> None:
        """Forget all recordings and let go of their memory."""
        self._recordings.clear()
        self._compiled.clear()
        self._scratch.clear()
        self.slots.clear()
        self._pool = None

    @property
    def held_bytes(self) -> int:
        """What is kept from sample to sample: inputs and outputs of recordings, the keys and values
        that they share, slots of decoding. What a CUDA graph computes in between is not counted.
        """
        recorded = [t for r in self._recordings.values() for t in (*r.inputs, *r.outputs)]
        slots = [t for slot in self.slots.values() for pair in slot.pairs for t in pair]
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in (*recorded, *self._scratch.values(), *slots)
        }
        return sum(storages.values())

    def forget(self, name: str, stale: Callable[[Any], bool]) -> None:
        """Let go of the recordings of that name whose keys are `stale`."""
        gone = [full for full in self._recordings if full[0] == name and stale(full[1])]
        for full in gone:
            del self._recordings[full]

    def bucket(self, length: int) -> int:
        """The length that recordings for `length` tokens have; unpadded where nothing records or
        compiles.
        """
        return bucket(length, self.waste)

    def run(
        self,
        name: str,
        key: Hashable,
        function: Function,
        make_inputs: Callable[[], Sequence[Tensor]],
        fill: Callable[[tuple[Tensor, ...]], None],
    ) -> tuple[Tensor, ...]:
        """The outputs of `function` on inputs that `fill` has written.

        Args:
            name: what `trace.paths` counts it under, with ":graph" behind, or ":compiled"
                where nothing is recorded.
            key: all that the recording depends on beside the model.
            function: see `record`.
            make_inputs: new tensors of the recording's shapes; called before it is made.
            fill: writes this call's values into the inputs.

        Returns: tensors that the next call with this key overwrites.
        """
        if self.graphs == "off":
            inputs = tuple(make_inputs())
            fill(inputs)
            CALLS[f"{name}:compiled"] += 1
            return tuple(function(*inputs))
        full_key = name, key
        found = self._recordings.pop(full_key, None)
        if found is None:
            found = self._record(function, make_inputs, fill)
            while len(self._recordings) >= self.limit:
                del self._recordings[next(iter(self._recordings))]
        self._recordings[full_key] = found  # the last one used stands last
        fill(found.inputs)
        found.replay()
        self.served += 1
        CALLS[f"{name}:graph"] += 1
        return found.outputs

    def _record(
        self,
        function: Function,
        make_inputs: Callable[[], Sequence[Tensor]],
        fill: Callable[[tuple[Tensor, ...]], None],
    ) -> Recording:
        began = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            inputs = tuple(make_inputs())
        fill(inputs)
        if self.graphs == "cuda" and self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        assert self.graphs != "off"
        recording = record(function, inputs, self.graphs, self._pool)
        self.recorded += 1
        self.record_seconds += time.perf_counter() - began
        return recording

    def scratch(self, count: int, like: Tensor) -> Tensor:
        """[count], memory that recordings share: each run overwrites what another left there.

        Where it has to grow it doubles at least, and older recordings keep what they have: all of
        it is less than four times the largest need.
        """
        kind = like.dtype, like.device
        held = self._scratch.get(kind)
        if held is None or held.numel() < count:
            size = count if held is None else max(count, 2 * held.numel())
            with torch.inference_mode(False):
                held = torch.empty(size, dtype=like.dtype, device=like.device)
            self._scratch[kind] = held
        return held[:count]

    def compiled(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """A compiled function, or what else is made once for this model."""
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]
