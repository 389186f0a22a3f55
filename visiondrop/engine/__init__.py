"""An option for speed: parts of the model with fixed shapes, recorded or compiled once and run
again for every sample.

    engine = Engine()                       # CUDA graphs
    for sample in samples:
        with method(model, engine=engine) as trace:
            model.generate(**sample)

Answers are the same to the precision of the dtype. Whatever a recording cannot hold runs as without
an engine; `trace.paths` counts both ways.
"""

from visiondrop.engine.engine import Engine, EngineError
from visiondrop.engine.named import ENGINES, engine_named, why_no_engine

__all__ = ["ENGINES", "Engine", "EngineError", "engine_named", "why_no_engine"]
