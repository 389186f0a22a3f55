"""The stock modules of the pocket model, run in the order that trains fastest on a CPU.

The arithmetic is that of ``LlavaForConditionalGeneration`` (a test compares them). Two things
differ: attention is spelled as two matrix products and a softmax, which on a CPU in bf16 is more
than twice as fast as fused attention at these sizes, and the packed text rows are attended apart
from the image rows, so that no work is spent on image rows looking at text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k' / sqrt(d) + mask) v for (b, heads, n, d); ``mask`` is additive or None."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores += mask
    return torch.softmax(scores, dim=-1, dtype=scores.dtype) @ v


BLOCKS = 4  # of rows, in which a long causal part is attended: later columns are left out
LONG = 768


def attend_causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """``attend`` under a causal ``mask`` (n, n)."""
    n = q.shape[2]
    if n < LONG or q.is_cuda:
        return attend(q, k, v, mask)
    step = -(-n // BLOCKS)
    parts = [(a, min(a + step, n)) for a in range(0, n, step)]
    return torch.cat(
        [attend(q[:, :, a:e], k[:, :, :e], v[:, :, :e], mask[a:e, :e]) for a, e in parts], dim=2
    )


def vision_features(tower: Any, pixels: Tensor, grid_ids: Tensor) -> Tensor:
    """(b, 1 + patches, width): hidden_states[-2] of a CLIP tower.

    ``grid_ids`` (b, patches) names the place of each patch on the tower's own grid, so that a
    smaller picture can be a window on it. The last layer, which LLaVA never reads, is not run.
    """
    emb = tower.embeddings
    x = emb.patch_embedding(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([emb.class_embedding.expand(x.shape[0], 1, -1).to(x.dtype), x], dim=1)
    where = torch.cat([torch.zeros_like(grid_ids[:, :1]), grid_ids + 1], dim=1)
    x = tower.pre_layrnorm(x + emb.position_embedding(where))
    b, n, width = x.shape
    for layer in tower.encoder.layers[:-1]:
        a = layer.self_attn
        y = layer.layer_norm1(x)
        q, k, v = (
            f(y).view(b, n, -1, a.head_dim).transpose(1, 2) for f in (a.q_proj, a.k_proj, a.v_proj)
        )
        x = x + a.out_proj(attend(q, k, v, None).transpose(1, 2).reshape(b, n, width))
        x = x + layer.mlp(layer.layer_norm2(x))
    return x


class Probe:
    """Watches where text rows look, at each of ``layers``, in heads ``first`` and ``first + 1``.

    rows: (b, r) text rows, counted behind the shared rows. ``seen`` collects, for each layer, the
    attention (b, 2, r, n) that these rows pay to all rows.
    """

    def __init__(self, rows: Tensor, layers: tuple[int, ...], first: int = 0) -> None:
        self.rows, self.layers, self.first = rows, layers, first
        self.seen: list[Tensor] = []

    def look(self, q: Tensor, k: Tensor, mask: Tensor, shared: int) -> None:
        first = min(self.first, q.shape[1] - 2)
        heads = slice(first, first + 2)
        at = self.rows[:, None, :, None]
        rows = q[:, heads, shared:].gather(2, at.expand(-1, 2, -1, q.shape[-1]))
        own = mask.gather(2, at.expand(-1, 1, -1, mask.shape[-1]))
        scores = (rows * q.shape[-1] ** -0.5) @ k[:, heads].transpose(-1, -2) + own
        self.seen.append(torch.softmax(scores.float(), dim=-1))


def decoder_states(
    decoder: Any, embeds: Tensor, positions: Tensor, segments: Tensor, shared: int,
    stride: int = 1, probes: tuple[Probe, ...] = (), blind: Tensor | None = None, prompt: int = 0,
    taps: dict[int, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """(b, n - shared, width): final states of the text rows of a Llama decoder.

    The first ``shared`` rows (prompt and picture) are causal among themselves; each row after
    them belongs to a segment of ``segments`` (b, n - shared), -1 for padding, and sees the shared
    rows and the earlier rows of its own segment. ``positions`` is (b, n). ``stride`` 2 leaves out
    every second layer, which is exact while these write zeros (see ``make_model``). Rows that are
    ``blind`` (b, n - shared) see the first ``prompt`` rows alone of the shared ones. ``taps`` gets
    the states (b, n, width) behind the layers that are its keys.
    """
    b, n, width = embeds.shape
    m = n - shared
    dev = embeds.device
    low = torch.bfloat16 if torch.is_autocast_enabled(dev.type) else embeds.dtype
    off = torch.finfo(low).min
    first = torch.full((shared, shared), off, dtype=low, device=dev).triu(1)
    own = (segments[:, None, :] == segments[:, :, None]).tril()
    text = torch.zeros(b, 1, m, n, dtype=low, device=dev)
    text[:, 0, :, shared:].masked_fill_(~own, off)
    if blind is not None:
        text[:, 0, :, prompt:shared].masked_fill_(blind[:, :, None], off)
    cos, sin = (t.to(low) for t in decoder.rotary_emb(embeds, positions))
    x = embeds
    for i, layer in list(enumerate(decoder.layers))[::stride]:
        a = layer.self_attn
        y = layer.input_layernorm(x)
        q, k, v = (
            f(y).view(b, n, -1, a.head_dim).transpose(1, 2) for f in (a.q_proj, a.k_proj, a.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        for probe in probes:
            if i in probe.layers:
                probe.look(q, k, text, shared)
        z = torch.cat(
            [
                attend_causal(q[:, :, :shared], k[:, :, :shared], v[:, :, :shared], first),
                attend(q[:, :, shared:], k, v, text),
            ],
            dim=2,
        )
        x = x + a.o_proj(z.transpose(1, 2).reshape(b, n, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        if taps is not None and i in taps:
            taps[i] = x
    return decoder.norm(x[:, shared:])
