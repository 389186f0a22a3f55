"""A look into a model while it reads a prompt: a method that drops nothing.

It rides on the mechanism that carries every method, so that it sees what methods see, on every
model family and in padded batches, and no attention map is formed. What enters each layer is what
the unpruned model has there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from visiondrop import Geometry, Reducer
from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.tiles import PictureChoice, Tiles
from visiondrop.views import DecoderView, EncoderView

__all__ = ["Probe", "Reading"]

Read = Callable[[Any], Mapping[str, Tensor]]
"""Takes a view of G pictures (or tiles), gives tensors [G, ...] by name."""


@dataclass
class Reading:
    """What was read of one picture at one place.

    Attributes:
        place: "encoder", or "llm".
        layer: 0-based decoder layer that is about to run; None at the encoder.
        key: the picture's sample key.
        identity: [n] int64, patch id of each visual token, as in traces (a newline of an
            any-resolution picture has an id of its own, see `TileGrid.locate`).
        values: by name [...] on the host, floating point in float32 or float64.
    """

    place: str
    layer: int | None
    key: str
    identity: np.ndarray
    values: dict[str, np.ndarray]


@dataclass
class Probe(Reducer):
    """Calls functions on the views that methods get, and keeps every token.

    Args:
        layers: decoder layers before which `llm` is called, rising.
        llm: what to read of a `DecoderView`, with the row around the picture.
        encoder: what to read of an `EncoderView`; on any-resolution pictures its G are the tiles
            of one picture, the thumbnail first, and each value is stacked to [G n, ...] in the
            order of token ids.
        back: whether `llm` looks at `view.last`, the attention of the layer that just ran; no layer
            may then be 0.
    """

    name = "probe"
    inside_llm = reads_text = tiled = True
    tiles: ClassVar[Tiles] = Tiles(newlines="pool")  # type: ignore[misc]

    layers: tuple[int, ...] = ()
    llm: Read | None = field(default=None, repr=False)
    encoder: Read | None = field(default=None, repr=False)
    back: bool = False
    readings: list[Reading] = field(default_factory=list, repr=False)
    _crops: bool = field(default=False, repr=False)

    @property
    def before_llm(self) -> bool:  # type: ignore[override]
        """Where the encoder is looked at."""
        return self.encoder is not None

    @property
    def looks_back(self) -> bool:  # type: ignore[override]
        """As asked."""
        return self.back

    def check(self, geometry: Geometry) -> None:
        """Refuse layers that the decoder has not."""
        super().check(geometry)
        for layer in self.layers:
            if not int(self.back) <= layer < geometry.num_layers:
                raise ValueError(
                    f"layer {layer} cannot be looked at: this decoder has layers "
                    f"{int(self.back)} to {geometry.num_layers - 1}"
                )
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers {list(self.layers)} must rise, each once")
        self._crops = geometry.crops

    def to_dict(self) -> dict[str, Any]:
        """For JSON: where it looks."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "encoder": self.encoder is not None,
        }

    def take(self) -> list[Reading]:
        """What was read since the last call."""
        taken, self.readings[:] = list(self.readings), []
        return taken

    # ------------------------------------------------------------------ as the mechanism calls it

    def llm_layers(self) -> tuple[int, ...]:
        """Those asked for."""
        return self.layers if self.llm is not None else ()

    def llm_stage(self, view: DecoderView) -> None:
        """Read, keep everything."""
        assert self.llm is not None
        values = {name: _host(value) for name, value in self.llm(view).items()}
        identity = _host(view.identity)
        for i, key in enumerate(view.keys):
            own = {name: value[i] for name, value in values.items()}
            self.readings.append(Reading("llm", view.layer, key, identity[i], own))

    def encoder_stage(self, view: EncoderView) -> None:
        """Read a picture of one tile; tiles of others were read by `picture_stage`."""
        if self._crops:
            return
        assert self.encoder is not None
        values = {name: _host(value) for name, value in self.encoder(view).items()}
        for i, key in enumerate(view.keys):
            own = {name: value[i] for name, value in values.items()}
            self.readings.append(Reading("encoder", None, key, np.arange(view.num_patches), own))

    def picture_stage(
        self, view: EncoderView, grid: TileGrid, tiles: Tiles
    ) -> PictureChoice | None:
        """Read all tiles of a picture."""
        assert self.encoder is not None
        values = {name: _host(value) for name, value in self.encoder(view).items()}
        joined = {name: value.reshape(-1, *value.shape[2:]) for name, value in values.items()}
        identity = np.arange(grid.tiles * grid.side**2)
        key = view.keys[0].rpartition("/")[0]  # a tile's key is its picture's, and its number
        self.readings.append(Reading("encoder", None, key, identity, joined))
        return None


def _host(tensor: Tensor) -> np.ndarray:
    """On the host, what is below float32 in float32."""
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()
    return tensor.cpu().numpy()
