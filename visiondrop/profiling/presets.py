"""Models by their sizes, published ones and one for CPUs, built with random weights or with none.

Speed, memory and FLOPs do not depend on what the weights are. So a model of 7 or 13 billion
parameters is measured without a download: its weights are one small random block over and over,
which takes seconds where as many draws take minutes. `weightless` models hold one number a
parameter; with `counting.SkipProducts` their FLOPs are counted without memory or arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

__all__ = ["PRESETS", "Preset", "noise_blocks", "random_model", "weightless_model"]

BLOCK = 65521  # prime: no row of a matrix repeats the row before it
VOCABULARY, IMAGE_TOKEN = 32064, 32000  # of the converted checkpoints


@dataclass(frozen=True)
class Preset:
    """A model as its cost depends on it.

    Attributes:
        anyres: LLaVA-NeXT, whose picture is a thumbnail and crops.
        size: (height, width) in pixels of the picture that is measured.
        patches: visual tokens of that picture, newlines apart; newlines: theirs.
        text_tokens: all other tokens of a prompt, newlines among them; 66 and 113 are what the
            figures of the VisionDrop paper (arXiv 2506.22283) imply.
        tower: (layers, width, MLP width, heads) of the vision tower, CLIP ViT-L/336's by default.
    """

    name: str
    anyres: bool
    layers: int
    width: int
    mlp_width: int
    heads: int
    tower: tuple[int, int, int, int] = (24, 1024, 4096, 16)

    @property
    def size(self) -> tuple[int, int]:
        """Any resolution: the largest square picture, four crops without padding."""
        return (672, 672) if self.anyres else (336, 336)

    @property
    def patches(self) -> int:
        """24 x 24 a tile."""
        return 5 * 576 if self.anyres else 576

    @property
    def newlines(self) -> int:
        """One closes each row of the 2 x 2 crops' 48 x 48 patches."""
        return 48 if self.anyres else 0

    @property
    def text_tokens(self) -> int:
        """As the paper's figures imply."""
        return 113 if self.anyres else 66

    def config(self, layers: int | None = None) -> Any:
        """The transformers configuration, with another number of decoder layers if one is given.

        Raises `ValueError` where it is not positive.
        """
        if layers is not None and layers < 1:
            raise ValueError(f"{layers} decoder layers: at least 1 is needed")
        depth, width, mlp_width, heads = self.tower
        vision = CLIPVisionConfig(
            hidden_size=width, intermediate_size=mlp_width, num_hidden_layers=depth,
            num_attention_heads=heads, image_size=336, patch_size=14, projection_dim=768,
        )  # fmt: skip
        text = LlamaConfig(
            hidden_size=self.width, intermediate_size=self.mlp_width,
            num_hidden_layers=layers or self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.heads, vocab_size=VOCABULARY, max_position_embeddings=4096,
        )  # fmt: skip
        kind = LlavaNextConfig if self.anyres else LlavaConfig
        return kind(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("llava-1.5-7b", False, 32, 4096, 11008, 32),
        Preset("llava-1.5-13b", False, 40, 5120, 13824, 40),
        Preset("llava-next-7b", True, 32, 4096, 11008, 32),
        Preset("llava-next-13b", True, 40, 5120, 13824, 40),
        Preset("llava-next-300m", True, 24, 1024, 2816, 16, (12, 512, 2048, 8)),
    )
}
"""LLaVA-1.5 and LLaVA-NeXT with Vicuna behind CLIP ViT-L/336. llava-next-300m is not published: a
decoder of 308 million parameters beside embeddings and head and a tower of 38 million, so that
LLaVA-NeXT's 2880 visual tokens can be timed on a CPU in minutes."""


def random_model(config: Any, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
    """A model of a configuration on a device, its weights noise scaled by 1 / sqrt(fan-in).

    Args:
        config: `LlavaConfig` or `LlavaNextConfig`.
    """
    blocks = noise_blocks(device)

    def noise(shape: torch.Size, parameter: str) -> Tensor:
        out = torch.empty(shape, dtype=dtype, device=device)
        if len(shape) < 2:  # norms and biases
            return out.fill_(0.0 if parameter.endswith("bias") else 1.0)
        fill_with_noise(out, blocks, float(shape[1:].numel()) ** -0.5)
        return out

    return _built(config, noise, device)


def weightless_model(config: Any) -> Any:
    """The same on the CPU in float32, without memory: every parameter is one number, expanded.

    Only for use inside `counting.SkipProducts`: what it computes means nothing.
    """
    return _built(config, lambda shape, _: torch.full((1,) * len(shape), 0.02).expand(shape), "cpu")


def noise_blocks(device: str | torch.device) -> Iterator[Tensor]:
    """Normal noise [BLOCK], endlessly, each time turned a little further."""
    generator = torch.Generator().manual_seed(0)
    twice = torch.randn(BLOCK, generator=generator).to(device).repeat(2)
    start = 0
    while True:
        yield twice[start : start + BLOCK]
        start = (start + 7919) % BLOCK


def fill_with_noise(out: Tensor, blocks: Iterator[Tensor], scale: float = 1.0) -> None:
    """Fill a dense tensor (strides in any order) with the next block, over and over."""
    flat, block = out.as_strided((out.numel(),), (1,)), next(blocks)
    block = block if scale == 1.0 else block * scale
    whole = len(flat) // BLOCK * BLOCK
    flat[:whole].view(-1, BLOCK).copy_(block)
    flat[whole:].copy_(block[: len(flat) - whole])


def _built(config: Any, make: Callable[[torch.Size, str], Tensor], device: Any) -> Any:
    anyres = isinstance(config, LlavaNextConfig)
    kind = LlavaNextForConditionalGeneration if anyres else LlavaForConditionalGeneration
    with torch.device("meta"):
        model = kind(config)
    for module in list(model.modules()):
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                made = make(parameter.shape, name)
                module._parameters[name] = nn.Parameter(made, requires_grad=False)
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RotaryEmbedding"):
                rotary: Any = type(child)
                with torch.device(device):
                    setattr(module, name, rotary(child.config))
        for name, buffer in list(module._buffers.items()):
            if name == "position_ids" and buffer is not None:
                module._buffers[name] = torch.arange(buffer.shape[-1], device=device)[None]
    if left := [name for name, tensor in model.named_buffers() if tensor.is_meta]:
        raise ValueError(f"{kind.__name__} has a buffer that no one fills here: {left[0]}")
    model.generation_config.eos_token_id = None  # as many new tokens as asked for
    model.generation_config.pad_token_id = 0
    return model.eval()
