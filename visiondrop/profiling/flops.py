"""FLOPs of a whole-model prefill, and bytes of its KV cache, by formula.

A multiply-add is two FLOPs. Matrix products and attention are counted; norms, activations, softmax
and RoPE are not (under 1 %). Attention is counted over the full square, causal or not, as
``torch.utils.flop_counter`` and the papers of this field do. What a method spends on choosing
tokens is not counted either: ``benchmarks/overhead.py`` times it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelSize:
    """The sizes that a LLaVA-shaped model's cost depends on.

    Vision tower: ``vision_layers`` blocks of ``vision_width`` over ``num_patches`` patches and,
    with ``has_cls``, a CLS token; ``vision_layers_read`` of them produce the features that the
    projector reads. The projector has two layers. The decoder is Llama-shaped: ``num_heads`` query
    heads, ``num_kv_heads`` key and value heads, a gated MLP of three matrices.
    """

    vision_layers: int
    vision_layers_read: int
    vision_width: int
    vision_mlp_width: int
    num_patches: int
    patch_values: int  # pixels x channels of one patch
    has_cls: bool
    projector_in: int  # vision width, times the number of layers that are concatenated
    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @classmethod
    def from_config(cls, config: Any) -> ModelSize:
        """Sizes of a Hugging Face config with a CLIP or SigLIP tower and a Llama-shaped decoder.

        Args:
            config: ``LlavaConfig``, ``LlavaNextConfig`` or one of their shape (``vision_config``,
                ``text_config``, ``vision_feature_layer``), or a model that carries one.

        Raises:
            ValueError: the config is of another shape; the message says in what.
        """
        config = getattr(config, "config", config)
        vision = getattr(config, "vision_config", None)
        text = getattr(config, "text_config", None)
        if vision is None or text is None:
            raise ValueError(
                f"cannot count FLOPs of {type(config).__name__}: it has no vision_config and "
                "text_config; pass a ModelSize with the sizes instead"
            )
        if not str(vision.model_type).startswith(("clip", "siglip")):
            raise ValueError(
                f"cannot count FLOPs of {type(config).__name__}: its vision tower is "
                f"{vision.model_type!r}, and the formula is for CLIP and SigLIP; pass a ModelSize "
                "with the sizes instead"
            )
        layers = vision.num_hidden_layers
        read = getattr(config, "vision_feature_layer", -2)
        indices = [read] if isinstance(read, int) else list(read)
        heads = text.num_attention_heads
        return cls(
            vision_layers=layers,
            # hidden_states[0] is the embedding, so index i has passed through i layers
            vision_layers_read=max(i if i >= 0 else layers + 1 + i for i in indices),
            vision_width=vision.hidden_size,
            vision_mlp_width=vision.intermediate_size,
            num_patches=(vision.image_size // vision.patch_size) ** 2,
            patch_values=vision.patch_size**2 * getattr(vision, "num_channels", 3),
            has_cls=not vision.model_type.startswith("siglip"),
            projector_in=vision.hidden_size * len(indices),
            num_layers=text.num_hidden_layers,
            width=text.hidden_size,
            mlp_width=text.intermediate_size,
            num_heads=heads,
            num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocab_size=text.vocab_size,
        )


@dataclass(frozen=True)
class Flops:
    """FLOPs of one prefill, by part."""

    tower: float
    projector: float
    decoder: float
    lm_head: float

    @property
    def total(self) -> float:
        """Sum of the four parts."""
        return self.tower + self.projector + self.decoder + self.lm_head

    def to_dict(self) -> dict[str, float]:
        """The parts and their total, for a result file."""
        parts = ("tower", "projector", "decoder", "lm_head", "total")
        return {part: float(getattr(self, part)) for part in parts}


def prefill_flops(
    config: Any,
    visual_tokens_per_layer: Sequence[int],
    text_tokens: int,
    *,
    projected_tokens: int | None = None,
    tiles: int = 1,
    like_paper: bool = False,
) -> Flops:
    """FLOPs of the prefill of one sample.

    Args:
        config: a ``ModelSize``, or what ``ModelSize.from_config`` takes.
        visual_tokens_per_layer: visual tokens that each decoder layer sees, one number a layer
            (a trace's ``tokens_per_layer``, or a method's ``ledger``).
        text_tokens: all other tokens of the sequence (system prompt, question; newline tokens
            where the ledger does not count them, as a trace's does).
        projected_tokens: tokens that pass the projector; by default those that the first decoder
            layer sees. A method that chooses after the projector projects all; tiles' padding is
            projected where a picture stays whole; newlines are not. A trace says it
            (``SampleTrace.projected``).
        tiles: pictures or tiles that pass the vision tower (``SampleTrace.tiles``).
        like_paper: count as the VisionDrop paper (arXiv 2506.22283) does: every layer of the tower,
            also the last one, which LLaVA never reads, and the LM head over all positions. The
            default counts what runs under a method: the tower up to the layer that is read, the LM
            head at the last position.

    Returns:
        FLOPs of tower, projector, decoder and LM head, and their ``total``.

    Raises:
        ValueError: a count is negative, or the ledger's length is not the number of layers.
    """
    size = config if isinstance(config, ModelSize) else ModelSize.from_config(config)
    ledger = list(visual_tokens_per_layer)
    _check(size, ledger)
    projected = ledger[0] if projected_tokens is None else projected_tokens
    counts = {"text_tokens": text_tokens, "projected_tokens": projected, "tiles": tiles}
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} = {value}: a count cannot be negative")

    tower_layers = size.vision_layers if like_paper else size.vision_layers_read
    sequence = [visual + text_tokens for visual in ledger]
    return Flops(
        tower=tiles * _tower_flops(size, tower_layers),
        projector=2 * projected * (size.projector_in * size.width + size.width**2),
        decoder=sum(_decoder_layer_flops(size, tokens) for tokens in sequence),
        lm_head=2 * size.width * size.vocab_size * (sequence[-1] if like_paper else 1),
    )


def kv_bytes(config: Any, tokens_per_layer: Sequence[int], dtype_bytes: int) -> int:
    """Bytes of keys and values that one sample's cache holds.

    Args:
        config: a ``ModelSize``, or what ``ModelSize.from_config`` takes.
        tokens_per_layer: tokens (visual and text) that each decoder layer caches.
        dtype_bytes: bytes of one number: 2 for fp16 and bf16, 4 for fp32.
    """
    return sum(kv_bytes_by_layer(config, tokens_per_layer, dtype_bytes))


def kv_bytes_by_layer(config: Any, tokens_per_layer: Sequence[int], dtype_bytes: int) -> list[int]:
    """The same layer by layer."""
    size = config if isinstance(config, ModelSize) else ModelSize.from_config(config)
    ledger = list(tokens_per_layer)
    _check(size, ledger)
    return [2 * size.num_kv_heads * size.head_dim * dtype_bytes * tokens for tokens in ledger]


def _check(size: ModelSize, ledger: list[int]) -> None:
    if len(ledger) != size.num_layers:
        raise ValueError(
            f"{len(ledger)} token counts for a decoder of {size.num_layers} layers: give one count "
            "a layer"
        )
    if min(ledger) < 0:
        raise ValueError(f"a token count cannot be negative: {min(ledger)}")


def _tower_flops(size: ModelSize, layers: int) -> int:
    """One tile: patch embedding and ``layers`` transformer blocks (4 square projections, 2 MLP)."""
    tokens = size.num_patches + size.has_cls
    width = size.vision_width
    embedding = 2 * size.num_patches * size.patch_values * width
    weights = 4 * width**2 + 2 * width * size.vision_mlp_width
    return embedding + layers * (2 * tokens * weights + 4 * tokens**2 * width)


def _decoder_layer_flops(size: ModelSize, tokens: int) -> int:
    """One Llama layer over ``tokens`` positions: q, k, v, o, gated MLP, q k^T and its use on v."""
    queries = size.num_heads * size.head_dim
    keys = size.num_kv_heads * size.head_dim
    weights = size.width * (2 * queries + 2 * keys + 3 * size.mlp_width)
    return 2 * tokens * weights + 4 * tokens**2 * queries
