"""YOPO: visual tokens stay, the computation on them goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from visiondrop.adapters.base import Geometry
from visiondrop.extensions.base import Extension
from visiondrop.extensions.sparse_visual import HeadProbe, Skip, SparseVisual
from visiondrop.methods.controls import Full
from visiondrop.profiling import ModelSize
from visiondrop.reducer import Reducer


@dataclass
class Yopo(Reducer):
    """YOPO (Zhang et al., "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to
    See", arXiv 2410.06169).

    No token is dropped and, as released, nothing gets faster: what would be left out is computed
    and then hidden or set to zero (mask form). `visual_flops_share` counts what would remain.

    For the visual tokens: (1) j is seen by i only where both coordinates on the patch grid differ
    by at most (window - 1) / 2; (2) inactive heads give them nothing, and nobody gets anything from
    them there: out_i = sum_j m_j a_ij v_j, the softmax a not renormalised; (3) of the MLP's neurons
    the first `neurons` share is used; (4) beyond the first `layers` share of the decoder, as (2)
    for every head. The defaults are the settings of the released checkpoints, which were trained
    with them, except that no head is inactive: they come with a list measured on their own model
    ("headcut" 24 of 32, 30 of 40), for other models `calibrated` measures one.

    Checked against a loop over heads, queries and keys, not against the released code's figures.

    Args:
        window: side of the neighbourhood in patches, odd; None: visual tokens see each other
            as ever.
        causal: whether a visual token sees only earlier neighbours. As released it sees later ones,
            too: the window replaces the causal mask among visual tokens.
        neurons: share of MLP neurons, above 0.
        layers: share of decoder layers that compute for visual tokens.
        skip: what the other layers do: "unread" (released), or "frozen": visual tokens keep their
            states and are still read.
        inactive_heads: decoder layer -> key-value heads that are inactive (query heads that share
            keys and values go together).
    """

    name = "yopo"
    title = "YOPO"
    paper = "arXiv 2410.06169"
    where = "LLM, all layers (mask form)"
    signal = "neighbourhood, head activity"
    presets = {"released": {"window": 5, "neurons": 0.5, "layers": 0.5}}

    window: int | None = 5
    causal: bool = False
    neurons: float = 0.5
    layers: float = 0.5
    skip: Skip = "unread"
    inactive_heads: Mapping[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inactive_heads = {int(k): list(own) for k, own in self.inactive_heads.items()}

    def check(self, geometry: Geometry) -> None:
        """Refuse settings outside their range."""
        super().check(geometry)
        if self.window is not None and (self.window < 1 or self.window % 2 == 0):
            raise ValueError(f"yopo: window={self.window}; give an odd number from 1, or None")
        if self.window is not None and (geometry.crops or geometry.native):
            raise ValueError(
                "yopo: a window needs one patch grid, and pictures differ in theirs on this model; "
                "give window=None"
            )
        if not 0 < self.neurons <= 1 or not 0 <= self.layers <= 1:
            raise ValueError(
                f"yopo: neurons={self.neurons}, layers={self.layers}; give shares of 1, neurons > 0"
            )
        most = geometry.num_layers - 1
        if wrong := [layer for layer in self.inactive_heads if not 0 <= layer <= most]:
            raise ValueError(
                f"yopo: inactive_heads of layer {wrong[0]}; this model has layers 0 to {most}"
            )

    def computing_layers(self, num_layers: int) -> int:
        """How many layers, from the first, compute for visual tokens."""
        return int(self.layers * num_layers)

    def extension(self) -> Extension:
        """Masks and zeros."""
        return SparseVisual(
            self.name,
            self.window,
            self.causal,
            self.inactive_heads,
            self.neurons,
            self.layers,
            self.skip,
        )

    @classmethod
    def calibrated(
        cls,
        model: nn.Module,
        prompts: Iterable[Mapping[str, Any]],
        inactive: float = 0.75,
        **options: Any,
    ) -> Yopo:
        """The method with, in each layer, that share of heads inactive (rounded down) which look
        least at the pictures of `prompts`, each the arguments of one forward of `model`.
        """
        probe = _Probe()
        with probe(model), torch.no_grad():
            for prompt in prompts:
                model(**{"logits_to_keep": 1, **prompt})
            activity = probe.recorder.activity
        order = activity.argsort(dim=1, stable=True)[:, : int(inactive * activity.shape[1])]
        heads = {layer: sorted(own) for layer, own in enumerate(order.tolist()) if own}
        return cls(inactive_heads=heads, **options)

    def visual_flops_share(self, model: Any, tokens: int | None = None) -> float:
        """Share of the decoder's FLOPs on visual tokens that would remain, 0 to 1.

        Counted: projections, MLP and attention among each other of `tokens` visual tokens (default:
        a picture's). `model`: a model, its configuration or a `ModelSize`.
        """
        size = model if isinstance(model, ModelSize) else ModelSize.from_config(model)
        n = size.num_patches if tokens is None else tokens
        near = n if self.window is None else min(n, self.window**2)
        query, key = (h * size.head_dim for h in (size.num_heads, size.num_kv_heads))
        projections = 2 * n * size.width * (2 * query + 2 * key)
        mlp = 2 * n * size.width * 3 * size.mlp_width
        left = 0.0
        for layer in range(self.computing_layers(size.num_layers)):
            heads = 1 - len(self.inactive_heads.get(layer, ())) / size.num_kv_heads
            left += heads * (projections + 4 * n * near * query) + self.neurons * mlp
        if self.skip == "frozen":
            skipped = size.num_layers - self.computing_layers(size.num_layers)
            left += skipped * 2 * n * size.width * 2 * key
        return left / (size.num_layers * (projections + 4 * n * n * query + mlp))


class _Probe(Full):
    def __init__(self) -> None:
        self.recorder = HeadProbe()

    def extension(self) -> Extension:
        return self.recorder
