"""LLaVA checkpoints of every layout as stock transformers models."""

from llava.model.llava_model import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)

__all__ = ["LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"]
