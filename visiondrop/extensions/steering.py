"""Visual steering and early-layer logits: pure functions, and the hooks that carry them.

B rows; L decoder layers of width D. What a generation needs of its prompt is on its KV cache
(`PrunedMixin.state`), so that interleaved generations do not mix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from visiondrop.extensions.masking import Hooked
from visiondrop.layout import Row, pack, padding_mask
from visiondrop.run import row_positions
from visiondrop.scoring import wide

if TYPE_CHECKING:
    from visiondrop.run import Run

__all__ = ["Inject", "Scope", "Steering", "mix_states", "steer"]

Inject = Literal["mlp", "residual"]
Scope = Literal["all", "decode"]


def steer(states: Tensor, direction: Tensor, strength: float, adaptive: bool = True) -> Tensor:
    """Push states along a direction and restore their norms.

    adaptive: x' = |x| unit(unit(x) + strength (1 + max(0, -cos(x, v))) unit(v));
    otherwise x' = |x| unit(x + strength v).

    Args:
        states: [..., D]; direction: broadcastable to it; zero leaves the states as they are.
    """
    x, v = wide(states), wide(direction)
    norm = x.norm(dim=-1, keepdim=True)
    unit = functools.partial(torch.nn.functional.normalize, dim=-1)
    if adaptive:
        gain = 1 + (unit(x) * -unit(v)).sum(-1, keepdim=True).clamp(min=0)
        moved = unit(x) + strength * gain * unit(v)
    else:
        moved = x + strength * v
    return (norm * unit(moved)).to(states.dtype)


def mix_states(final: Tensor, early: Tensor, share: float) -> Tensor:
    """(1 - share) final + share early. As the head is linear, its logits are mixed in the same
    shares.
    """
    return ((1 - share) * wide(final) + share * wide(early)).to(final.dtype)


@dataclass
class Present:
    """What the running forward is steered by.

    Attributes:
        vectors: [B, L, D], None without steering; pictured: [B] bool, rows with a picture.
        columns: how many columns at the end of each row are steered, None for all.
        early: sum of the early layers' states so far, of the columns that are left.
    """

    vectors: Tensor | None
    pictured: Tensor
    columns: int | None
    early: Tensor | None = None


class Steering(Hooked):
    """Steering vectors from two passes over the prompt, with and without its pictures.

    Args:
        name: the method's, for the cache.
        strength: of the steering, 0 for none; inject: at the MLP's or at the layer's output.
        adaptive: see `steer`; scope: which tokens are steered, see `Vista`.
        share: of the early layers' logits, 0 for none.
        early: number of layers -> those whose outputs are averaged.
        normed: each through the final norm first.
    """

    def __init__(
        self,
        name: str,
        strength: float,
        inject: Inject,
        adaptive: bool,
        scope: Scope,
        share: float,
        early: Callable[[int], range],
        normed: bool,
    ) -> None:
        super().__init__()
        self.name, self.strength, self.inject, self.adaptive = name, strength, inject, adaptive
        self.scope, self.share, self.normed = scope, share, normed
        self.early_of, self.early = early, range(0)
        self.reset()

    def reset(self) -> None:
        """Forget the last forward."""
        self.now: Present | None = None
        self.probe: list[Tensor] | None = None

    def set_hooks(self) -> None:
        """Only where something is to be done."""
        if not self.strength and not self.share:
            return
        self.early = self.early_of(len(self.decoder.layers))
        self.before(self.decoder, self.begin)
        for index, layer in enumerate(self.decoder.layers):
            if self.strength:
                place = layer.mlp if self.inject == "mlp" else layer
                self.after(place, functools.partial(self.push, index))
                self.after(layer, self.note)
            if self.share and index in self.early:
                self.after(layer, self.gather)
        self.after(self.decoder, self.end)

    # ------------------------------------------------------------------ around a forward

    def begin(self, _module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the decoder: make the vectors of a prompt, or take those on the cache."""
        run, self.now = self.mechanism.run, None
        if run is None:
            return
        keys = f"{self.name}/vectors", f"{self.name}/pictured"
        if not run.prefill:
            state = run.cache.state
            self.now = Present(state.get(keys[0]), state[keys[1]], None)
            return
        embeds: Tensor = kwargs["inputs_embeds"]
        pictured = torch.tensor([row.visual > 0 for row in run.rows], device=embeds.device)
        vectors = None
        if self.strength:
            # Rounding must not become a direction where there is no picture.
            vectors = self.vectors(run, embeds) * pictured[:, None, None]
        self.now = Present(vectors, pictured, None if self.scope == "all" else 1 + run.tail)
        if run.cache is not None:
            run.cache.state[keys[1]] = pictured
            if vectors is not None:
                run.cache.state[keys[0]] = vectors

    def end(self, _module: Any, _args: Any, output: Any) -> Any:
        """After the decoder: mix the early states in."""
        now, self.now = self.now, None
        if now is None or now.early is None:
            return None
        final: Tensor = output[0]
        early = (now.early / len(self.early)).to(final.device)
        # A stage inside the LLM leaves fewer columns; the text after the last picture is at the
        # end of every row, and only its logits exist.
        final_mixed = mix_states(final, early[:, -final.shape[1] :], self.share)
        mixed = torch.where(now.pictured.to(final.device)[:, None, None], final_mixed, final)
        if isinstance(output, tuple):
            return (mixed, *output[1:])
        output.last_hidden_state = mixed
        return output

    # ------------------------------------------------------------------ hooks of layers

    def push(self, index: int, _module: Any, _args: Any, output: Any) -> Any:
        """After an MLP or a layer: steer its output."""
        now = self.now
        if now is None or now.vectors is None:
            return None
        states = first_of(output)
        direction = now.vectors[:, index, None].to(states.device)
        kept = 0 if now.columns is None else states.shape[1] - now.columns
        moved = steer(states[:, kept:], direction, self.strength, self.adaptive)
        return with_first(output, torch.cat([states[:, :kept], moved], 1) if kept else moved)

    def note(self, _module: Any, _args: Any, output: Any) -> None:
        """After a layer, in a pass that makes vectors: the last token's state."""
        if self.probe is not None:
            self.probe.append(wide(first_of(output)[:, -1]))

    def gather(self, _module: Any, _args: Any, output: Any) -> None:
        """After an early layer: add its state up."""
        now = self.now
        if now is None:
            return
        states = first_of(output)
        states = wide(self.decoder.norm(states) if self.normed else states)
        if now.early is not None:
            states = now.early[:, -states.shape[1] :].to(states.device) + states
        now.early = states

    # ------------------------------------------------------------------ the vectors

    def vectors(self, run: Run, embeds: Tensor) -> Tensor:
        """[B, L, D] last-token states after each layer, with the pictures minus without.

        Args:
            run: the prefill that is about to start; embeds: [B, S, D], its packed embeddings.
        """
        end = embeds.shape[1] - run.tail
        rows = [Row(row.length - run.tail, row.segments) for row in run.rows]
        prompt = embeds[:, :end]
        entry = None if run.entry is None else (run.entry[0][:, :end], rows)
        places = None if run.places is None else run.places[:, :end]
        seen = replace(
            run,
            cache=None,
            rows=rows,
            visual=[],
            lengths=[],
            by_picture=[],
            newlines=[],
            stages=[[] for _ in rows],
            padding=[],
            places=places,
            blocks=[],
            tail=0,
            entry=entry,
        )
        seen.note_layout(embeds.device)
        with_pictures = self.look(seen, prompt, seen.padding[0], row_positions(seen, embeds.device))

        batch, width, _ = prompt.shape
        index = []
        for r, row in enumerate(rows):
            text = np.ones(row.length, dtype=bool)
            for segment in row.segments:
                text[segment.start : segment.start + segment.length] = False
            index.append(r * width + width - row.length + np.flatnonzero(text))
        blind = [Row(len(own)) for own in index]
        padding = padding_mask(blind, embeds.device)
        texts = pack(prompt.reshape(batch * width, -1), index)
        steps = torch.arange(texts.shape[1], device=embeds.device).expand(batch, -1)
        if padding is not None:
            steps = (padding.long().cumsum(1) - 1).clamp(min=0)
        without = self.look(None, texts, padding, steps)
        return with_pictures - without

    @torch.no_grad()
    def look(
        self, run: Run | None, embeds: Tensor, padding: Tensor | None, steps: Tensor
    ) -> Tensor:
        """[B, L, D] last-token states of one pass without a cache; `run` carries its stages."""
        before, self.probe = self.mechanism.run, []
        self.mechanism.run = run
        if padding is None:
            # Without a cache, gaps in the positions would be taken for packed sequences.
            padding = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        try:
            # `forward`, not a call: the decoder's own hooks are those of the pass to come.
            self.decoder.forward(
                inputs_embeds=embeds, attention_mask=padding, position_ids=steps, use_cache=False
            )
            return torch.stack([state.to(embeds.device) for state in self.probe], 1)
        finally:
            self.mechanism.run, self.probe = before, None


def first_of(output: Any) -> Tensor:
    """The states in a module's output."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, states: Tensor) -> Any:
    """The output with other states."""
    return (states, *output[1:]) if isinstance(output, tuple) else states
