"""An engine at work for one method on one model: for the length of a pass, the decoder's layers are
replaced by fewer modules that run whole blocks of them.

Stock `forward` loops over whatever stands in `decoder.layers`, so its own embedding, masks, norm
and head stay as they are. The list is put back after every pass, also after an exception.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import nn

from visiondrop.engine.compiling import refuse_quantised
from visiondrop.engine.decode import decode_step
from visiondrop.engine.engine import Engine, EngineError
from visiondrop.engine.named import why_no_engine
from visiondrop.engine.prefill import prefill_blocks
from visiondrop.kernels import CALLS

if TYPE_CHECKING:
    from visiondrop.decoder import Mechanism
    from visiondrop.run import Run

__all__ = ["Attached"]


class Attached:
    """What the mechanism calls.

    Raises `EngineError` where the method or the model has something that a recording would leave
    out.
    """

    def __init__(self, mechanism: Mechanism, engine: Engine):
        self.mechanism, self.engine = mechanism, engine
        self.stock: nn.ModuleList = mechanism.decoder.layers
        refuse(mechanism)
        if engine.compile:
            refuse_quantised(self.stock)
        engine.bind(mechanism.model)
        engine.serving = weakref.ref(mechanism.model)

    def begin_prefill(self, run: Run, kwargs: dict[str, Any]) -> None:
        """Put blocks in the place of layers, where this prefill can be run so."""
        blocks = prefill_blocks(self.mechanism, self.engine, run, kwargs)
        if blocks is None:
            CALLS["prefill:plain"] += 1
        else:
            self.place(blocks)

    def begin_decode(self, run: Run, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Put one module in the place of all layers, where this step can be run so; the decoder's
        arguments for it.
        """
        step = decode_step(self.mechanism, self.engine, run, kwargs)
        if step is None:
            CALLS["decode:plain"] += 1
            return None
        self.place([step])
        return {**kwargs, **step.given}

    def place(self, modules: list[nn.Module]) -> None:
        """Let the decoder's forward loop over `modules` until `end`."""
        self.mechanism.decoder._modules["layers"] = nn.ModuleList(modules)

    def end(self) -> None:
        """The decoder has its own layers again."""
        self.mechanism.decoder._modules["layers"] = self.stock

    def release(self) -> None:
        """The method leaves the model, whatever a pass was stopped by; the engine is free."""
        self.end()
        self.engine.serving = None


def refuse(mechanism: Mechanism) -> None:
    """Raise `EngineError` on what runs inside layers and would not be recorded."""
    if reason := why_no_engine(mechanism.method):
        raise EngineError(reason)
    if mechanism.geometry.mrope:
        raise EngineError(
            "positions with several planes (M-RoPE) are not recorded; run this model without an "
            "engine"
        )
    if mechanism.group is not None:
        raise EngineError("a model split by tensor parallelism runs without an engine")
    kinds = {type(part) for part in mechanism.model.modules()}
    # PEFT's layers have a property of this name; models of transformers have a method.
    switch = [k for k in kinds if isinstance(getattr(k, "disable_adapters", None), property)]
    if switch:
        names = ", ".join(sorted(kind.__name__ for kind in switch))
        raise EngineError(
            f"the model has adapters ({names}) that can be switched off, which a recording would "
            "not notice; merge them (model.merge_and_unload()), or run it without an engine"
        )
    devices = {p.device for p in mechanism.decoder.parameters()}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise EngineError(f"the decoder is spread over {names}; an engine needs it on one device")
