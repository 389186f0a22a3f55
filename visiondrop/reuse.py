"""Which methods leave a prompt's beginning alone, whatever follows it.

What a causal decoder computes for a prompt up to a picture's end does not depend on the question
behind it, unless a method asks that question which tokens to keep.
"""

from __future__ import annotations

from visiondrop.composed import Composed
from visiondrop.reducer import Reducer
from visiondrop.registry import _REGISTRY, HIDDEN
from visiondrop.text_encoder import NEED

__all__ = ["check_reusable", "reads_keys", "reusable", "why_not_reusable"]


def why_not_reusable(method: Reducer) -> str | None:
    """Why what `method` keeps of a picture holds for one question only; None where it holds for
    all.
    """
    if NEED in method.needs:
        return "it compares the picture with the question by a text encoder of its own"
    parts = method.parts if isinstance(method, Composed) else (method,)
    if any(part.reads_questions for part in parts):
        return "it chooses by the question"
    if method.reads_text:
        return "it chooses by the text after the picture"
    if method.uses_input:
        return "it chooses by the input embeddings of the text after the picture"
    if method.looks_back:
        return "it chooses by the attention of the whole prompt, the text after the picture too"
    for extension in method.extensions():
        if extension.reads_prompt:
            return f"its {type(extension).__name__} takes part of the whole prompt as its measure"
    return None


def reusable(method: Reducer) -> bool:
    """Whether one prefill of a picture serves every question on it."""
    return why_not_reusable(method) is None


def reads_keys(method: Reducer) -> bool:
    """Whether what `method` keeps depends on the sample's key too (`Trace.set_keys`), as its class
    says by `reads_keys = True`.
    """
    parts = method.parts if isinstance(method, Composed) else (method,)
    return any(getattr(part, "reads_keys", False) for part in parts)


def check_reusable(method: Reducer) -> None:
    """Raise `ValueError`, with the reason, where one prefill does not serve every question."""
    if (reason := why_not_reusable(method)) is None:
        return
    fine = {n for n, cls in _REGISTRY.items() if NEED not in cls.needs and _by_class(cls)} - HIDDEN
    raise ValueError(
        f"{method.name!r} cannot be cached: {reason}, so another question keeps other tokens; ask "
        "with `with method(model)` instead, or cache one of: " + ", ".join(sorted(fine))
    )


def _by_class(cls: type[Reducer]) -> bool:
    """As `reusable`, as far as the class alone says."""
    own = cls.extension is Reducer.extension
    return own and not (cls.reads_text or cls.uses_input or cls.looks_back)
