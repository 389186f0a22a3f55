"""Which methods leave a prompt's beginning alone, whatever follows it.

What a causal decoder computes for a prompt up to a picture's end does not depend on the question
behind it, unless a method asks that question which tokens to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visiondrop.composed import Composed
from visiondrop.reducer import Reducer
from visiondrop.registry import _REGISTRY, HIDDEN
from visiondrop.text_encoder import NEED

__all__ = ["check_reusable", "reads_keys", "refuse_ways", "reusable", "why_not_reusable"]


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
    text = cls.reads_text or cls.reads_questions or cls.uses_input or cls.looks_back
    return own and not text


WHOLE_PROMPT = ("prompt_lookup_num_tokens", "assistant_model", "prefill_chunk_size")
"""Arguments with which transformers reads the whole prompt whatever the KV cache holds."""


def refuse_ways(kwargs: Mapping[str, Any], default: Any) -> None:
    """Raise `ValueError` on arguments of `generate` that do not go with kept KV."""
    config = kwargs.get("generation_config") or default
    for name in WHOLE_PROMPT:
        if kwargs.get(name) is not None or getattr(config, name, None) is not None:
            raise ValueError(
                f"{name} makes generate() read the whole prompt again, whatever the KV cache "
                "holds; leave it out, or ask with `with method(model)` instead"
            )
    if kwargs.get("use_cache") is False:
        raise ValueError("use_cache=False, but kept keys and values are a KV cache; leave it out")
