"""LLaVA's training flags, under their own names. Most real recipes run unchanged.

Flags that only chose between code paths which transformers 5 no longer has (``--lazy_preprocess``,
``--mm_use_im_start_end``, ``--mm_use_im_patch_token``, ``--vision_tower`` of a finished
checkpoint, ``--mpt_attn_impl``) are accepted; values that would change the arithmetic and are not
supported raise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import transformers


@dataclass
class ModelArguments:
    """Which model, and which of its parts are tuned."""

    model_name_or_path: str = field(
        metadata={"help": "a LLaVA checkpoint, or a language model together with --vision_tower"}
    )
    version: str = field(default="v1", metadata={"help": "prompt template: v1, plain, ..."})
    vision_tower: str | None = field(
        default=None, metadata={"help": "CLIP tower, where the model is a language model alone"}
    )
    freeze_backbone: bool = False
    tune_mm_mlp_adapter: bool = field(
        default=False, metadata={"help": "projector alignment: tune the projector alone"}
    )
    tune_vision_tower: bool = field(
        default=False, metadata={"help": "tune the vision tower too (LLaVA-1.5 does not)"}
    )
    pretrain_mm_mlp_adapter: str | None = field(
        default=None, metadata={"help": "projector weights of the alignment stage"}
    )
    mm_projector_type: str = "mlp2x_gelu"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = False
    mm_patch_merge_type: str = "flat"


@dataclass
class DataArguments:
    """LLaVA's data: a json list of {"id", "image", "conversations"}."""

    data_path: str = field(metadata={"help": "json, or jsonl with one sample a line"})
    image_folder: str = ""
    image_aspect_ratio: str = field(default="pad", metadata={"help": "pad or square"})
    is_multimodal: bool = True
    lazy_preprocess: bool = True


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """The Trainer's own arguments and LLaVA's."""

    output_dir: str = field(default="outputs/train", metadata={"help": "where to write"})
    model_max_length: int = field(default=2048, metadata={"help": "longer samples are cut"})
    group_by_modality_length: bool = False
    mm_projector_lr: float | None = None
    lora_enable: bool = False
    lora_r: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_bias: str = "none"
    lora_weight_path: str = ""
    bits: int = 16
    remove_unused_columns: bool = False
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "LLaVA's name for a --warmup_steps below 1"}
    )

    def __post_init__(self) -> None:
        if self.warmup_ratio is not None:
            self.warmup_steps = self.warmup_ratio
        super().__post_init__()


def refuse(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Raises ValueError for settings that this code would silently do differently."""
    wrong = {
        "--mm_projector_type": (model.mm_projector_type, "mlp2x_gelu"),
        "--mm_vision_select_feature": (model.mm_vision_select_feature, "patch"),
        "--mm_use_im_start_end": (model.mm_use_im_start_end, False),
        "--mm_use_im_patch_token": (model.mm_use_im_patch_token, False),
        "--mm_patch_merge_type": (model.mm_patch_merge_type, "flat"),
        "--bits": (training.bits, 16),
    }
    for flag, (value, only) in wrong.items():
        if value != only:
            raise ValueError(f"{flag} {value}: only {only} is supported")
    if data.image_aspect_ratio not in ("pad", "square"):
        raise ValueError(f"--image_aspect_ratio {data.image_aspect_ratio}: take pad or square")
    if model.tune_mm_mlp_adapter and training.lora_enable:
        raise ValueError("--tune_mm_mlp_adapter and --lora_enable exclude each other")
