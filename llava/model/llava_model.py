"""Stock LLaVA models that also take LLaVA's own arguments: -200 in the ids, and `images`.

State, saving and arithmetic are the stock classes'. The classes keep the stock classes' names,
because `save_pretrained` writes the name into `config.json`, and what is saved here must load as
the stock class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.generation.utils import GenerationMixin
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.after_prompt import apply_after_prompt
from llava.model.patch_merge import patch_merge, set_packing
from llava.model.prompt import ExpandedPrompt, Ids, count_markers, expand_prompt, split_rows

Images = Tensor | Sequence[Tensor]


def flatten_images(images: Images | None) -> list[Tensor]:
    """Pictures in reading order, each `[3, H, W]` or, cut into tiles, `[tiles, 3, H, W]`.

    A list may hold one list of pictures per row; None is no picture.
    """
    if images is None:
        return []
    if isinstance(images, Tensor):
        if images.dim() == 3:
            return [images]
        if images.dim() in (4, 5):
            return list(images)
        raise ValueError(
            f"images must be [n, 3, H, W] (or [n, tiles, 3, H, W]) or a list of pictures, "
            f"but have shape {tuple(images.shape)}"
        )
    pictures: list[Tensor] = []
    for item in images:
        if isinstance(item, Tensor) and item.dim() in (3, 4):
            pictures.append(item)
        else:
            pictures.extend(flatten_images(item))
    return pictures


def _clamp_ids(module: nn.Embedding, args: tuple[Any, ...]) -> tuple[Any, ...]:
    ids, *rest = args
    return (ids.clamp(max=module.weight.shape[0] - 1), *rest)


def _expand_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook: `model(ids with -200, images=...)` becomes a stock call."""
    if kwargs.get("images") is None:
        kwargs.pop("images", None)
        return args, kwargs
    if "pixel_values" in kwargs:
        raise ValueError("give either images (LLaVA) or pixel_values (transformers), not both")
    ids, *rest = args or (kwargs.pop("input_ids"),)
    if rest:
        raise ValueError("with images, give input_ids first and everything else by keyword")
    labels = kwargs.pop("labels", None)
    expanded, pictures = module.expand(
        ids, kwargs.pop("images"), kwargs.pop("image_sizes", None),
        kwargs.pop("attention_mask", None), labels,
    )  # fmt: skip
    kwargs.update(pictures, input_ids=expanded.input_ids, attention_mask=expanded.attention_mask)
    if labels is not None:
        kwargs["labels"] = expanded.labels
    return (), kwargs


class LlavaCalls(GenerationMixin):
    """LLaVA's way of calling, for a stock class whose placeholder id is `placeholder_id`."""

    # What the stock class, of which this is a part, has.
    config: Any
    model: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.register_forward_pre_hook(_expand_call, with_kwargs=True)
        self.guard_embeddings()

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: saved and published weights take the stock class's renamings."""
        return False

    @property
    def placeholder_id(self) -> int:
        """The id that stands for one visual token."""
        return int(self.config.image_token_id)

    @property
    def tower(self) -> nn.Module:
        """What encodes the pictures."""
        tower: nn.Module = self.model.vision_tower
        return tower

    def guard_embeddings(self) -> None:
        """Lets the embedding look up a placeholder id that lies past its table.

        Original checkpoints have no image token (vocabulary 32000); the id used is one past the
        table, and what it looks up is overwritten by the picture's features. Call it again after
        `resize_token_embeddings`.
        """
        table = self.get_input_embeddings()
        handle = getattr(table, "_placeholder_guard", None)
        if handle is not None:
            handle.remove()
            table._placeholder_guard = None
        if self.placeholder_id >= table.weight.shape[0]:
            table._placeholder_guard = table.register_forward_pre_hook(_clamp_ids)

    def picture_inputs(
        self, pictures: list[Tensor], image_sizes: Any
    ) -> tuple[list[int], dict[str, Any]]:
        """Visual tokens of each picture, and the stock model's picture arguments."""
        raise NotImplementedError

    def expand(
        self,
        ids: Ids,
        images: Images | None,
        image_sizes: Any = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[ExpandedPrompt, dict[str, Any]]:
        """LLaVA's arguments as a stock model's: left-padded ids and picture arguments."""
        device = self.get_input_embeddings().weight.device
        if device.type == "meta":  # offloaded by accelerate, which moves inputs itself
            device = torch.device("cpu")
        rows = [row.to(device) for row in split_rows(ids, attention_mask)]
        label_rows = None
        if labels is not None:
            label_rows = [row.to(device) for row in split_rows(labels, attention_mask)]
        pictures = flatten_images(images)
        wanted = count_markers(rows)
        if wanted != len(pictures):
            raise ValueError(
                f"the prompts hold {wanted} picture marker(s) ({IMAGE_TOKEN_INDEX}) but "
                f"{len(pictures)} picture(s) were given; give one picture per marker, in reading "
                "order over the batch"
            )
        counts, inputs = self.picture_inputs(pictures, image_sizes) if pictures else ([], {})
        expanded = expand_prompt(rows, counts, self.placeholder_id, self._pad_id(), label_rows)
        return expanded, inputs

    def leave_prompt_out(self, kwargs: dict[str, Any], length: int) -> None:
        """Change the arguments of a stock `generate` so that processors, criteria and streamer see
        nothing of a prompt of `length` ids, as LLaVA has it.
        """
        apply_after_prompt(kwargs, self.generation_config, length)

    def _pad_id(self) -> int:
        pad = self.generation_config.pad_token_id
        if pad is None or pad == self.placeholder_id or pad < 0:
            return 0
        return int(pad)

    def _tower_like(self, pictures: Tensor) -> Tensor:
        """On the vision tower's device and in its floating type (also where it is quantised)."""
        weight = next(p for p in self.tower.parameters() if p.is_floating_point())
        device = weight.device if weight.device.type != "meta" else pictures.device
        return pictures.to(device=device, dtype=weight.dtype)

    @torch.no_grad()
    def generate(
        self,
        inputs: Ids | None = None,
        images: Images | None = None,
        image_sizes: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answers prompts, the way LLaVA's `generate` is called.

        inputs: `[B, T]`, or a list of B rows of unequal length, with -200 where a picture goes.
            A row may hold none, one or several.
        images: `[n, 3, H, W]` or a list, in reading order over the batch; n markers in all.
        image_sizes: (width, height) of each picture before it was cut into tiles (LLaVA-NeXT).
        attention_mask: `[B, T]`, 0 for padding on either side; a list of rows needs none.
        kwargs: as in transformers.

        Returns the new tokens only, `[B, new]`; with `return_dict_in_generate` the stock output
        whose `sequences` are the new tokens. As in LLaVA, logits processors and stopping criteria
        (`repetition_penalty` and `no_repeat_ngram_size` too) see the new tokens only.

        A call in transformers' own form (`input_ids=..., pixel_values=...`) does and returns
        what the stock class does. Raises ValueError where markers and pictures differ in number.
        """
        stock: Any = super().generate
        if inputs is None and images is not None:
            inputs = kwargs.pop("input_ids", None)
        foreign = {"pixel_values", "pixel_values_videos", "inputs_embeds"} & {
            k for k, v in kwargs.items() if v is not None
        }
        if inputs is None or foreign:
            if images is not None:
                raise ValueError(
                    f"images came with {sorted(foreign) or 'no prompt ids'}: give ids with "
                    f"{IMAGE_TOKEN_INDEX} and images (LLaVA), or input_ids and pixel_values"
                )
            sizes = {} if image_sizes is None else {"image_sizes": image_sizes}
            return stock(inputs=inputs, attention_mask=attention_mask, **sizes, **kwargs)
        expanded, pictures = self.expand(inputs, images, image_sizes, attention_mask)
        length = expanded.input_ids.shape[1]
        self.leave_prompt_out(kwargs, length)
        out = stock(
            inputs=expanded.input_ids, attention_mask=expanded.attention_mask, **pictures, **kwargs
        )
        if isinstance(out, Tensor):
            return out[:, length:]
        out.sequences = out.sequences[:, length:]
        return out


class LlavaForConditionalGeneration(LlavaCalls, transformers.LlavaForConditionalGeneration):
    """LLaVA-1.5: every picture (or tile) becomes the tower's patches, 576 at 336 px / 14."""

    def picture_inputs(
        self, pictures: list[Tensor], image_sizes: Any
    ) -> tuple[list[int], dict[str, Any]]:
        vision = self.config.vision_config
        per_tile = (vision.image_size // vision.patch_size) ** 2
        per_tile += vision.model_type != "siglip_vision_model"  # SigLIP has no CLS
        per_tile -= self.config.vision_feature_select_strategy == "default"
        tiles = [picture[None] if picture.dim() == 3 else picture for picture in pictures]
        counts = [len(tile) * per_tile for tile in tiles]
        return counts, {"pixel_values": self._tower_like(torch.cat(tiles))}


class LlavaNextForConditionalGeneration(LlavaCalls, transformers.LlavaNextForConditionalGeneration):
    """LLaVA-NeXT (v1.6): a picture is cut into tiles, each row of patches ends in a newline.

    `patch_merge` is how tiles are put together; "spatial_unpad" is the stock class's own way.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.patch_merge = patch_merge(config)
        set_packing(self.model, self.patch_merge)

    def picture_inputs(
        self, pictures: list[Tensor], image_sizes: Any
    ) -> tuple[list[int], dict[str, Any]]:
        if image_sizes is None or len(image_sizes) != len(pictures):
            given = "none" if image_sizes is None else len(image_sizes)
            raise ValueError(
                f"{len(pictures)} picture(s) but {given} image_sizes: a LLaVA-NeXT model needs the "
                "(width, height) of every picture, as in image_sizes=[image.size]"
            )
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        # PIL and LLaVA say (width, height), transformers (height, width).
        sizes = [(int(height), int(width)) for width, height in image_sizes]
        for picture, size in zip(pictures, sizes, strict=True):
            tiles = image_size_to_num_patches(
                size, self.config.image_grid_pinpoints, vision.image_size
            )
            if picture.dim() != 4 or len(picture) != tiles:
                raise ValueError(
                    f"a picture of {size[1]}x{size[0]} needs {tiles} tiles "
                    f"[{tiles}, 3, {vision.image_size}, {vision.image_size}] but has shape "
                    f"{tuple(picture.shape)}; prepare it with process_images and "
                    'image_aspect_ratio="anyres"'
                )
        most = max(len(picture) for picture in pictures)
        stack = pictures[0].new_zeros((len(pictures), most, *pictures[0].shape[1:]))
        for row, picture in zip(stack, pictures, strict=True):
            row[: len(picture)] = picture
        # The stock packing itself says how many tokens remain after unpadding.
        dummies = [torch.zeros(len(picture), side * side, 1) for picture in pictures]
        _, lengths = self.model.pack_image_features(
            dummies,
            torch.tensor(sizes),
            self.config.vision_feature_select_strategy,
            image_newline=torch.zeros(1),
        )
        pixel_values = self._tower_like(stack)
        inputs = {
            "pixel_values": pixel_values,
            "image_sizes": torch.tensor(sizes, device=pixel_values.device),
        }
        return [int(n) for n in lengths], inputs
