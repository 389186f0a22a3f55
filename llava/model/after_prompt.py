"""Logits processors and stopping criteria that see the new tokens only.

LLaVA hands its language model embeddings, so that nothing in generation ever sees a prompt's ids.
Here the prompt has ids, hundreds of them placeholders that may lie past the vocabulary: counting
them would penalise or forbid a token that is no token.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)


class _ProcessorAfterPrompt(LogitsProcessor):
    def __init__(self, inner: Any, length: int) -> None:
        self.inner, self.length = inner, length

    # transformers reads this signature and takes every further name for a required argument.
    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.inner(input_ids[:, self.length :], scores)


class _CriterionAfterPrompt(StoppingCriteria):
    def __init__(self, inner: Any, length: int) -> None:
        self.inner, self.length = inner, length

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return self.inner(input_ids[:, self.length :], scores, **kwargs)


class _StreamerAfterPrompt:
    """Shows a streamer an empty prompt, as LLaVA does."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.started = inner, False

    def put(self, value: Tensor) -> None:
        self.inner.put(value if self.started else value[..., :0])
        self.started = True

    def end(self) -> None:
        self.inner.end()


def apply_after_prompt(kwargs: dict[str, Any], default: GenerationConfig, length: int) -> None:
    """Changes generate()'s `kwargs` in place so that a prompt of `length` ids is left out."""
    config = kwargs.get("generation_config") or default

    def take(name: str, neutral: float) -> Any:
        value = kwargs.get(name)
        if value is None:
            value = getattr(config, name, None)
        if value is None or value == neutral:
            return None
        kwargs[name] = neutral  # the stock processor is then not made
        return value

    own: list[Any] = []
    penalty = take("repetition_penalty", 1.0)
    if penalty is not None:
        own.append(RepetitionPenaltyLogitsProcessor(float(penalty)))
    ngram = take("no_repeat_ngram_size", 0)
    if ngram is not None:
        own.append(NoRepeatNGramLogitsProcessor(int(ngram)))
    processors = [*own, *(kwargs.get("logits_processor") or [])]
    if processors:
        kwargs["logits_processor"] = LogitsProcessorList(
            _ProcessorAfterPrompt(processor, length) for processor in processors
        )
    if kwargs.get("stopping_criteria"):
        kwargs["stopping_criteria"] = StoppingCriteriaList(
            _CriterionAfterPrompt(criterion, length) for criterion in kwargs["stopping_criteria"]
        )
    if kwargs.get("streamer") is not None:
        kwargs["streamer"] = _StreamerAfterPrompt(kwargs["streamer"])
