"""Which engine (`visiondrop.engine`) answers a run's questions."""

from __future__ import annotations

import argparse
import os
from typing import Any

from llava.eval.errors import EvalError
from visiondrop.engine import ENGINES, why_no_engine

__all__ = ["add_engine_flag", "check_engine", "usable_engine"]


def add_engine_flag(group: Any) -> None:
    """`--engine`, or ENGINE in the environment."""
    group.add_argument(
        "--engine",
        default=os.environ.get("ENGINE", "").strip() or "none",
        help=f"{', '.join(ENGINES)}: record (CUDA graphs) or compile the layers between stages; "
        "pays off over many samples",
    )


def check_engine(args: argparse.Namespace, device: str) -> None:
    """Raise `EvalError` on an engine that there is not, or that cannot run on `device`."""
    engine = getattr(args, "engine", "none")  # commands without the flag run without one
    if engine not in ENGINES:
        raise EvalError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}")
    if engine.startswith("graphs") and not device.startswith("cuda"):
        raise EvalError(f"--engine {engine} needs a CUDA device, not {device}; use compile or none")
    if engine != "none" and getattr(args, "tensor_parallel", 1) > 1:
        raise EvalError(
            f"--engine {engine} and --tensor-parallel {args.tensor_parallel}: a model that is "
            "split over processes runs without an engine; leave one of them out"
        )


def usable_engine(asked: str, method: Any) -> str:
    """The engine of a method's run: "none" where the method is one that none can run, so that a
    table of many methods can be asked for with an engine.
    """
    return "none" if why_no_engine(method) is not None else asked
