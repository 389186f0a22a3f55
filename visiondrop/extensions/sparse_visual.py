"""Less computation for visual tokens, in mask form: hooks on one model's decoder layers.

Everything is computed as before and then hidden or set to zero, so nothing gets faster; what would
be saved is counted by the method (`Yopo.visual_flops_share`).

- Window: visual tokens see of the visual tokens only their neighbours on the patch grid (mask of
  the prefill).
- Heads: an inactive head's values of visual tokens are zero, so no query gets anything from them
  (the softmax keeps their share, it is not renormalised), and the head gives nothing to visual
  tokens. As values are zero in the cache, too, decoding follows without a mask.
- Neurons: visual tokens pass only the first of the MLP's neurons.
- Layers beyond a share of them: values of all visual tokens are zero ("unread"), or visual tokens
  stay as they are and the others still read them ("frozen").
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from visiondrop.extensions.masking import (
    Columns,
    Hooked,
    columns_of,
    hidden_of,
    neighbourhood,
    refuse_maskless_attention,
    seen_by,
)
from visiondrop.scoring import expand_heads, wide

if TYPE_CHECKING:
    from visiondrop.run import Run

__all__ = ["HeadProbe", "Skip", "SparseVisual"]

Skip = Literal["unread", "frozen"]
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")


class SparseVisual(Hooked):
    """The hooks; see the module's text.

    Args:
        name: the method's, for messages.
        window: side of the neighbourhood in patches, odd; None hides nothing.
        causal: whether a visual token sees only the neighbours before it.
        inactive: decoder layer -> key-value heads that are inactive for visual tokens.
        neurons: share of the MLP's neurons that visual tokens pass.
        layers: share of the decoder layers, from the first, with visual computation.
        skip: what "without" means.
    """

    reads_prompt = False

    def __init__(
        self,
        name: str,
        window: int | None,
        causal: bool,
        inactive: Mapping[int, Sequence[int]],
        neurons: float,
        layers: float,
        skip: Skip,
    ) -> None:
        super().__init__()
        self.name, self.window, self.causal = name, window, causal
        self.inactive, self.neurons = inactive, neurons
        self.layers, self.skip = layers, skip
        self.reset()

    def reset(self) -> None:
        """Forget the last layout."""
        self.layout: tuple[Any, Columns, tuple[Tensor, Tensor] | None] | None = None
        self.entered: Tensor | None = None

    def check(self) -> None:
        """Heads exist, modules are where they are looked for and whole, masks are taken."""
        if self.mechanism.group is not None:
            raise ValueError(
                f"{self.name!r} under tensor parallelism is not supported: it switches off heads "
                "and neurons by their place in the whole layer, and each process holds a part; "
                "run it on a model that is not sharded"
            )
        if self.window is not None:
            refuse_maskless_attention(self.name, self.attention)
        heads = self.decoder.config.num_key_value_heads
        wrong = [h for own in self.inactive.values() for h in own if not 0 <= h < heads]
        if wrong:
            raise ValueError(
                f"{self.name!r}: inactive head {wrong[0]} where this model has {heads} key-value "
                f"heads; give 0 to {heads - 1} (heads that share keys and values go together)"
            )
        layer = self.decoder.layers[0]
        missing = [part for part in PARTS if not hasattr(layer.self_attn, part)]
        missing += [] if hasattr(layer.mlp, "down_proj") else ["down_proj"]
        if missing:
            raise ValueError(
                f"{self.name!r} needs decoder layers with {', '.join(PARTS)} and down_proj as in "
                f"Llama; {type(layer).__name__} has no {missing[0]}"
            )

    def set_hooks(self) -> None:
        """Only where something is to be done."""
        self.after(self.decoder, self.forget)
        computing = int(self.layers * len(self.decoder.layers))
        for index, layer in enumerate(self.decoder.layers):
            off = sorted(self.inactive.get(index, ()))
            skipped = index >= computing
            if self.window is not None:
                self.before(layer, self.hide_far)
            if skipped and self.skip == "frozen":
                self.before(layer, self.note_input)
                self.after(layer, self.restore)
            values = None if skipped and self.skip == "unread" else off
            if values != []:
                self.after(layer.self_attn.v_proj, functools.partial(self.no_values, values))
            if off:
                self.before(layer.self_attn.o_proj, functools.partial(self.no_output, off))
            if self.neurons < 1:
                self.before(layer.mlp.down_proj, self.no_neurons)

    # ------------------------------------------------------------------ what stands where

    def prefill(self) -> Run | None:
        """The present forward where it holds visual tokens."""
        run = self.mechanism.run
        return run if run is not None and run.prefill else None

    def columns(self, width: int, device: torch.device) -> Columns:
        """Of the present block, made once."""
        run = self.prefill()
        assert run is not None
        if self.layout is None or self.layout[0] is not run.rows:
            self.layout = (run.rows, columns_of(run.rows, width, device), None)
        columns = self.layout[1]
        if columns.picture.device != device:
            columns = Columns(columns.picture.to(device), columns.patch.to(device))
        return columns

    def seen(self, mask: Tensor | None, hidden: Tensor) -> Tensor:
        """[B, 1, S, S] bool: `mask` with the window among the visual tokens of each row."""
        width, device = hidden.shape[1], hidden.device
        columns = self.columns(width, device)
        assert self.layout is not None
        pairs = self.layout[2]
        if pairs is None:
            near = neighbourhood(columns, self.mechanism.geometry.grid, self.window)
            if self.causal:
                near = near.tril()
            pairs = (columns.visual[:, :, None] & columns.visual[:, None], near)
            self.layout = (*self.layout[:2], pairs)
        both, near = (t.to(device)[:, None] for t in pairs)
        # The mask may be another in each layer: other methods hide pairs, too.
        return torch.where(both, near, seen_by(mask, width, width, device))

    # ------------------------------------------------------------------ hooks

    def forget(self, *_: Any) -> None:
        """After the decoder: nothing outlives a forward."""
        self.memo = None
        self.reset()

    def hide_far(self, _module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before a layer: hide what is beyond the window."""
        if self.prefill() is None:
            return None
        hidden = hidden_of(args, kwargs)
        mask, run = kwargs.get("attention_mask"), self.mechanism.run
        assert run is not None
        return args, self.masked(kwargs, (run.rows, mask), lambda: self.seen(mask, hidden), hidden)

    def no_values(self, heads: list[int] | None, _module: Any, _args: Any, out: Tensor) -> Any:
        """After v_proj: [B, S, H_kv d], zero in these heads (None: all) of visual tokens."""
        return None if self.prefill() is None else self.silence(out, heads, 1)

    def no_output(self, heads: list[int], _module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before o_proj: [B, S, H d], zero in the query heads of these key-value heads."""
        if self.prefill() is None:
            return None
        config = self.decoder.config
        groups = config.num_attention_heads // config.num_key_value_heads
        return (self.silence(args[0], heads, groups), *args[1:]), kwargs

    def silence(self, states: Tensor, heads: list[int] | None, groups: int) -> Tensor:
        """`states` [B, S, H_kv groups d] with zeros in heads of visual tokens."""
        count = self.decoder.config.num_key_value_heads
        off = torch.zeros(count, dtype=torch.bool)
        off[slice(None) if heads is None else heads] = True
        off = off.repeat_interleave(states.shape[-1] // count).to(states.device)
        visual = self.columns(states.shape[1], states.device).visual
        return states.masked_fill(visual[..., None] & off, 0)

    def no_neurons(self, _module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before down_proj: [B, S, I], zero beyond the first neurons of visual tokens."""
        if self.prefill() is None:
            return None
        states: Tensor = args[0]
        kept = int(states.shape[-1] * self.neurons)
        beyond = torch.arange(states.shape[-1], device=states.device) >= kept
        visual = self.columns(states.shape[1], states.device).visual
        return (states.masked_fill(visual[..., None] & beyond, 0), *args[1:]), kwargs

    def note_input(self, _module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Before a frozen layer."""
        self.entered = hidden_of(args, kwargs) if self.prefill() is not None else None

    def restore(self, _module: Any, _args: Any, out: Any) -> Any:
        """After a frozen layer: visual tokens as they entered."""
        entered, self.entered = self.entered, None
        if entered is None:
            return None
        states = out[0] if isinstance(out, tuple) else out
        visual = self.columns(states.shape[1], states.device).visual
        states = torch.where(visual[..., None], entered.to(states.device), states)
        return (states, *out[1:]) if isinstance(out, tuple) else states


class HeadProbe(Hooked):
    """Measures how much each key-value head looks at the picture, over the prefills it sees.

    `activity` [layers, H_kv]: attention mass on visual tokens, mean over the query heads of the
    key-value head, the tokens from the picture's start on, and the rows seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total: list[Tensor] = []
        self.rows = 0

    def set_hooks(self) -> None:
        """One hook a layer."""
        self.total = [torch.zeros(0)] * len(self.decoder.layers)
        for index, layer in enumerate(self.decoder.layers):
            self.before(layer, functools.partial(self.measure, index))

    @property
    def activity(self) -> Tensor:
        """[layers, H_kv]."""
        if not self.rows:
            raise ValueError("no prompt with a picture was seen; give at least one")
        return torch.stack(self.total) / self.rows

    def measure(self, index: int, layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Before a layer: add up its rows."""
        run = self.mechanism.run
        if run is None or not run.prefill:
            return
        hidden, (cos, sin) = hidden_of(args, kwargs), kwargs["position_embeddings"]
        adapter, width = self.mechanism.adapter, hidden.shape[1]
        for r, row in enumerate(run.rows):
            if not row.segments:
                continue
            own = slice(width - row.length, None)
            states = [t.expand(hidden.shape[0], -1, -1)[r : r + 1, own] for t in (hidden, cos, sin)]
            count = row.length - row.segments[0].start
            query, key = adapter.attention_inputs(layer, *states, visual=count)
            mass = picture_mass(query, key, adapter.scaling(layer), row.segments)
            mass = mass.view(key.shape[1], -1).mean(1).cpu()
            self.total[index] = mass if not len(self.total[index]) else self.total[index] + mass
            self.rows += index == 0


def picture_mass(query: Tensor, key: Tensor, scale: float, segments: Sequence[Any]) -> Tensor:
    """[H] attention mass on the visual tokens of a row, causal, mean over the queries.

    Args:
        query: [1, H, r, d] of the last r tokens; key: [1, H_kv, N, d]; segments: the pictures'.
    """
    heads, count, total = query.shape[1], query.shape[2], key.shape[2]
    key = expand_heads(key, heads)
    visual = torch.zeros(total, dtype=torch.bool, device=key.device)
    for segment in segments:
        visual[segment.start : segment.start + segment.length] = True
    mass = torch.zeros(heads, device=key.device, dtype=wide(key[:0]).dtype)
    for first in range(0, count, 256):
        rows = query[0, :, first : first + 256]
        logits = wide(rows @ key[0].transpose(1, 2)) * scale
        places = torch.arange(total - count + first, total - count + first + rows.shape[1])
        later = torch.arange(total)[None] > places[:, None]
        seen = logits.masked_fill(later.to(key.device), float("-inf")).softmax(-1)
        mass += (seen * visual).sum((1, 2))
    return mass / count
