"""Inhibition of weak text-to-image attention: pure functions, and the hooks that carry it.

B rows of S columns, left-padded. `t` is the number of columns at each row's end that are looked at:
those from the first picture's end on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visiondrop.extensions.masking import (
    Hooked,
    columns_of,
    hidden_of,
    refuse_maskless_attention,
    seen_by,
)
from visiondrop.scoring import expand_heads, wide

if TYPE_CHECKING:
    from visiondrop.run import Run

__all__ = ["Inhibition", "focus_scores", "least_focused"]


def focus_scores(attention: Tensor, text: Tensor) -> Tensor:
    """How much each text token looks at each column, itself or by way of the text it looks at:
    focus_ij = sum over text tokens k of a_ik a_kj.

    Args:
        attention: [B, t, S], rows of the last t columns, mean over heads.
        text: [B, t] bool, which of these are text tokens after a picture.

    Returns: [B, t, S].
    """
    last = attention[:, :, -attention.shape[1] :]
    return (last * text[:, None]) @ (attention * text[..., None])


def least_focused(focus: Tensor, candidates: Tensor, share: float) -> Tensor:
    """[B, t, S] bool: in each row the floor(share x n) of its n candidates with the lowest focus;
    among equals the earlier column.

    Args:
        focus: [B, t, S]; candidates: [B, t, S] bool; share: 0 to 1.
    """
    count = (candidates.sum(-1, dtype=torch.float64) * share).floor()
    order = focus.masked_fill(~candidates, float("inf")).sort(dim=-1, stable=True).indices
    rank = torch.empty_like(order)
    rank.scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    return candidates & (rank < count[..., None])


class Inhibition(Hooked):
    """Text tokens do not see the visual tokens of their lowest focus.

    The focus is computed before each layer of `layers` from that layer's attention over the prompt,
    and holds until the next of them (it is computed anew where a stage has changed the tokens).
    Generated tokens, and those of later turns, take over what the prompt's last token does not see.

    Args:
        name: the method's, for messages and the cache.
        layers: decoder layers, rising.
        share: of the visual tokens that a text token would see, how many it does not.
    """

    masks_columns = True

    def __init__(self, name: str, layers: Sequence[int], share: float) -> None:
        super().__init__()
        self.name, self.layers, self.share = name, tuple(layers), share
        self.reset()

    def reset(self) -> None:
        """Forget the last forward."""
        self.hidden: tuple[Run, Any, Tensor] | None = None

    def check(self) -> None:
        """Masks are taken."""
        refuse_maskless_attention(self.name, self.attention)

    def set_hooks(self) -> None:
        """On the layers from the first one on."""
        for index, layer in enumerate(self.decoder.layers):
            if self.layers and index >= self.layers[0]:
                self.before(layer, functools.partial(self.inhibit, index))
        self.after(self.decoder, self.forget)

    def forget(self, *_: Any) -> None:
        """After the decoder: nothing outlives a forward."""
        self.memo = None
        self.reset()

    def inhibit(self, index: int, layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before a layer: hide what is inhibited."""
        run = self.mechanism.run
        if run is None:
            return None
        states = hidden_of(args, kwargs)
        queries, mask, held = states.shape[1], kwargs.get("attention_mask"), 0
        if run.prefill:
            blind = self.blind(index, layer, states, kwargs["position_embeddings"], mask)
        else:
            held = run.cache.layers[index].get_seq_length()
            own = [name for name in sorted(run.cache.state) if name.startswith(f"{self.name}/")]
            blind = run.cache.state[[n for n in own if n <= self.key(index)][-1]]

        def left() -> Tensor:
            seen = seen_by(mask, queries, held + queries, states.device)
            pairs = blind if blind.dim() == 3 else blind[:, None]
            pairs = torch.nn.functional.pad(pairs, (0, seen.shape[-1] - pairs.shape[-1]))
            return seen & ~pairs.to(seen.device)[:, None]

        return args, self.masked(kwargs, (run, mask, blind, held), left, states)

    def key(self, index: int) -> str:
        """Name of the state that holds from layer `index` on."""
        return f"{self.name}/{index:04d}"

    def blind(
        self, index: int, layer: Any, states: Tensor, cos_sin: Any, mask: Tensor | None
    ) -> Tensor:
        """[B, S, S] bool of the present prefill: who does not see whom."""
        run = self.mechanism.run
        assert run is not None
        stale = self.hidden is None or self.hidden[0] is not run or self.hidden[1] is not run.rows
        if stale or index in self.layers:
            width = states.shape[1]
            seen = seen_by(mask, width, width, states.device)
            blind = self.choose(layer, states, cos_sin, seen)
            self.hidden = (run, run.rows, blind)
            if run.cache is not None:
                run.cache.state[self.key(index)] = blind[:, -1]
        assert self.hidden is not None
        return self.hidden[2]

    def choose(self, layer: Any, states: Tensor, cos_sin: Any, seen: Tensor) -> Tensor:
        """The inhibited pairs, from this layer's attention over the prompt."""
        run = self.mechanism.run
        assert run is not None
        batch, width, _ = states.shape
        end = width - run.tail
        visual = columns_of(run.rows, width, states.device).visual
        # Text before a row's first picture cannot see it: rows from its end on are enough.
        first = [end] * batch
        for r, row in enumerate(run.rows):
            if row.segments:
                picture = row.segments[0]
                first[r] = width - row.length + picture.start + picture.length
        start = min(min(first), end - 1)
        cos, sin = (t.expand(batch, -1, -1)[:, :end] for t in cos_sin)
        adapter, prompt = self.mechanism.adapter, states[:, :end]
        key = adapter.attention_part(layer, prompt, cos, sin, "key")
        rows = slice(start, end)
        query = adapter.attention_part(layer, prompt[:, rows], cos[:, rows], sin[:, rows], "query")
        logits = wide(query @ expand_heads(key, query.shape[1]).transpose(-1, -2))
        logits = logits * adapter.scaling(layer)
        may = seen[:, :, rows, :end]
        attention = logits.masked_fill(~may, torch.finfo(logits.dtype).min).softmax(-1).mean(1)

        places = torch.arange(start, end, device=states.device)
        after = places[None] >= torch.tensor(first, device=states.device)[:, None]
        text = after & ~visual[:, rows]
        candidates = may[:, 0] & visual[:, None, :end] & text[..., None]
        focus = focus_scores(attention, text)
        blind = torch.zeros(batch, width, width, dtype=torch.bool, device=states.device)
        blind[:, rows, :end] = least_focused(focus, candidates, self.share)
        blind[:, end:] = blind[:, end - 1 : end]
        return blind
