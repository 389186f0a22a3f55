"""The image processor of a checkpoint, without torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil

from llava.model.layout import read_json

_SETTINGS = (
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
)


def load_image_processor(folder: Path, config: Any) -> CLIPImageProcessorPil:
    """CLIP's processor with the folder's settings, else with CLIP's at the tower's resolution.

    LLaVA takes the tower's own processor for both kinds of picture (`pad` and cropped), so a
    LLaVA-NeXT processor's file is read for size, mean and deviation alone.
    """
    file = folder / "preprocessor_config.json"
    other = folder / "processor_config.json"
    settings: dict[str, Any] = {}
    if file.is_file():
        settings = read_json(file)
    elif other.is_file():
        settings = read_json(other).get("image_processor") or {}
    known = {key: settings[key] for key in _SETTINGS if settings.get(key) is not None}
    side = config.vision_config.image_size
    known.setdefault("size", {"shortest_edge": side})
    known.setdefault("crop_size", {"height": side, "width": side})
    return CLIPImageProcessorPil(**known)
