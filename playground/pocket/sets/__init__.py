"""The sample sets: one small module a benchmark, with its question form and its file formats.

``asked(scene, rng)`` gives a scene's questions in the benchmark's prompt form (for training, too);
``write(folder, ...)`` writes the official files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..asking import Asked
from ..scene import Scene
from . import gqa, mmbench, mme, mmvet, pope, seed, sqa, video, vizwiz, vqav2

SETS: dict[str, Callable[[Path], int]] = {
    "vqav2": vqav2.write,
    "vizwiz": vizwiz.write,
    "gqa": gqa.write,
    "pope": pope.write,
    "mme": mme.write,
    "mmbench": mmbench.write,
    "mmbench_cn": mmbench.write_cn,
    "sqa": sqa.write,
    "seed": seed.write,
    "mmvet": mmvet.write,
    "tgif": video.write_tgif,
    "msvd": video.write_msvd,
    "msrvtt": video.write_msrvtt,
}
"""Name -> writer of its files below a folder, which returns the number of questions."""

FORMS: dict[str, Callable[[Scene, np.random.Generator], list[Asked]]] = {
    "vqav2": vqav2.asked,
    "vizwiz": vizwiz.asked,
    "gqa": gqa.asked,
    "pope": pope.asked,
    "mme": mme.asked,
    "mmbench": mmbench.asked,
    "mmbench_cn": mmbench.asked_cn,
    "sqa": sqa.asked,
    "seed": seed.asked,
    "mmvet": mmvet.asked,
}
"""Name -> all questions that it would ask of any scene, as ``prompt`` and ``answer``."""
