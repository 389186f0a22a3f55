"""Engines by the names that command lines know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visiondrop.engine.engine import Engine, EngineError

if TYPE_CHECKING:
    from visiondrop.reducer import Reducer

__all__ = ["ENGINES", "engine_named", "why_no_engine"]

ENGINES: dict[str, dict[str, Any]] = {
    "none": {},
    "compile": {"graphs": "off", "compile": True},
    "graphs": {"graphs": "cuda"},
    "graphs+compile": {"graphs": "cuda", "compile": True},
    "replay": {"graphs": "replay"},
}
"""What each makes an `Engine` with; "replay" saves nothing and is for checks."""


def engine_named(name: str) -> Engine | None:
    """A new engine, None for "none". Raises `EngineError` on an unknown name."""
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; known: {', '.join(ENGINES)}")
    return Engine(**ENGINES[name]) if ENGINES[name] else None


def why_no_engine(method: Reducer) -> str | None:
    """Why no engine can run a method, whatever the model; None where one can."""
    kinds = sorted({type(extension).__name__ for extension in method.extensions()})
    if not kinds:
        return None
    return (
        f"{method.name} changes layers from inside ({', '.join(kinds)}), which a recording would "
        "leave out; run it without an engine"
    )
