"""VisionDrop and other training-free methods of visual-token reduction on stock transformers
models.

from visiondrop import VisionDrop

method = VisionDrop.from_average(64, num_layers=32)
with method(model) as trace:
    model.generate(...)
"""

from visiondrop.adapters import Geometry, geometry_of
from visiondrop.chat import Chat
from visiondrop.composed import Composed
from visiondrop.image_cache import ImageCache
from visiondrop.merging import Reduction
from visiondrop.methods import METHODS, Full, Random, Uniform, VisionDrop, build_method
from visiondrop.reducer import Reducer
from visiondrop.session import Session
from visiondrop.tower_cache import TowerCache
from visiondrop.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Chat",
    "Composed",
    "Full",
    "Geometry",
    "ImageCache",
    "Random",
    "Reducer",
    "Reduction",
    "Session",
    "TowerCache",
    "Trace",
    "Uniform",
    "VisionDrop",
    "build_method",
    "geometry_of",
]
