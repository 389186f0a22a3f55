"""Where a method acts: how tables and plots sort their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.eval.errors import EvalError
from visiondrop import Reducer

PLACES = (
    *("vision encoder", "before the LLM", "inside the LLM", "before and inside"),
    *("control", "no token dropped"),
)
CONTROLS = ("full", "random", "uniform")
ORACLES = ("oracle", "oracle_pyramid")


def place_of(result: Mapping[str, Any]) -> str:
    """Which of ``PLACES`` a result's method acts in."""
    if result["method_config"]["name"] in ORACLES:  # their regions are told by a hash alone
        return "control"
    try:
        method = Reducer.from_dict(dict(result["method_config"]))
    except (TypeError, ValueError) as error:
        raise EvalError(
            f"{result['cell']} was made by another version of its method ({error}); give "
            "--overwrite, or another folder with --out"
        ) from None
    if method.name in CONTROLS:
        return "control"
    if method.before_llm and (method.inside_llm or method.extension() is not None):
        return "before and inside"
    if method.before_llm:
        early = method.where.startswith("encoder") or method.before == "tower"
        return "vision encoder" if early else "before the LLM"
    return "inside the LLM" if method.inside_llm else "no token dropped"
