"""A Llama decoder in loops over layers, heads, queries and keys, for one row without padding.

It shares no code with the library or with transformers' attention: an oracle for methods that
change the computation. Callbacks say what differs from the plain decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Pair = Callable[[int, int, int, int], bool]
Gain = Callable[[int, int, int], float]


def rms(norm: Any, x: Tensor) -> Tensor:
    """Root-mean-square norm of one vector."""
    return x / torch.sqrt((x * x).mean() + norm.variance_epsilon) * norm.weight


def turn(x: Tensor, position: int, theta: float) -> Tensor:
    """RoPE of one head's vector: coordinate m is paired with m + d/2."""
    half = len(x) // 2
    angles = torch.tensor([position / theta ** (2 * m / len(x)) for m in range(half)])
    c, s = angles.cos().to(x), angles.sin().to(x)
    first, second = x[:half], x[half:]
    return torch.cat([first * c - second * s, second * c + first * s])


def plain_pair(layer: int, head: int, i: int, j: int) -> bool:
    return j <= i


def ones(layer: int, head: int, i: int) -> float:
    return 1.0


@torch.no_grad()
def slow_decoder(
    model: Any,
    embeds: Tensor,
    *,
    sees: Pair = plain_pair,
    value_gain: Gain = ones,
    output_gain: Gain = ones,
    neurons: Callable[[int, int], int] | None = None,
    after_mlp: Callable[[int, int, Tensor], Tensor] | None = None,
    after_layer: Callable[[int, int, Tensor, Tensor], Tensor] | None = None,
    before_layer: Callable[[int, list[Tensor], Any], None] | None = None,
) -> list[list[Tensor]]:
    """Hidden states [layers + 1][N] of the row `embeds` [N, D] (the last without the final norm).

    Args:
        sees(layer, head, i, j): whether query i sees key j.
        value_gain(layer, head, j): factor on the value of token j.
        output_gain(layer, head, i): factor on a head's output for token i.
        neurons(layer, i): how many of the MLP's neurons token i passes.
        after_mlp(layer, i, y): replaces the MLP's output of token i.
        after_layer(layer, i, x, y): replaces the layer's output y, given its input x.
        before_layer(layer, states, heads): is shown the states and `heads(i)` -> queries, keys.
    """
    decoder = model.model.language_model
    config = decoder.config
    count, kv = config.num_attention_heads, config.num_key_value_heads
    theta = config.rope_parameters["rope_theta"]
    x = list(embeds.unbind(0))
    states = [x]
    for l, layer in enumerate(decoder.layers):  # noqa: E741
        attention = layer.self_attn
        size = attention.head_dim
        query, key, value = [], [], []
        for i, state in enumerate(x):
            y = rms(layer.input_layernorm, state)
            query.append([turn(q, i, theta) for q in attention.q_proj(y).view(count, size)])
            key.append([turn(k, i, theta) for k in attention.k_proj(y).view(kv, size)])
            value.append(list(attention.v_proj(y).view(kv, size)))
        if before_layer is not None:
            before_layer(l, x, (query, key))
        new = []
        for i, state in enumerate(x):
            heads = []
            for h in range(count):
                g = h * kv // count
                seen = [j for j in range(len(x)) if sees(l, h, i, j)]
                logits = torch.stack([key[j][g] for j in seen]) @ query[i][h] / math.sqrt(size)
                weights = torch.exp(logits - logits.max())
                weights = weights / weights.sum()
                gains = torch.tensor([value_gain(l, h, j) for j in seen]).to(weights)
                out = (weights * gains) @ torch.stack([value[j][g] for j in seen])
                heads.append(out * output_gain(l, h, i))
            middle = state + attention.o_proj(torch.cat(heads))
            y = rms(layer.post_attention_layernorm, middle)
            inner = torch.nn.functional.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y)
            if neurons is not None:
                inner = torch.cat([inner[: neurons(l, i)], 0 * inner[neurons(l, i) :]])
            y = layer.mlp.down_proj(inner)
            if after_mlp is not None:
                y = after_mlp(l, i, y)
            y = middle + y
            new.append(y if after_layer is None else after_layer(l, i, state, y))
        x = new
        states.append(x)
    return states


@torch.no_grad()
def unpruned_embeds(model: Any, row: list[int], image: Tensor) -> Tensor:
    """[N, D] embeddings of a prompt with one whole picture."""
    ids = torch.tensor(row)
    embeds = model.get_input_embeddings()(ids).clone()
    hidden = model.model.vision_tower(image[None], output_hidden_states=True).hidden_states[-2]
    patches = hidden[:, 1:] if hidden.shape[1] % 2 else hidden
    embeds[ids == model.config.image_token_id] = model.model.multi_modal_projector(patches)[0]
    return embeds


def slow_logits(model: Any, states: list[list[Tensor]]) -> Tensor:
    """Logits after the last token."""
    return model.lm_head(rms(model.model.language_model.norm, states[-1][-1]))
