"""VISTA: steering towards what the picture added, and early layers' logits."""

from __future__ import annotations

from dataclasses import dataclass

from visiondrop.adapters.base import Geometry
from visiondrop.extensions.base import Extension
from visiondrop.extensions.steering import Inject, Scope, Steering
from visiondrop.reducer import Reducer


@dataclass
class Vista(Reducer):
    """VISTA (Li et al., "The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language
    Models via Visual Information Steering", ICML 2025, arXiv 2502.03628). No token is dropped; it
    composes with any other method, whose reduced picture is then what it steers towards.

    Steering: v_l = last-token state after layer l with the pictures minus without, from two passes
    over the prompt before the one that counts (so a prefill costs about twice as much and the text
    once more). For every state x: x' = |x| unit(unit(x) + strength (1 + max(0, -cos(x, v_l)))
    unit(v_l)). Logits: (1 - gamma) head(norm(h_L)) + gamma mean over early layers of head(h_l).

    Defaults follow descriptions of the released code (it steers the MLPs' outputs and leaves out
    the early layers' norm; the principal direction of its single pair of prompts is the pair's
    difference). Checked against loops written from this text, not against its figures. The paper:
    inject="residual", adaptive=False (x' = |x| unit(x + strength v_l)).

    Args:
        strength: of the steering (lambda); 0 for none.
        gamma: share of early logits; 0 for none.
        window: how many layers before the last one are early.
        logits_layers: (first, last) hidden states, counted as in transformers (i is the output of
            the i-th layer, 1-based) and both included, instead of `window`.
        inject: steer the "mlp" output (released) or the "residual" after the layer (paper).
        adaptive: the cosine-dependent weight on unit vectors.
        scope: "all" tokens, those of the prompt too (released), or "decode": the prompt's last
            token and what comes after it.
        early_norm: the final norm on early states, too.
    """

    name = "vista"
    title = "VISTA"
    paper = "arXiv 2502.03628"
    where = "decoding (no token dropped)"
    signal = "states with minus without the picture"
    flops_by_ledger = False  # two more passes over the prompt
    presets = {
        "captions": {"strength": 0.17, "gamma": 0.3, "logits_layers": (25, 30)},
        "yes-no": {"strength": 0.01, "gamma": 0.3, "logits_layers": (25, 30)},
    }

    strength: float = 0.1
    gamma: float = 0.3
    window: int = 5
    logits_layers: tuple[int, int] | None = None
    inject: Inject = "mlp"
    adaptive: bool = True
    scope: Scope = "all"
    early_norm: bool = False

    def __post_init__(self) -> None:
        if self.logits_layers is not None:
            self.logits_layers = tuple(self.logits_layers)  # type: ignore[assignment]

    def check(self, geometry: Geometry) -> None:
        """Refuse settings outside their range."""
        super().check(geometry)
        if self.strength < 0 or not 0 <= self.gamma <= 1:
            raise ValueError(
                f"vista: strength={self.strength}, gamma={self.gamma}; give a strength of at least "
                "0 and a gamma of 0 to 1"
            )
        early, most = self.early_layers(geometry.num_layers), geometry.num_layers - 1
        if self.gamma and not (len(early) and early[0] >= 0 and early[-1] < most):
            raise ValueError(
                f"vista: window={self.window}, logits_layers={self.logits_layers}; this model has "
                f"{most} layers before the last: give a window of 1 to {most}, or (first, last) "
                f"within 1 to {most}"
            )

    def early_layers(self, num_layers: int) -> range:
        """The early layers, 0-based."""
        if self.logits_layers is not None:
            first, last = self.logits_layers
            return range(first - 1, last)
        return range(num_layers - 1 - self.window, num_layers - 1)

    def extension(self) -> Extension:
        """The steering."""
        return Steering(
            self.name,
            self.strength,
            self.inject,
            self.adaptive,
            self.scope,
            self.gamma,
            self.early_layers,
            self.early_norm,
        )
