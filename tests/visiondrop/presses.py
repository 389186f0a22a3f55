"""KV-cache compression after a prompt is read, as others do it: hooks on the attention layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from visiondrop.cache import cache_name

Score = Callable[[Any, Tensor, Tensor, dict[str, Any]], Tensor]


def key_norm(attention: Any, hidden: Tensor, keys: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Keys of small norm draw attention ("A Simple and Effective L2 Norm-Based Strategy for KV
    Cache Compression"): [B, H_kv, n], the higher the more worth keeping.
    """
    return -keys.norm(dim=-1)


def window_attention(
    attention: Any, hidden: Tensor, keys: Tensor, kwargs: dict[str, Any], window: int = 4
) -> Tensor:
    """Attention of the prompt's last tokens, which are kept themselves (SnapKV without pooling)."""
    cos, sin = (part[:, -window:] for part in kwargs["position_embeddings"])
    query = attention.q_proj(hidden[:, -window:]).unflatten(-1, (-1, attention.head_dim))
    query = apply_rotary_pos_emb(query.transpose(1, 2), query.transpose(1, 2), cos, sin)[0]
    batch, heads, n, size = keys.shape
    query = query.reshape(batch, heads, -1, size)  # the queries of a group of heads together
    score = (query @ keys.transpose(-1, -2) / size**0.5).softmax(-1).mean(2)
    score[..., n - window :] = 2
    return score


def kept(score: Tensor, share: float) -> Tensor:
    """[B, H_kv, k] columns of the highest scores, in their order."""
    return score.topk(max(1, int(score.shape[-1] * share)), -1).indices.sort(-1).values


@contextmanager
def cache_positions(model: Any) -> Iterator[None]:
    """Tell attention layers the columns of the new tokens, as older transformers did.

    kvpress 0.5.5 asks for them, and fails without on a stock model too.
    """

    def add(attention: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        layers = kwargs[cache_name(kwargs)].layers
        held = layers[attention.layer_idx].get_seq_length() if layers else 0
        return args, dict(kwargs, cache_position=torch.arange(held, held + hidden.shape[1]))

    layers = model.model.language_model.layers
    hooks = [one.self_attn.register_forward_pre_hook(add, with_kwargs=True) for one in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def press(model: Any, score: Score, share: Callable[[int], float]) -> Iterator[None]:
    """Within the block, layer l keeps `share(l)` of the entries of each prompt that is read."""

    def drop(attention: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        layer = kwargs[cache_name(kwargs)].layers[attention.layer_idx]
        if hidden.shape[1] == 1 or layer.keys.shape[2] > hidden.shape[1]:
            return  # goes on from a prompt
        index = kept(score(attention, hidden, layer.keys, kwargs), share(attention.layer_idx))
        index = index[..., None].expand(-1, -1, -1, layer.keys.shape[-1])
        layer.keys = layer.keys.gather(2, index)
        layer.values = layer.values.gather(2, index)

    layers = model.model.language_model.layers
    hooks = [one.self_attn.register_forward_hook(drop, with_kwargs=True) for one in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
