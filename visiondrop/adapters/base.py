"""Where the parts of a model family are: the only thing that differs between families.

An adapter names the tower, the projector and the decoder of a stock transformers class. It holds no
state and changes nothing.
"""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor, nn

from visiondrop.engine.engine import Engine
from visiondrop.parallel import all_heads

if TYPE_CHECKING:
    from visiondrop.encoder import Encoded, Encoding, Picture

__all__ = [
    "Adapter",
    "Geometry",
    "TowerOutput",
    "VisualInput",
    "first_projections",
    "following_projections",
    "layers_to_run",
]


@dataclass(frozen=True)
class Geometry:
    """Sizes that budgets depend on.

    Attributes:
        num_layers: decoder layers.
        num_patches: patches of one picture (576 for LLaVA-1.5).
        has_cls: whether the vision tower has a CLS token, which is not among `num_patches`.
        grid: (rows, columns) of patches.
        cls_in_prompt: whether the unpruned model feeds CLS to the decoder too.
        crops: whether a picture is encoded as several crops beside a thumbnail.
        single: whether nonetheless a picture may be one tile, as frames of a video are.
        tower_layers: layers of the vision tower that are run, 0 where features are put together
            from several.
        tower_width: size of its hidden states, 0 where unknown.
        cls_attention: whether CLS can be asked what matters though it is no token that could be
            kept.
        merged: whether one visual token is made of several patches (`merged_tokens.MergedView`);
            `num_patches` and `grid` are then those of tokens.
        native: whether each picture has a number of tokens of its own; `num_patches` is then the
            most that there can be, and `grid` about its shape.
        mrope: whether positions have several planes (`visiondrop.mrope`).
        packed: whether pictures are packed, and frames pooled, before anything can be dropped (see
            `packed_encoder`); "crops" and "merged" then, too, and videos of any length.
        frames: of a video, whose tokens `num_patches` then counts; 1 where the model sees none, or
            any number of them.
        frame_cls: whether the CLS tokens of frames are among these.
    """

    num_layers: int
    num_patches: int
    has_cls: bool
    grid: tuple[int, int]
    cls_in_prompt: bool = False
    crops: bool = False
    tower_layers: int = 0
    tower_width: int = 0
    cls_attention: bool = False
    merged: bool = False
    native: bool = False
    mrope: bool = False
    packed: bool = False
    frames: int = 1
    frame_cls: bool = False
    single: bool = False

    @property
    def lacks(self) -> set[str]:
        """What methods may need (`Reducer.needs`) and this model has not."""
        has = {
            "cls": self.has_cls or self.cls_attention or self.frame_cls,
            "crops": self.crops,
            "patches": not self.merged,
            "frames": not self.native,
        }
        return {need for need, there in has.items() if not there}


@dataclass
class TowerOutput:
    """What the vision tower gives for B pictures.

    Attributes:
        features: [B, T, D], the hidden states that the projector reads, CLS first where there is
            one.
        query, key: [B, H, T, d], projections of the layer that made them, with bias, unscaled.
        scale: 1 / sqrt(d).
    """

    features: Tensor
    query: Tensor
    key: Tensor
    scale: float


@dataclass(frozen=True)
class VisualInput:
    """One kind of visual input.

    Attributes:
        modality: "image" or "video": `get_{modality}_features` of the base model encodes it, and
            `mm_encoder_outputs` holds what was encoded before under this name.
        token_id: the placeholder in `input_ids` for one visual token.
        pixels: what the model calls the pixels; older: another name that it knows them by.
    """

    modality: str
    token_id: int
    pixels: str = "pixel_values"
    older: str = ""

    def given(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether pixels are among a forward's arguments."""
        return any(kwargs.get(name) is not None for name in (self.pixels, self.older))

    @property
    def function(self) -> str:
        """Of the base model."""
        return f"get_{self.modality}_features"


class Adapter(ABC):
    """One model family."""

    families: tuple[str, ...] = ()
    """Class names in transformers; subclasses of these classes count too."""

    engine: Engine | None = None
    """What records the tower, see `with_engine`."""

    def with_engine(self, engine: Engine | None) -> Self:
        """The same family, with a tower that `engine` records."""
        other = copy.copy(self)
        other.engine = engine
        return other

    @abstractmethod
    def geometry(self, config: Any) -> Geometry:
        """Sizes from the model's configuration."""

    @abstractmethod
    def base(self, model: nn.Module) -> nn.Module:
        """The module with `get_image_features`, whose forward scatters features into the prompt."""

    @abstractmethod
    def decoder(self, model: nn.Module) -> nn.Module:
        """The decoder without its head, with `layers` and `rotary_emb`."""

    @abstractmethod
    def encode(self, model: nn.Module, pixel_values: Tensor, **kwargs: Any) -> TowerOutput:
        """Run the vision tower up to the layer that is read."""

    @abstractmethod
    def tower(self, model: nn.Module, **kwargs: Any) -> tuple[nn.Module, int]:
        """The vision tower and how many of its layers are run to make the features."""

    @abstractmethod
    def project(self, model: nn.Module, features: Tensor) -> Tensor:
        """Vision features [..., D] to decoder embeddings [..., D']."""

    @abstractmethod
    def features(
        self, modality: str, model: nn.Module, encoding: Encoding, *args: Any, **kwargs: Any
    ) -> Encoded:
        """What `get_{modality}_features` gives, reduced.

        Args:
            args, kwargs: as the stock function takes them.
        """

    def extents(
        self, modality: str, model: nn.Module, *args: Any, **kwargs: Any
    ) -> list[tuple[int, int]]:
        """Of each picture the placeholders that it has in the prompt, and how many of these are no
        newlines, without encoding anything; for prompts whose pictures split one budget.

        Args:
            args, kwargs: as `get_{modality}_features` takes them.

        Raises `ValueError` where the family does not say it.
        """
        raise ValueError(
            f"pictures of a prompt cannot split a budget before the LLM on {type(model).__name__}: "
            "give each its own, on_pictures(budget='each')"
        )

    def with_prompt(
        self, model: nn.Module, encoding: Encoding, kinds: np.ndarray, rows: list[list[Picture]]
    ) -> list[list[Picture]]:
        """The pictures of each prompt once it is read, for families that know only then which
        features belong together.

        Args:
            kinds: [B, S], where the placeholders are (`prompt.kinds_of`).
            rows: what `features` gave, row by row.
        """
        return rows

    def visual_inputs(self, config: Any) -> tuple[VisualInput, ...]:
        """The kinds of visual input; most families have pictures alone."""
        return (VisualInput("image", self.image_token_id(config)),)

    def entries(self, config: Any, modality: str, output: Any) -> list[int]:
        """Feature rows of each picture or video in what the stock function gave."""
        return [rows.shape[0] for rows in output.pooler_output]

    def image_token_id(self, config: Any) -> int:
        """The placeholder in `input_ids` for one visual token of a picture."""
        return int(config.image_token_id)

    def attention_inputs(
        self, layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, *, visual: int
    ) -> tuple[Tensor, Tensor]:
        """Queries of the last `visual` tokens and keys of all, after the layer's norm and RoPE.

        Args:
            hidden: [G, N, D], what the layer is about to read; cos, sin: [G, N, d].

        Returns: query [G, H, visual, d], key [G, H_kv, N, d].
        """
        attention: Any = layer.self_attn
        normed = layer.input_layernorm(hidden)  # type: ignore[operator]
        before = hidden.shape[1] - visual
        key = self._heads(attention, "key", normed)
        query = self._heads(attention, "query", normed[:, before:])
        if before:  # rows that are cut off again: one rotation turns both
            query = nn.functional.pad(query, (0, 0, before, 0))
        query, key = rotation(attention)(query, key, cos, sin)
        return query[:, :, before:], key

    def attention_part(
        self, layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, part: str
    ) -> Tensor:
        """[G, H, N, d], the "query" or "key" (H_kv heads) of all given tokens, after norm and RoPE.

        Args:
            hidden: [G, N, D], what the layer reads; cos, sin: [G, N, d].
        """
        normed = layer.input_layernorm(hidden)  # type: ignore[operator]
        heads = self._heads(layer.self_attn, part, normed)
        # The function turns a pair; the other one of it has no heads.
        return rotation(layer.self_attn)(heads, heads[:, :0], cos, sin)[0]

    def _heads(self, attention: Any, part: str, normed: Tensor) -> Tensor:
        """[G, H, N, d], queries or keys before RoPE."""
        config = attention.config
        if part == "query":
            linear, count = attention.q_proj, config.num_attention_heads
        else:
            linear, count = attention.k_proj, config.num_key_value_heads
        # As rows: of the last tokens of [1, N, D], a batch by its strides, PyTorch makes a batched
        # product, for which it copies the weights (on a CPU in bfloat16).
        out = linear(normed.reshape(-1, normed.shape[-1])).unflatten(0, normed.shape[:2])
        return all_heads(linear, out, count, attention.head_dim)

    def scaling(self, layer: nn.Module) -> float:
        """1 / sqrt(d) of a decoder layer's attention."""
        return float(layer.self_attn.scaling)  # type: ignore[union-attr,arg-type]


def rotation(attention: Any) -> Callable[..., Any]:
    """The family's RoPE: (query, key, cos, sin) -> (query, key)."""
    rotate: Callable[..., Any] = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    return rotate


def capture_projection(module: nn.Module, store: dict[str, Tensor], name: str) -> Any:
    """Keep the next output of a linear layer in `store[name]`; returns the hook's handle."""

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        store[name] = output

    return module.register_forward_hook(hook)


def tower_heads(attention: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, ...] of a tower layer's query and key projections as heads, [B, H, T, d]."""
    sizes = attention.config.num_attention_heads, attention.head_dim
    return all_heads(attention.q_proj, query, *sizes), all_heads(attention.k_proj, key, *sizes)


def following_projections(tower: Any, num_layers: int, features: Tensor) -> tuple[Tensor, Tensor]:
    """(query, key), [B, H, T, d] each, of the CLIP or SigLIP layer that reads `features`, which are
    the output of the first `num_layers` layers; with bias, unscaled.

    Raises `ValueError` where no layer follows.
    """
    layers = tower.encoder.layers
    if num_layers >= len(layers):
        raise ValueError(
            f"the features are the output of the tower's last layer ({num_layers} of "
            f"{len(layers)}); this method reads the attention of the layer after them"
        )
    attention = layers[num_layers].self_attn
    normed = layers[num_layers].layer_norm1(features)
    return tower_heads(attention, attention.q_proj(normed), attention.k_proj(normed))


def first_projections(tower: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """(query, key), [B, H, T, d] each, of the first layer of a CLIP or SigLIP tower; with bias,
    unscaled. Nothing after them is computed.
    """
    hidden = tower.embeddings(pixel_values)
    if hasattr(tower, "pre_layrnorm"):
        hidden = tower.pre_layrnorm(hidden)
    layer = tower.encoder.layers[0]
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    return tower_heads(attention, attention.q_proj(normed), attention.k_proj(normed))


def layers_to_run(index: int, depth: int) -> int:
    """How many tower layers make hidden state `index` of `depth` + 1 (0 is the embeddings)."""
    run = index if index >= 0 else depth + 1 + index
    if not 1 <= run <= depth:
        raise ValueError(
            f"vision_feature_layer={index} reads no layer's output of a tower with {depth} layers"
        )
    return run
