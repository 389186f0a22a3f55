"""Model families: one small file each, found by the model's class."""

from __future__ import annotations

from typing import Any

from torch import nn

from visiondrop.adapters.base import Adapter, Geometry, TowerOutput
from visiondrop.adapters.internvl import InternVLAdapter
from visiondrop.adapters.llava import LlavaAdapter
from visiondrop.adapters.llava_next import LlavaNextAdapter
from visiondrop.adapters.llava_onevision import LlavaOnevisionAdapter
from visiondrop.adapters.qwen_vl import QwenVLAdapter
from visiondrop.adapters.video_llava import VideoLlavaAdapter

__all__ = ["ADAPTERS", "Adapter", "Geometry", "TowerOutput", "adapter_of", "geometry_of"]

ADAPTERS: tuple[Adapter, ...] = (
    LlavaAdapter(),
    LlavaNextAdapter(),
    QwenVLAdapter(),
    InternVLAdapter(),
    VideoLlavaAdapter(),
    LlavaOnevisionAdapter(),
)

_BY_MODEL_TYPE = {
    "llava": ADAPTERS[0],
    "llava_next": ADAPTERS[1],
    "qwen2_vl": ADAPTERS[2],
    "qwen2_5_vl": ADAPTERS[2],
    "internvl": ADAPTERS[3],
    "video_llava": ADAPTERS[4],
    "llava_onevision": ADAPTERS[5],
}


def known_families() -> str:
    """The supported classes, for messages."""
    return ", ".join(name for adapter in ADAPTERS for name in adapter.families)


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter of a model, by its class and base classes.

    Raises `TypeError` naming the families that are known.
    """
    names = {cls.__name__ for cls in type(model).__mro__}
    for adapter in ADAPTERS:
        if names & set(adapter.families):
            return adapter
    raise TypeError(
        f"{type(model).__name__} is of no known family; known: {known_families()}. CONTRIBUTING.md "
        "tells how to write an adapter"
    )


def geometry_of(model: Any) -> Geometry:
    """Sizes of a model, or of its configuration."""
    if isinstance(model, nn.Module):
        return adapter_of(model).geometry(model.config)
    adapter = _BY_MODEL_TYPE.get(getattr(model, "model_type", ""))
    if adapter is None:
        raise TypeError(
            f"a configuration of model_type {getattr(model, 'model_type', None)!r} is of no known "
            f"family; known: {known_families()}"
        )
    return adapter.geometry(model)
