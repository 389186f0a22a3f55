"""CLIP's text side: how well patches of a LLaVA tower match a question, for methods that ask that.

LLaVA checkpoints carry only the vision half of CLIP. Its other half, with the projections of both
into one space, comes from a full CLIP checkpoint: a folder or a hub id, read with the stock
transformers classes in float32 and kept for the process.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from visiondrop.adapters.base import Geometry
from visiondrop.reducer import Reducer
from visiondrop.registry import working
from visiondrop.scoring import wide

__all__ = ["NEED", "TextEncoder", "check_text_encoder", "text_encoder"]

NEED = "text encoder"
"""What `Reducer.needs` calls it."""

EXAMPLE = "openai/clip-vit-large-patch14-336"


class TextEncoder(nn.Module):
    """Questions and patches in CLIP's common space of width P."""

    def __init__(self, path: str):
        super().__init__()
        clip = CLIPModel.from_pretrained(path, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.context: int = clip.config.text_config.max_position_embeddings
        self.text_model = clip.text_model
        self.text_projection = clip.text_projection
        self.post_layernorm: nn.LayerNorm = clip.vision_model.post_layernorm
        self.visual_projection: nn.Linear = clip.visual_projection
        self.eval().requires_grad_(False)

    def segments(self, question: str, truncate: bool = False) -> list[list[int]]:
        """Token ids, cut every `context` (77) tokens as they come, or truncated to one segment
        that ends with the end token.
        """
        if truncate:
            return [self.tokenizer(question, truncation=True, max_length=self.context)["input_ids"]]
        ids = self.tokenizer(question, verbose=False)["input_ids"]
        return [ids[i : i + self.context] for i in range(0, len(ids), self.context)]

    @torch.no_grad()
    def questions(self, questions: list[str], truncate: bool = False) -> list[Tensor]:
        """Text embeddings, not normalised: [s, P] in float32 for a question of s segments.

        A segment is pooled as the stock class pools: at its end token, and where it has none, at
        its first token (CDPruner's released code does so with all segments but the last).
        """
        each = [self.segments(question, truncate) for question in questions]
        flat = [segment for segments in each for segment in segments]
        device = self.text_projection.weight.device
        ids = torch.zeros(len(flat), self.context, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, segment in enumerate(flat):
            ids[row, : len(segment)] = torch.tensor(segment)
            mask[row, : len(segment)] = 1
        pooled = self.text_model(ids.to(device), attention_mask=mask.to(device)).pooler_output
        return list(self.text_projection(pooled).split([len(segments) for segments in each]))

    @torch.no_grad()
    def patches(self, features: Tensor) -> Tensor:
        """Patch embeddings, not normalised: [G, n, P] in float32 (float64 in a float64 model).

        Each patch goes through the layer norm and the projection that CLIP has for CLS.

        Args:
            features: [G, n, D], hidden states of a tower as wide as CLIP's own.
        """
        norm, linear = self.post_layernorm, self.visual_projection
        x = wide(features)
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
        x = nn.functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
        return nn.functional.linear(x, linear.weight.to(x.dtype))


@functools.cache
def _load(path: str, device: torch.device) -> TextEncoder:
    return TextEncoder(path).to(device)


def text_encoder(path: str, device: torch.device) -> TextEncoder:
    """The text side of the CLIP checkpoint at `path` on a device, loaded once."""
    return _load(path, device)


def check_text_encoder(method: Reducer, clip: str, geometry: Geometry) -> None:
    """Refuse, before any compute, a method whose CLIP checkpoint is missing or does not fit.

    Args:
        clip: folder or hub id; only its configuration is read here.

    Raises `ValueError` that names the remedy and the methods that work without.
    """
    others = f"methods that work without: {', '.join(working(geometry, NEED))}"
    if not geometry.has_cls:
        raise ValueError(
            f"{method.name!r} compares patches with the question in CLIP's space, but this model's "
            f"vision tower is no CLIP; {others}"
        )
    if not clip:
        raise ValueError(
            f"{method.name!r} needs a text encoder, which LLaVA checkpoints do not carry: give a "
            f'full CLIP checkpoint with --method-arg clip=PATH (in Python clip="{EXAMPLE}", the '
            f"CLIP of LLaVA-1.5); {others}"
        )
    try:
        config = AutoConfig.from_pretrained(clip)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{method.name!r}: no checkpoint can be read at clip={clip!r} ({reason}); give the "
            f'folder of a full CLIP checkpoint or a hub id such as "{EXAMPLE}"'
        ) from error
    if config.model_type != "clip":
        raise ValueError(
            f"{method.name!r}: clip={clip!r} is a {config.model_type!r} checkpoint without "
            f'CLIP\'s text half; give a full one such as "{EXAMPLE}"'
        )
    width = config.vision_config.hidden_size
    if geometry.tower_width not in (0, width):
        raise ValueError(
            f"{method.name!r}: the model's vision tower has width {geometry.tower_width}, the CLIP "
            f"checkpoint {clip!r} {width}: give the CLIP that the tower comes from"
        )
